import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { AppError } from '../../shared/errors.ts';
import type { ImageFormat } from '../../shared/job.ts';
import type { ImageEntry } from '../images/image-entry.ts';
import type { Images, Parent } from '../images/images.ts';
import type { Located } from '../images/located.ts';
import { mimeOf } from '../images/renderer.ts';
import type { Transform } from '../images/transform.ts';
import type { Picture } from '../output/input-image.ts';
import { readPicture } from '../output/input-image.ts';
import { allowedPath } from '../output/roots.ts';
import type { DeskContext } from './desks.ts';
import type { Json } from './results.ts';
import { seconds } from './units.ts';

/** A picture as it goes into an answer, and what a person should know of it. */
export type PictureView = {
  path: string;
  /** The file itself. */
  format: ImageFormat;
  bytes: number;
  /** What is known of it, if it was made here. */
  entry: ImageEntry | undefined;
  shown: { bytes: Buffer; mimeType: string } | undefined;
  /** How it is shown. */
  json: Json;
  notes: string[];
};

/** Larger files are opened by other programs; this is an uncompressed PNG of 40 megapixels. */
const MAX_FILE_BYTES = 128 * 1024 ** 2;
/** What can be shown as it is where nothing can be transformed; as base64 600 KB. */
const MAX_SHOWN_BYTES = 450_000;
const QUOTED = 80;
const REDUCED = 'It was made smaller or coarser than asked for, to fit into an answer. The file has all of it.';
const NO_SHARP =
  'This installation of gantry has no sharp, so nothing can be scaled, cropped or converted: open the file itself for that.';

/**
 * The picture at a path, transformed. It is looked at again each time: the user may have changed it since it was made. `entry`
 * is what is known of it.
 */
export async function viewPicture(
  asked: { path: string; entry: ImageEntry | undefined },
  { transform, images, context }: { transform: Transform; images: Images; context: DeskContext },
): Promise<PictureView> {
  const path = await allowedPath(asked.path, await context.roots());
  const picture = await readPicture(path, { maxBytes: MAX_FILE_BYTES });
  const file = { path, format: picture.format, bytes: picture.bytes };
  const entry = asked.entry ?? (await images.entryOfBytes(picture.sha256, path));
  const isChanged = entry !== undefined && entry.result.sha256 !== picture.sha256;
  const changed = isChanged ? ['The file was changed since it was made; this is how it is now.'] : [];
  const rendered = await images.render(picture, { transform, signal: context.signal });
  if (rendered === undefined) {
    const { shown, how } = await untransformed(picture, isChanged ? undefined : entry);
    return { ...file, entry, shown, json: { shown: how }, notes: [...changed, NO_SHARP] };
  }
  const { isReduced, bytes, mimeType, width, height, quality } = rendered;
  return {
    ...file,
    entry,
    shown: { bytes, mimeType },
    json: { shown: { mime_type: mimeType, width, height, quality, bytes: bytes.length } },
    notes: [...changed, ...(isReduced ? [REDUCED] : [])],
  };
}

/** The preview that came with the image, or a small file itself: for an installation that cannot transform. */
async function untransformed(
  picture: Picture,
  entry: ImageEntry | undefined,
): Promise<{ shown: PictureView['shown']; how: string }> {
  const previewPath = entry?.previewPath ?? undefined;
  const preview = previewPath && (await readFile(previewPath).catch(() => undefined)); // kept for the newest only
  if (preview && preview.length <= MAX_SHOWN_BYTES)
    return { shown: { bytes: preview, mimeType: 'image/jpeg' }, how: 'the stored preview' };
  if (picture.content.length > MAX_SHOWN_BYTES) return { shown: undefined, how: 'nothing: the file is too large' };
  return { shown: { bytes: picture.content, mimeType: mimeOf(picture.format) }, how: 'the file itself' };
}

/** Everything about how an image was made, for a person or for whoever makes it again. */
export function metadataJson(entry: ImageEntry, { parents }: { parents: readonly Parent[] }): Json {
  const { request, result } = entry;
  return {
    id: entry.id,
    created_at: entry.createdAt,
    kind: request.kind,
    model: request.model,
    prompt: request.prompt,
    ...(request.negativePrompt !== undefined && { negative_prompt: request.negativePrompt }),
    seed: request.seed,
    num_inference_steps: request.steps,
    guidance_scale: request.guidance.value,
    ...(request.kind === 'edit' && request.sizeLevel !== undefined && { size_level: request.sizeLevel }),
    width: result.width,
    height: result.height,
    format: result.format,
    bytes: result.bytes,
    sha256: result.sha256,
    host: entry.host,
    gpu: result.gpu,
    generation_time_seconds: seconds(result.runMs),
    batch_id: entry.batchId,
    parents: parents.map(({ id, path, sha256 }) => ({ ...(id !== undefined && { id }), path, sha256 })),
  };
}

/** Where its file is. */
export function placeJson(entry: ImageEntry, located: Located): Json {
  if (located.kind === 'missing') return { file_path: entry.path, missing: true };
  if (located.kind === 'there') return { file_path: entry.path };
  return { file_path: located.path, moved_from: entry.path };
}

/** One image of a list. */
export function listedJson(entry: ImageEntry, { isMissing }: { isMissing: boolean }) {
  const { request, result } = entry;
  return {
    id: entry.id,
    file_path: entry.path,
    ...(isMissing && { missing: true }),
    prompt: quoted(request.prompt),
    seed: request.seed,
    model: request.model,
    host: entry.host,
    kind: request.kind,
    width: result.width,
    height: result.height,
    format: result.format,
    created_at: entry.createdAt,
  };
}

export function quoted(prompt: string): string {
  return prompt.length <= QUOTED ? prompt : `${prompt.slice(0, QUOTED - 1)}…`;
}

export function noSuchImage(id: string): AppError {
  return new AppError(
    'INPUT_INVALID',
    `No finished image has the id ${id.slice(0, 100)}. list_images shows those there are; any image file can be given by its path.`,
  );
}

export function whyMissing(entry: ImageEntry): string {
  return (
    `The file of image ${entry.id} is not at ${entry.path} any more, nor beside it (${basename(entry.path)}). ` +
    'It was deleted or moved; give its new path.'
  );
}
