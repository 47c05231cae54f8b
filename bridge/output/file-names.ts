import type { ImageFormat } from '../../shared/job.ts';

/** File systems allow 255 bytes; the rest is kept for `-2`, `-3` ... and the extension. */
const MAX_STEM_BYTES = 200;
const IMAGE_EXTENSIONS: Record<string, ImageFormat | 'other'> = {
  png: 'png',
  jpg: 'jpg',
  jpeg: 'jpg',
  webp: 'webp',
  gif: 'other',
  bmp: 'other',
  tif: 'other',
  tiff: 'other',
  avif: 'other',
  heic: 'other',
};
/** Names that are devices on Windows, with any extension, and so must not be files anywhere a share may be read. */
const DEVICE_NAME = /^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])$/i;

/** The name of an image nobody named: `img_20260218_143022_a1b2c3.png`. The time is local, as a person reads it. */
export function imageName(o: { promptSha256: string; at: Date; format: ImageFormat }): string {
  const { at } = o;
  const day = `${at.getFullYear()}${two(at.getMonth() + 1)}${two(at.getDate())}`;
  const time = `${two(at.getHours())}${two(at.getMinutes())}${two(at.getSeconds())}`;
  return `img_${day}_${time}_${o.promptSha256.slice(0, 6)}.${o.format}`;
}

/** The name to try when the first n - 1 are taken: `a.png`, `a-2.png`, `a-3.png` ... */
export function numbered(name: string, n: number): string {
  if (n <= 1) return name;
  const { stem, extension } = split(name);
  return extension === '' ? `${stem}-${n}` : `${stem}-${n}.${extension}`;
}

/** The format a name asks for by its extension, if it is one we make. */
export function formatOfName(name: string): ImageFormat | undefined {
  const format = IMAGE_EXTENSIONS[split(name).extension.toLowerCase()];
  return format === 'other' ? undefined : format;
}

/**
 * A name somebody suggested as one that every file system takes: its last part, without control or reserved characters,
 * never hidden, never a device, short enough, and with the extension of the format.
 */
export function safeName(suggested: string, format: ImageFormat): string {
  const last = suggested.normalize('NFC').split(/[/\\]/).at(-1) ?? '';
  const { stem, extension } = split(last);
  const isImage = Object.hasOwn(IMAGE_EXTENSIONS, extension.toLowerCase());
  return `${safeStem(isImage || extension === '' ? stem : `${stem}.${extension}`)}.${format}`;
}

/** True for a path part that Windows opens as a device. */
export function isDeviceName(part: string): boolean {
  return DEVICE_NAME.test(part.split('.', 1)[0]?.trim() ?? '');
}

function safeStem(stem: string): string {
  const clean = stem
    // Control characters, lone halves of surrogate pairs, direction overrides, and what Windows reserves.
    .replace(/[\p{Cc}\p{Cs}\u200e\u200f\u202a-\u202e\u2066-\u2069<>:"/\\|?*]/gu, '_')
    .replace(/^[.\s]+|[.\s]+$/g, '');
  const short = cutToBytes(clean, MAX_STEM_BYTES).replace(/[.\s]+$/, '');
  if (short === '') return 'image';
  return isDeviceName(short) ? `_${short}` : short;
}

/** Cuts between characters, never inside one. */
function cutToBytes(text: string, maxBytes: number): string {
  let bytes = 0;
  let kept = '';
  for (const character of text) {
    bytes += utf8Bytes(character.codePointAt(0) ?? 0);
    if (bytes > maxBytes) return kept;
    kept += character;
  }
  return kept;
}

function utf8Bytes(codePoint: number): number {
  if (codePoint < 0x80) return 1;
  if (codePoint < 0x800) return 2;
  return codePoint < 0x10000 ? 3 : 4;
}

function split(name: string): { stem: string; extension: string } {
  const dot = name.lastIndexOf('.');
  return dot <= 0 ? { stem: name, extension: '' } : { stem: name.slice(0, dot), extension: name.slice(dot + 1) };
}

function two(value: number): string {
  return String(value).padStart(2, '0');
}
