import type { ImageFormat } from '../../shared/job.ts';

/** How many bytes from the start decide what a file is. */
export const HEAD_BYTES = 16;

/** What the first bytes of a file say it is; a kind we do not read has a name, so that a refusal can say it. */
export type ImageKind = { format: ImageFormat } | { refused: string } | undefined;

const FTYP_NAMES: Record<string, string> = {
  heic: 'HEIC',
  heix: 'HEIC',
  hevc: 'HEIC',
  heim: 'HEIC',
  heis: 'HEIC',
  mif1: 'HEIC',
  msf1: 'HEIC',
  avif: 'AVIF',
  avis: 'AVIF',
};

/** Judges by magic bytes alone; a file name proves nothing. */
export function imageKind(head: Buffer): ImageKind {
  const text = head.subarray(0, HEAD_BYTES).toString('latin1');
  if (text.startsWith('\x89PNG\r\n\x1a\n')) return { format: 'png' };
  if (text.startsWith('\xff\xd8\xff')) return { format: 'jpg' };
  if (text.startsWith('RIFF') && text.slice(8, 12) === 'WEBP') return { format: 'webp' };
  if (text.slice(4, 8) === 'ftyp') return { refused: FTYP_NAMES[text.slice(8, 12)] ?? 'video' };
  if (/^GIF8[79]a/.test(text)) return { refused: 'GIF' };
  if (/^(II\*\0|MM\0\*)/.test(text)) return { refused: 'TIFF' };
  if (text.startsWith('BM')) return { refused: 'BMP' };
  if (/^\s*<(\?xml|svg|!DOCTYPE)/i.test(text)) return { refused: 'SVG' };
  return undefined;
}
