import { crc32 } from 'node:zlib';

export type TextChunk = { keyword: string; text: string };
export type PngSize = { width: number; height: number };

const SIGNATURE = Buffer.from('89504e470d0a1a0a', 'hex');

/** The signature and IHDR: all that comes before the first place for text. */
export const PNG_HEAD_BYTES = SIGNATURE.length + 12 + 13;

/** The size that the first `PNG_HEAD_BYTES` say; undefined where they are no PNG's. */
export function pngSize(head: Buffer): PngSize | undefined {
  return isPng(head) ? { width: head.readUInt32BE(16), height: head.readUInt32BE(20) } : undefined;
}

/**
 * What stands right behind the head of a PNG, where a reader finds it without decoding the picture. Latin-1 text becomes
 * tEXt, which every viewer reads; any other text becomes iTXt.
 */
export function encodeTextChunks(chunks: readonly TextChunk[]): Buffer {
  return Buffer.concat(chunks.map(encodeText));
}

/** The tEXt and uncompressed iTXt chunks in their order; damaged ones and whatever follows a cut are left out. */
export function readTextChunks(png: Buffer): TextChunk[] {
  if (!isPng(png)) return [];
  const found: TextChunk[] = [];
  for (let at = SIGNATURE.length; at + 12 <= png.length;) {
    const bytes = png.readUInt32BE(at);
    const end = at + 12 + bytes;
    if (end > png.length) break;
    if (crc32(png.subarray(at + 4, end - 4)) === png.readUInt32BE(end - 4)) {
      const text = decodeText(png.toString('latin1', at + 4, at + 8), png.subarray(at + 8, end - 4));
      if (text !== undefined) found.push(text);
    }
    at = end;
  }
  return found;
}

function isPng(bytes: Buffer): boolean {
  return (
    bytes.length >= PNG_HEAD_BYTES &&
    bytes.subarray(0, 8).equals(SIGNATURE) &&
    bytes.toString('latin1', 12, 16) === 'IHDR'
  );
}

function encodeText({ keyword, text }: TextChunk): Buffer {
  if (!/^[\x20-\x7e]{1,79}$/.test(keyword) || keyword.trim() !== keyword)
    throw new Error(`bad PNG keyword '${keyword}'`);
  if (text.includes('\0')) throw new Error(`text of PNG chunk '${keyword}' contains NUL, which ends a text`);
  const name = Buffer.from(`${keyword}\0`, 'latin1');
  if (isLatin1(text)) return chunk('tEXt', [name, Buffer.from(text, 'latin1')]);
  // Two zeros: not compressed, method 0; then an empty language tag and an empty translated keyword, each with its end.
  return chunk('iTXt', [name, Buffer.alloc(4), Buffer.from(text, 'utf8')]);
}

function isLatin1(text: string): boolean {
  return Buffer.from(text, 'latin1').toString('latin1') === text;
}

function chunk(type: 'tEXt' | 'iTXt', parts: readonly Buffer[]): Buffer {
  const body = Buffer.concat([Buffer.from(type, 'latin1'), ...parts]);
  const framed = Buffer.alloc(body.length + 8);
  framed.writeUInt32BE(body.length - 4, 0);
  body.copy(framed, 4);
  framed.writeUInt32BE(crc32(body), body.length + 4);
  return framed;
}

function decodeText(type: string, body: Buffer): TextChunk | undefined {
  const keywordEnd = body.indexOf(0);
  if (keywordEnd < 1) return undefined;
  const keyword = body.toString('latin1', 0, keywordEnd);
  if (type === 'tEXt') return { keyword, text: body.toString('latin1', keywordEnd + 1) };
  if (type !== 'iTXt' || body[keywordEnd + 1] !== 0) return undefined;
  const languageEnd = body.indexOf(0, keywordEnd + 3);
  const translatedEnd = languageEnd < 0 ? -1 : body.indexOf(0, languageEnd + 1);
  return translatedEnd < 0 ? undefined : { keyword, text: body.toString('utf8', translatedEnd + 1) };
}
