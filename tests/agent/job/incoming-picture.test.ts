import { createHash, randomUUID } from 'node:crypto';
import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32, deflateSync } from 'node:zlib';
import { pino } from 'pino';
import sharp from 'sharp';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { sizeNotes, textChunks } from '../../../agent/job/final-image.ts';
import { PictureProcess } from '../../../agent/job/picture-process.ts';
import { ResultStore } from '../../../agent/job/result-store.ts';
import type { ImageFormat } from '../../../shared/job.ts';
import { readTextChunks } from '../../../shared/png-text.ts';
import { jobOf } from './exchange-host.ts';

const log = pino({ level: 'silent' });
const WIDTH = 90;
const HEIGHT = 61;

let pictures: PictureProcess;
let dir: string;
let store: ResultStore;
let png: Buffer;
/** Every byte of it differs from its neighbours, so that a lost row is seen. */
let pixels: Buffer;

beforeAll(async () => {
  pictures = new PictureProcess();
  pixels = Buffer.from(Array.from({ length: WIDTH * HEIGHT * 3 }, (_, at) => (at * 7 + (at >> 3) * 13) % 251));
  png = await sharp(pixels, { raw: { width: WIDTH, height: HEIGHT, channels: 3 } })
    .png()
    .toBuffer();
});
afterAll(() => pictures[Symbol.asyncDispose]());
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-incoming-'));
  store = await ResultStore.open({ dir, quotaBytes: 1e9, keptMs: 1e9, pictures, log });
});
afterEach(() => rm(dir, { recursive: true, force: true }));

const job = jobOf({ prompt: 'a red fox 狐', negativePrompt: 'blur', width: WIDTH, height: HEIGHT });

/** The answer as it comes, in pieces, up to a kept result. */
async function keep(answer: Buffer, o: { format?: ImageFormat; piece?: number; jobId?: string } = {}) {
  const { format = 'png', piece = 1_000, jobId = randomUUID() } = o;
  const origin = { job, hostname: 'box', gpu: 'Simulated GPU', isSimulated: true };
  const textOf = (made: Parameters<typeof textChunks>[1]) => textChunks(origin, made);
  await using picture = await store.incoming('t', { format, textOf });
  picture.begin(1_234);
  for (let at = 0; at < answer.length; at += piece) await picture.write(answer.subarray(at, at + piece));
  const { sha256, bytes, width, height } = await store.keep('t', jobId, 1, picture);
  const found = store.find('t', jobId);
  if (found === undefined) throw new Error('it is kept');
  const file = await readFile(found.path);
  return { facts: { sha256, bytes, width, height }, found, file, preview: await readFile(found.previewPath) };
}

async function rawOf(image: Buffer): Promise<Buffer> {
  return await sharp(image).raw().toBuffer();
}

describe('a picture that comes', () => {
  test.each([1, 32, 33, 34, 1_000_000])('in pieces of %i is one file with its text and its hash', async (piece) => {
    const { facts, found, file, preview } = await keep(png, { piece });
    expect(facts).toEqual({ sha256: shaOf(file), bytes: file.length, width: WIDTH, height: HEIGHT });
    expect(found).toMatchObject({ sha256: shaOf(file), bytes: file.length, format: 'png' });
    expect(await rawOf(file)).toEqual(pixels);
    const [parameters, own, ...more] = readTextChunks(file);
    expect(more).toEqual([]);
    expect(parameters).toEqual({
      keyword: 'parameters',
      text: `a red fox 狐\nNegative prompt: blur\nSteps: 4, CFG scale: 1, Seed: 7, Size: ${WIDTH}x${HEIGHT}, Model: test/a`,
    });
    expect(own?.keyword).toBe('gantry');
    expect(JSON.parse(own?.text ?? '')).toMatchObject({
      jobId: job.jobId,
      runMs: 1_234,
      hostname: 'box',
      width: WIDTH,
    });
    expect(await sharp(preview).metadata()).toMatchObject({ format: 'jpeg', width: WIDTH, height: HEIGHT });
    expect(await readdir(join(dir, 't'))).toHaveLength(2);
  });

  test.each<[ImageFormat, string]>([
    ['jpg', 'jpeg'],
    ['webp', 'webp'],
  ])('is encoded as %s where that was asked for', async (format, kind) => {
    const { facts, found, file } = await keep(png, { format });
    expect(found).toMatchObject({ format, sha256: shaOf(file), bytes: file.length });
    expect(facts).toMatchObject({ width: WIDTH, height: HEIGHT });
    expect(await sharp(file).metadata()).toMatchObject({ format: kind, width: WIDTH, height: HEIGHT });
    expect(await readdir(join(dir, 't'))).toHaveLength(2);
  });

  test('as a JPEG, as some versions answer whatever was asked for, becomes a PNG with its text', async () => {
    const jpeg = await sharp(png).jpeg().toBuffer();
    const { file, facts } = await keep(jpeg);
    expect(facts.sha256).toBe(shaOf(file));
    expect(await rawOf(file)).toEqual(await rawOf(jpeg));
    expect(readTextChunks(file).map(({ keyword }) => keyword)).toEqual(['parameters', 'gantry']);
  });

  test('has a preview of at most 1024 pixels', async () => {
    const large = await sharp({ create: { width: 2_048, height: 1_000, channels: 4, background: '#3366cc80' } })
      .png()
      .toBuffer();
    expect(await sharp((await keep(large)).preview).metadata()).toMatchObject({ width: 1_024, height: 500 });
  });

  test('again, after one that broke off, is kept alone', async () => {
    await using picture = await store.incoming('t', { format: 'png', textOf: () => [] });
    picture.begin(1);
    await picture.write(png.subarray(0, 500));
    picture.begin(2);
    await picture.write(png);
    const { bytes } = await store.keep('t', randomUUID(), 1, picture);
    expect(bytes).toBe(png.length);
    expect(await readdir(join(dir, 't'))).toHaveLength(2);
  });

  test('and is not wanted any more leaves nothing, also of what comes later', async () => {
    const picture = await store.incoming('t', { format: 'png', textOf: () => [] });
    picture.begin(1);
    await picture.write(png.subarray(0, 500));
    await picture[Symbol.asyncDispose]();
    picture.begin(1);
    await picture.write(png);
    expect(await readdir(join(dir, 't'))).toEqual([]);
  });
});

