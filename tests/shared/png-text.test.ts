import fc from 'fast-check';
import sharp from 'sharp';
import { beforeAll, describe, expect, test } from 'vitest';
import type { TextChunk } from '../../shared/png-text.ts';
import { PNG_HEAD_BYTES, encodeTextChunks, pngSize, readTextChunks } from '../../shared/png-text.ts';

let png: Buffer;
beforeAll(async () => {
  png = await sharp({ create: { width: 8, height: 4, channels: 3, background: '#804020' } })
    .png()
    .toBuffer();
});

/** As the agent does it while the picture comes. */
function addTextChunks(picture: Buffer, chunks: readonly TextChunk[]): Buffer {
  const head = picture.subarray(0, PNG_HEAD_BYTES);
  return Buffer.concat([head, encodeTextChunks(chunks), picture.subarray(PNG_HEAD_BYTES)]);
}

describe('pngSize', () => {
  test('is read from the head alone', () => {
    expect(pngSize(png.subarray(0, PNG_HEAD_BYTES))).toEqual({ width: 8, height: 4 });
  });

  test.each([
    ['a shorter start', () => png.subarray(0, PNG_HEAD_BYTES - 1)],
    ['bytes that are no PNG', () => Buffer.alloc(PNG_HEAD_BYTES, 'GIF89a')],
    ['a PNG without a head', () => Buffer.concat([png.subarray(0, 12), Buffer.alloc(30)])],
  ])('%s has none', (_, start) => {
    expect(pngSize(start())).toBeUndefined();
  });
});

describe('encodeTextChunks', () => {
  test('latin-1 text becomes tEXt right behind IHDR', () => {
    const marked = addTextChunks(png, [{ keyword: 'parameters', text: 'a café\nSteps: 4' }]);
    expect(marked.subarray(0, 33)).toEqual(png.subarray(0, 33));
    expect(marked.toString('latin1', 37, 41)).toBe('tEXt');
    expect(readTextChunks(marked)).toEqual([{ keyword: 'parameters', text: 'a café\nSteps: 4' }]);
  });

  test('any other text becomes iTXt', () => {
    const marked = addTextChunks(png, [{ keyword: 'gantry', text: '{"prompt":"狐狸 🦊"}' }]);
    expect(marked.toString('latin1', 37, 41)).toBe('iTXt');
    expect(readTextChunks(marked)).toEqual([{ keyword: 'gantry', text: '{"prompt":"狐狸 🦊"}' }]);
  });

  test('an independent reader finds the chunks, and the same pixels', async () => {
    const marked = addTextChunks(png, [
      { keyword: 'parameters', text: 'a red fox' },
      { keyword: 'gantry', text: '狐狸' },
    ]);
    const { comments } = await sharp(marked).metadata();
    expect(comments).toEqual([
      { keyword: 'parameters', text: 'a red fox' },
      { keyword: 'gantry', text: '狐狸' },
    ]);
    expect(await sharp(marked).raw().toBuffer()).toEqual(await sharp(png).raw().toBuffer());
  });

  test.each([
    ['an empty keyword', () => addTextChunks(png, [{ keyword: '', text: '' }])],
    ['a keyword of 80 characters', () => addTextChunks(png, [{ keyword: 'k'.repeat(80), text: '' }])],
    ['a NUL in the text', () => addTextChunks(png, [{ keyword: 'k', text: 'a\0b' }])],
  ])('%s is refused', (_, add) => {
    expect(add).toThrow();
  });

  test('whatever is written is read again', () => {
    const text = fc.string({ unit: 'binary' }).filter((each) => !/\p{Surrogate}|\0/u.test(each));
    const chunks = fc.array(fc.record({ keyword: fc.stringMatching(/^[a-z]{1,20}$/), text }), { maxLength: 4 });
    fc.assert(
      fc.property(chunks, (written) => {
        expect(readTextChunks(addTextChunks(png, written))).toEqual(written);
      }),
    );
  });
});

describe('readTextChunks', () => {
  test('hostile bytes never throw', () => {
    const marked = addTextChunks(png, [{ keyword: 'gantry', text: 'fox' }]);
    const damaged = fc
      .tuple(fc.nat(marked.length - 1), fc.integer({ min: 0, max: 255 }), fc.nat(marked.length))
      .map(([at, byte, cut]) => {
        const copy = Buffer.from(marked.subarray(0, cut));
        if (at < copy.length) copy[at] = byte;
        return copy;
      });
    fc.assert(fc.property(damaged, (bytes) => void readTextChunks(bytes)));
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => void readTextChunks(Buffer.from(bytes))));
  });

  test('a chunk with a wrong checksum is left out', () => {
    const marked = addTextChunks(png, [
      { keyword: 'first', text: 'damaged' },
      { keyword: 'second', text: 'whole' },
    ]);
    marked[45] = 0x21;
    expect(readTextChunks(marked)).toEqual([{ keyword: 'second', text: 'whole' }]);
  });
});
