import { crc32 } from 'node:zlib';
import { readTextChunks } from '../../../shared/png-text.ts';

// The pictures of this world: small, with the head of a PNG, so that the product puts its text behind it, and with a sum of
// all that the engine made at their end.

const HEAD_BYTES = 33;
const SUM_BYTES = 4;
const TEXT = new Set(['tEXt', 'iTXt']);

export type Owner = { jobId: string; attempt: number; hostname: string };

/** What an engine answers: `noise` bytes between head and sum. */
export function pictureOf({ width, height, noise }: { width: number; height: number; noise: Buffer }): Buffer {
  const picture = Buffer.alloc(HEAD_BYTES + noise.length + SUM_BYTES);
  picture.write('\x89PNG\r\n\x1a\n\0\0\0\rIHDR', 'latin1');
  picture.writeUInt32BE(width, 16);
  picture.writeUInt32BE(height, 20);
  noise.copy(picture, HEAD_BYTES);
  picture.writeUInt32BE(sumOf(picture, HEAD_BYTES), picture.length - SUM_BYTES);
  return picture;
}

/** Size of a whole picture, with or without text; undefined where it is not one. */
export function sizeOf(bytes: Buffer): { width: number; height: number } | undefined {
  if (bytes.length < HEAD_BYTES + SUM_BYTES || bytes.toString('latin1', 12, 16) !== 'IHDR') return undefined;
  if (bytes.readUInt32BE(bytes.length - SUM_BYTES) !== sumOf(bytes, textEnd(bytes))) return undefined;
  return { width: bytes.readUInt32BE(16), height: bytes.readUInt32BE(20) };
}

/** Whose picture these bytes are, as its text says; undefined where they are not a whole one with its text. */
export function ownerOf(bytes: Buffer): Owner | undefined {
  if (sizeOf(bytes) === undefined) return undefined;
  const text = readTextChunks(bytes.subarray(0, textEnd(bytes))).find(({ keyword }) => keyword === 'gantry')?.text;
  return text === undefined ? undefined : (JSON.parse(text) as Owner); // the product wrote it, and its sum is right
}

/** Behind the text chunks that follow the head. */
function textEnd(bytes: Buffer): number {
  let at = HEAD_BYTES;
  while (at + 8 <= bytes.length && TEXT.has(bytes.toString('latin1', at + 4, at + 8))) {
    at += 12 + bytes.readUInt32BE(at);
  }
  return Math.min(at, bytes.length);
}

/** Of all that is not text: what the product puts in has sums of its own. */
function sumOf(bytes: Buffer, textEndsAt: number): number {
  return crc32(bytes.subarray(textEndsAt, bytes.length - SUM_BYTES), crc32(bytes.subarray(0, HEAD_BYTES)));
}
