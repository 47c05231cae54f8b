import { readFile } from 'node:fs/promises';
import { contactSheet, smallJpeg } from './contact-sheet.ts';
import { imageKind } from './image-bytes.ts';

/** One preview as it goes into an answer. */
export type Preview = { data: string; mimeType: string };

/** A client closes the connection above 10 MiB and some drop answers above 1 MB, so previews stay far below. */
const MAX_BASE64 = 300 * 1024;
const MAX_BASE64_TOTAL = 600 * 1024;
const MAX_INLINE = 4;
const SHEET_SIDE = 1024;
/** More tiles than this are too small to be seen. */
const MAX_TILES = 36;

/**
 * The previews to show for these files: each one while they are few and small, else one contact sheet of all.
 * Without sharp, which some installations lack, the first ones that fit. Never throws: an answer without a preview is still one.
 */
export async function previewsOf(paths: readonly string[]): Promise<{ previews: Preview[]; notes: string[] }> {
  const pictures = await readAll(paths.slice(0, MAX_TILES));
  if (pictures.length === 0) return { previews: [], notes: [] };
  if (fitsInline(pictures) && paths.length <= MAX_INLINE) return { previews: pictures.map(toPreview), notes: [] };
  try {
    const one = pictures[0];
    const maxBytes = bytesOf(MAX_BASE64);
    const isSingle = pictures.length === 1 && one !== undefined;
    const sheet = isSingle
      ? await smallJpeg(one, { maxBytes })
      : await contactSheet(pictures, { side: SHEET_SIDE, maxBytes, format: 'jpeg' });
    const shown = isSingle ? [] : [`The preview is a contact sheet of ${pictures.length} of ${paths.length} images.`];
    return { previews: [toPreview(sheet)], notes: shown };
  } catch {
    // No sharp for this platform, or a preview it cannot read.
    const first = firstThatFit(pictures);
    return { previews: first.map(toPreview), notes: [`Only ${first.length} of ${paths.length} previews are shown.`] };
  }
}

async function readAll(paths: readonly string[]): Promise<Buffer[]> {
  const read = await Promise.all(paths.map((path) => readFile(path).catch(() => undefined))); // gone: shown without
  return read.filter((picture) => picture !== undefined);
}

function fitsInline(pictures: readonly Buffer[]): boolean {
  return pictures.length <= MAX_INLINE && firstThatFit(pictures).length === pictures.length;
}

function firstThatFit(pictures: readonly Buffer[]): Buffer[] {
  const chosen: Buffer[] = [];
  let total = 0;
  for (const picture of pictures) {
    const size = base64Of(picture.length);
    const kind = imageKind(picture);
    if (kind === undefined || !('format' in kind) || kind.format !== 'jpg') continue; // an original stands in for its preview
    if (size > MAX_BASE64 || total + size > MAX_BASE64_TOTAL || chosen.length === MAX_INLINE) continue;
    total += size;
    chosen.push(picture);
  }
  return chosen;
}

function toPreview(picture: Buffer): Preview {
  return { data: picture.toString('base64'), mimeType: 'image/jpeg' };
}

function base64Of(bytes: number): number {
  return Math.ceil(bytes / 3) * 4;
}

function bytesOf(base64: number): number {
  return Math.floor(base64 / 4) * 3;
}
