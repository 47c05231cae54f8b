import { open } from 'node:fs/promises';
import { AppError } from '../../shared/errors.ts';
import { toDiskError } from './disk-error.ts';
import type { PictureProcess } from './picture-process.ts';

/** Larger pictures are refused before a pixel is decoded: 50 megapixels are 150 MB in memory. */
const MAX_PIXELS = 50e6;

/** Only what is decoded from the three formats that every engine reads becomes an input: a PNG of its pixels, at `to`. */
export async function cleanPixels(pictures: PictureProcess, { path, to }: { path: string; to: string }): Promise<void> {
  const format = await formatOf(path);
  if (format !== 'PNG' && format !== 'JPEG' && format !== 'WebP') {
    throw new AppError(
      'INPUT_INVALID',
      `The input is ${format}, which is not supported. Convert it to PNG, JPEG or WebP and send it again.`,
    );
  }
  try {
    await pictures.clean(path, { to, maxPixels: MAX_PIXELS });
  } catch (error) {
    if (error instanceof Error && 'code' in error) throw toDiskError(error, to);
    const isTooLarge = error instanceof Error && error.message.includes('exceeds pixel limit');
    const why = isTooLarge ? `has more than ${MAX_PIXELS / 1e6} megapixels` : 'cannot be decoded; it may be damaged';
    throw new AppError('INPUT_INVALID', `The ${format} input ${why}. Send another picture.`, { cause: error });
  }
}

/** By the first bytes, never by a name or a header somebody else wrote. */
async function formatOf(path: string): Promise<string> {
  const head = Buffer.alloc(256);
  const file = await open(path, 'r');
  try {
    await file.read(head, 0, head.length, 0);
  } finally {
    await file.close();
  }
  const at = (from: number, to: number): string => head.toString('latin1', from, to);
  if (at(0, 8) === '\x89PNG\r\n\x1a\n') return 'PNG';
  if (at(0, 3) === '\xff\xd8\xff') return 'JPEG';
  if (at(0, 4) === 'RIFF' && at(8, 12) === 'WEBP') return 'WebP';
  if (at(4, 8) === 'ftyp') return /^avi[fs]$/.test(at(8, 12)) ? 'AVIF' : 'HEIC';
  if (at(0, 4) === 'GIF8') return 'GIF';
  if (at(0, 4) === 'II*\0' || at(0, 4) === 'MM\0*') return 'TIFF';
  if (/^\s*(\ufeff|\xef\xbb\xbf)?\s*<(\?xml|svg|!--|!DOCTYPE)/i.test(at(0, 256))) return 'SVG';
  return 'of an unknown format';
}
