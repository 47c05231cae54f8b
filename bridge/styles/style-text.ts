import { parse, stringify } from 'yaml';
import { z } from 'zod';
import { AppError } from '../../shared/errors.ts';
import { isDeviceName } from '../output/file-names.ts';

/** PURE. A style brief: what a person wants images to look like, in words for an assistant to interpret. */
export type Style = { head: StyleHead; body: string };

/** The front matter. Keys of other programs stay as they are. */
export const StyleHead = z.looseObject({
  description: z.string().max(500).optional(),
  tags: z.array(z.string().min(1).max(50)).max(20).optional(),
  aspect_ratio: z.string().max(20).optional(),
  quality: z.string().max(50).optional(),
  model: z.string().max(200).optional(),
});
export type StyleHead = z.infer<typeof StyleHead>;

export const MAX_STYLE_BYTES = 16 * 1024;
const FRONT_MATTER = /^\uFEFF?---[ \t]*\r?\n(?:([\s\S]*?)\r?\n)?---[ \t]*(?:\r?\n|$)/;
const SLUG = /^[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?$/;
/** Names of resources. */
const RESERVED = new Set(['list']);

/** Markdown with YAML front matter, as people write it by hand too. What is not valid there is a problem, not an end. */
export function parseStyle(text: string): Style & { problem: string | undefined } {
  const front = FRONT_MATTER.exec(text);
  if (front === null) return { head: {}, body: text.trim(), problem: undefined };
  const body = text.slice(front[0].length).trim();
  try {
    const head = StyleHead.safeParse(parse(front[1] ?? '', { maxAliasCount: 0 }) ?? {});
    if (head.success) return { head: head.data, body, problem: undefined };
    const issue = head.error.issues[0];
    return {
      head: {},
      body,
      problem: `its front matter is not valid: ${issue?.path.join('.') ?? ''} ${issue?.message ?? ''}`,
    };
  } catch {
    return { head: {}, body, problem: 'its front matter is not valid YAML' };
  }
}

/** INVALID_ARGUMENT for a front matter that could not be read back. */
export function checkHead(head: StyleHead): void {
  const checked = StyleHead.safeParse(head);
  if (checked.success) return;
  const [issue] = checked.error.issues;
  throw new AppError(
    'INVALID_ARGUMENT',
    `${issue?.path.join('.') ?? 'A field'} of the style is not valid: ${issue?.message ?? ''}.`,
  );
}

export function styleText({ head, body }: Style): string {
  const given = Object.fromEntries(Object.entries(head).filter(([, value]) => value !== undefined));
  const yaml = Object.keys(given).length === 0 ? '' : stringify(given);
  // A text that begins with a rule would be taken for front matter.
  const front = yaml === '' && !body.trim().startsWith('---') ? '' : `---\n${yaml}---\n\n`;
  return `${front}${body.trim()}\n`;
}

/** A name that is a file on every system and an address in every client, or INVALID_ARGUMENT with one that is. */
export function checkStyleName(name: string): void {
  if (SLUG.test(name) && !RESERVED.has(name) && !isDeviceName(name)) return;
  const near = slugOf(name);
  const hint = near === undefined ? '' : ` Use ${near}.`;
  throw new AppError(
    'INVALID_ARGUMENT',
    `${JSON.stringify(name.slice(0, 100))} cannot be the name of a style: it takes 1 to 64 small letters, digits, - and _, ` +
      `begins and ends with a letter or digit, and is no reserved word.${hint}`,
  );
}

export function isStyleName(name: string): boolean {
  return SLUG.test(name) && !RESERVED.has(name) && !isDeviceName(name);
}

function slugOf(name: string): string | undefined {
  const slug = name
    .normalize('NFKD')
    .toLowerCase()
    .replace(/[^a-z0-9_]+/g, '-')
    .slice(0, 64)
    .replace(/^[-_]+|[-_]+$/g, '');
  return isStyleName(slug) ? slug : undefined;
}
