import { basename } from 'node:path';
import { AppError } from '../../shared/errors.ts';
import type { ImageEntry } from '../images/image-entry.ts';
import { transformFromQuery, VIEW_PARAMETERS } from '../images/transform.ts';
import { isFile } from '../images/located.ts';
import type { DeskContext, ResourceDesk } from './desks.ts';
import { noSuchResource } from './desks.ts';
import { jobJson } from './job-json.ts';
import { metadataJson, placeJson, quoted, viewPicture, whyMissing } from './picture-view.ts';
import { recentJson } from './recent-images.ts';
import { MAX_RESULT_BYTES } from './results.ts';
import type { ReadResourceResult, Resource, ResourceTemplate } from './sdk.ts';
import { listedStyle, styleJson } from './style-json.ts';
import { cleanDeep, cleanText } from './text.ts';
import { listHosts } from './tools/list-hosts.ts';

type Contents = ReadResourceResult['contents'];

const JSON_TYPE = 'application/json';
const MARKDOWN = 'text/markdown';
const MAX_TEXT = 20_000;
const MAX_URI = 2_000;
/** Of the images themselves only the newest are listed; image://list has more. */
const LISTED_IMAGES = 10;
const LISTED_STYLES = 100;
const IMAGES_IN_LIST = 50;

const FIXED: readonly Resource[] = [
  {
    uri: 'image://list',
    name: 'images',
    title: 'Images made before',
    description: 'The newest images: id, path, prompt, seed, model, host.',
    mimeType: JSON_TYPE,
  },
  {
    uri: 'style://list',
    name: 'styles',
    title: 'Saved styles',
    description: 'Every saved style brief, with its tags.',
    mimeType: JSON_TYPE,
  },
  {
    uri: 'gantry://hosts',
    name: 'hosts',
    title: 'GPU hosts',
    description: 'Every configured GPU host with its link, GPUs and models.',
    mimeType: JSON_TYPE,
  },
];

const TEMPLATES: readonly ResourceTemplate[] = [
  {
    uriTemplate: `image://{id}/view{?${VIEW_PARAMETERS.join(',')}}`,
    name: 'image',
    title: 'An image, transformed',
    description: 'Scaled (never enlarged), cropped in pixels of the original, or as jpg, png or webp.',
  },
  {
    uriTemplate: 'image://{id}/metadata',
    name: 'image-metadata',
    title: 'How an image was made',
    description: 'Prompt, seed, model, host, file, and the images an edit started from.',
    mimeType: JSON_TYPE,
  },
  {
    uriTemplate: 'style://{name}',
    name: 'style',
    title: 'A saved style',
    description: 'A style brief: markdown with front matter.',
    mimeType: MARKDOWN,
  },
  {
    uriTemplate: 'gantry://jobs/{id}',
    name: 'job',
    title: 'A job or batch',
    description: 'How far it is, with its results so far.',
    mimeType: JSON_TYPE,
  },
];

/** Everything that clients may read. */
export const RESOURCES: ResourceDesk = {
  list: async (context) => {
    const { entries } = await (await context.images()).recent({ limit: LISTED_IMAGES });
    const styles = (await (await context.styles()).list()).slice(0, LISTED_STYLES);
    const there = await Promise.all(entries.map(({ path }) => isFile(path)));
    return [...FIXED, ...styles.map(toStyleResource), ...entries.filter((_, index) => there[index]).map(toResource)];
  },
  templates: () => [...TEMPLATES],
  read: async (uri, context) => {
    const [, scheme = '', rest = ''] = /^([a-z]+):\/\/(.*)$/s.exec(uri.slice(0, MAX_URI)) ?? [];
    const reader = Object.hasOwn(READERS, scheme) ? READERS[scheme] : undefined;
    const contents = uri.length > MAX_URI ? undefined : await reader?.({ uri, rest, context });
    if (contents === undefined) throw noSuchResource(uri, `There are ${ADDRESSES}.`);
    return contents;
  },
};

const ADDRESSES = [...FIXED.map(({ uri }) => uri), ...TEMPLATES.map(({ uriTemplate }) => uriTemplate)].join(', ');

type Asked = { uri: string; rest: string; context: DeskContext };