describe('what is no whole picture is RESULT_INVALID, and leaves nothing', () => {
  async function refused(answer: Buffer, format: ImageFormat = 'png'): Promise<void> {
    await expect(keep(answer, { format, piece: 10_000 })).rejects.toMatchObject({ code: 'RESULT_INVALID' });
    expect(store.failure).toBeUndefined();
    expect(await readdir(join(dir, 't'))).toEqual([]);
  }

  test('cut anywhere', { timeout: 120_000 }, async () => {
    const step = Math.ceil(png.length / 40);
    const cuts = [0, 1, 8, 32, 33, 34, ...Array.from({ length: 39 }, (_, n) => (n + 1) * step)];
    for (const length of [...cuts, png.length - 13, png.length - 12, png.length - 1])
      await refused(png.subarray(0, length));
  });

  test('a byte that is not what was sent, anywhere in the picture', { timeout: 120_000 }, async () => {
    const step = Math.ceil(png.length / 60);
    for (let at = 3; at < png.length; at += step) {
      const bytes = Buffer.from(png);
      bytes[at] = (bytes[at] ?? 0) ^ (1 << (at % 8));
      await refused(bytes);
    }
  });

  test.each<[string, () => Buffer]>([
    ['whose last row is missing', () => pngOf(deflateSync(filtered().subarray(0, -1 - WIDTH * 3)))],
    ['whose last byte is missing', () => pngOf(deflateSync(filtered().subarray(0, -1)))],
    ['whose compressed data end early', () => pngOf(deflateSync(filtered()).subarray(0, -400))],
    ['whose compressed data are of another picture', () => pngOf(deflateSync(Buffer.alloc(100)))],
    ['whose compressed data are none', () => pngOf(Buffer.alloc(5_000, 'garbage '))],
    ['that goes on after its end', () => Buffer.concat([png, Buffer.alloc(20)])],
    ['of more pixels than there is memory', () => pngOf(deflateSync(filtered()), { width: 60_000, height: 60_000 })],
  ])('a PNG of correct checksums %s', async (_, make) => {
    await refused(make());
  });

  test.each<[string, () => Buffer]>([
    ['text', () => Buffer.from('not an image '.repeat(5_000))],
    ['a GIF', () => Buffer.from('GIF89a\x01\x00\x01\x00\x00\x00\x00,', 'latin1')],
    ['nothing', () => Buffer.alloc(0)],
  ])('%s', async (_, make) => {
    await refused(make());
    await refused(make(), 'jpg');
  });

  test('half a JPEG', async () => {
    const jpeg = await sharp(png).jpeg().toBuffer();
    await refused(jpeg.subarray(0, Math.floor(jpeg.length * 0.6)));
  });
});

describe('another size than asked for', () => {
  const made = { width: 64, height: 48 };
  test.each<[string, object, string[]]>([
    ['is said', { width: 128, height: 96 }, ['The engine made 64x48 instead of the 128x96 asked for.']],
    ['is none where it is the same', made, []],
    ['is none where none was asked for', { width: undefined, height: undefined }, []],
  ])('%s', (_, request, notes) => {
    expect(sizeNotes(jobOf(request), made)).toEqual(notes);
  });
});

test('what a dead agent left of a picture that came is swept at the next start', async () => {
  await keep(png);
  for (const name of ['a.part', 'b.preview.part', 'c.encoded.part']) await writeFile(join(dir, 't', name), 'half');
  await ResultStore.open({ dir, quotaBytes: 1e9, keptMs: 1e9, pictures, log });
  expect(await readdir(join(dir, 't'))).toHaveLength(2);
});

function shaOf(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** The pixels with a filter byte of zero before each row, as they are inside IDAT. */
function filtered(): Buffer {
  const rows = Array.from({ length: HEIGHT }, (_, y) => [
    Buffer.alloc(1),
    pixels.subarray(y * WIDTH * 3, (y + 1) * WIDTH * 3),
  ]);
  return Buffer.concat(rows.flat());
}

/** A PNG around any data, every checksum right. */
function pngOf(data: Buffer, { width, height } = { width: WIDTH, height: HEIGHT }): Buffer {
  const head = Buffer.alloc(13);
  head.writeUInt32BE(width, 0);
  head.writeUInt32BE(height, 4);
  head.set([8, 2, 0, 0, 0], 8);
  const signature = Buffer.from('89504e470d0a1a0a', 'hex');
  return Buffer.concat([signature, chunk('IHDR', head), chunk('IDAT', data), chunk('IEND', Buffer.alloc(0))]);
}

function chunk(type: string, body: Buffer): Buffer {
  const bytes = Buffer.concat([Buffer.alloc(4), Buffer.from(type, 'latin1'), body, Buffer.alloc(4)]);
  bytes.writeUInt32BE(body.length, 0);
  bytes.writeUInt32BE(crc32(bytes.subarray(4, -4)), bytes.length - 4);
  return bytes;
}