/** By scheme; undefined where nothing has that address. */
const READERS: Record<string, (asked: Asked) => Promise<Contents | undefined>> = {
  image: readImage,
  style: readStyle,
  gantry: readGantry,
};

async function readImage({ uri, rest, context }: Asked): Promise<Contents | undefined> {
  const images = await context.images();
  if (rest === 'list') return json(uri, await recentJson(images, { limit: IMAGES_IN_LIST }));
  const [, id = '', what, , query = ''] = /^([^/?]+)\/(view|metadata)(\?(.*))?$/s.exec(rest) ?? [];
  if (what === undefined || (what === 'metadata' && query !== '')) return undefined;
  const transform = transformFromQuery(query);
  const entry = await images.entry(id);
  if (entry === undefined)
    throw noSuchResource(uri, `No finished image has the id ${id}; image://list has those there are.`);
  const located = await images.locate(entry);
  if (what === 'metadata') {
    const parents = await images.parentsOf(entry);
    return json(uri, { ...metadataJson(entry, { parents }), ...placeJson(entry, located), notes: entry.result.notes });
  }
  if (located.kind === 'missing') throw noSuchResource(uri, whyMissing(entry));
  const view = await viewPicture({ path: located.path, entry }, { transform, images, context });
  if (view.shown === undefined)
    throw new AppError('RESULT_INVALID', `${view.path} cannot be shown. ${view.notes.join(' ')}`);
  const { bytes, mimeType } = view.shown;
  return [
    {
      uri,
      mimeType,
      blob: bytes.toString('base64'),
      _meta: { 'gantry/shown': view.json['shown'], 'gantry/notes': view.notes },
    },
  ];
}

async function readStyle({ uri, rest, context }: Asked): Promise<Contents | undefined> {
  const styles = await context.styles();
  if (rest === 'list') return json(uri, { styles: (await styles.list()).map(listedStyle) });
  const name = rest.replace(/\/$/, ''); // some clients write an address so
  const style = (await styles.list()).find((one) => one.name === name);
  if (style === undefined) throw noSuchResource(uri, 'style://list has the styles there are.');
  return [{ uri, mimeType: MARKDOWN, text: cleanText(style.text, MAX_TEXT) }];
}

async function readGantry({ uri, rest, context }: Asked): Promise<Contents | undefined> {
  if (rest === 'hosts') return json(uri, await hostsJson(context));
  const [, id] = /^jobs\/([^/?]{1,100})$/.exec(rest) ?? [];
  if (id === undefined) return undefined;
  const view = (await context.fleet()).find(id);
  if (view === undefined)
    throw noSuchResource(uri, 'No job or batch has this id. They are remembered for 30 days after their end.');
  return json(uri, jobJson(view, id));
}

/** What the tool of that name says. */
async function hostsJson(context: DeskContext): Promise<Record<string, unknown>> {
  const call = { progress: () => undefined, cancelReason: () => undefined, syncWaitMs: Infinity };
  return (await listHosts.call({}, { ...context, ...call })).structuredContent ?? {};
}

function json(uri: string, value: Record<string, unknown>): Contents {
  const text = JSON.stringify(cleanDeep(value, MAX_TEXT), null, 1);
  if (Buffer.byteLength(text) >= MAX_RESULT_BYTES) throw new Error(`${uri} is larger than clients accept`);
  return [{ uri, mimeType: JSON_TYPE, text }];
}

function toResource(entry: ImageEntry): Resource {
  return {
    uri: `image://${entry.id}/view`,
    name: cleanText(basename(entry.path), 100),
    title: cleanText(quoted(entry.request.prompt), 100),
    description: `Made ${entry.createdAt} by ${cleanText(entry.host, 70)}`,
    mimeType: 'image/jpeg',
    annotations: { lastModified: entry.createdAt, audience: ['user', 'assistant'] },
  };
}

function toStyleResource(style: Parameters<typeof listedStyle>[0]): Resource {
  const { description, tags } = listedStyle(style);
  return {
    uri: styleJson(style.name).uri,
    name: style.name,
    title: `Style: ${style.name}`,
    description: cleanText([description, tags.join(', ')].filter(Boolean).join(' · '), 300),
    mimeType: MARKDOWN,
  };
}
