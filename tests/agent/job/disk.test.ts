import { createHash, randomUUID } from 'node:crypto';
import { appendFile, mkdtemp, readFile, readdir, rm, truncate, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pino } from 'pino';
import sharp from 'sharp';
import { afterAll, afterEach, describe, expect, test } from 'vitest';
import { InputStore } from '../../../agent/job/input-store.ts';
import { Journal } from '../../../agent/job/journal.ts';
import { PictureProcess } from '../../../agent/job/picture-process.ts';
import { ResultStore } from '../../../agent/job/result-store.ts';
import type { JobResult } from '../../../shared/job.ts';
import { Job, MAX_ATTEMPT } from '../../../shared/job.ts';
import { job } from './job.ts';

const log = pino({ level: 'silent' });
const dirs: string[] = [];
const pictures = new PictureProcess();
afterAll(() => pictures[Symbol.asyncDispose]());

async function tempDir(): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'gantry-job-'));
  dirs.push(dir);
  return dir;
}

afterEach(async () => {
  await Promise.all(dirs.splice(0).map((dir) => rm(dir, { recursive: true, force: true })));
});

const RESULT: JobResult = {
  sha256: 'a'.repeat(64),
  bytes: 10,
  width: 64,
  height: 64,
  format: 'png',
  runMs: 5,
  gpu: 'Simulated GPU',
  notes: [],
};

describe('the journal', () => {
  test('remembers every end and acknowledgement over a restart', async () => {
    const dir = await tempDir();
    const [done, failed, cancelled, acked] = [job(), job(), job(), job()];
    const error = { code: 'ENGINE_FAILED', message: 'no', retryable: true };
    {
      await using journal = await Journal.open({ dir, log });
      for (const each of [done, failed, cancelled, acked]) await journal.taken('t', each);
      await journal.ended('t', done, { state: 'done', result: RESULT });
      await journal.ended('t', failed, { state: 'failed', error });
      await journal.ended('t', cancelled, { state: 'cancelled' });
      await journal.ended('t', acked, { state: 'done', result: RESULT });
      await journal.acked('t', acked);
    }
    await using journal = await Journal.open({ dir, log });
    expect(journal.find('t', done.jobId, 1)).toMatchObject({ job: done, end: { state: 'done', result: RESULT } });
    expect(journal.find('t', failed.jobId, 1)?.end).toMatchObject({ state: 'failed', error });
    expect(journal.find('t', cancelled.jobId, 1)?.end).toMatchObject({ state: 'cancelled' });
    expect(journal.find('t', acked.jobId, 1)?.isAcked).toBe(true);
    expect(journal.find('other', done.jobId, 1)).toBeUndefined();
  });

  test('an attempt without an end was interrupted, and that is on disk before open returns', async () => {
    const dir = await tempDir();
    const taken = job();
    {
      await using journal = await Journal.open({ dir, log });
      await journal.taken('t', taken);
    }
    await using journal = await Journal.open({ dir, log });
    const end = { state: 'failed', error: { code: 'INTERRUPTED', retryable: true } };
    expect(journal.find('t', taken.jobId, 1)?.end).toMatchObject(end);
    expect(await readFile(join(dir, 'journal.jsonl'), 'utf8')).toContain('INTERRUPTED');
  });

  test('half a last line, as a power cut leaves it, is ignored', async () => {
    const dir = await tempDir();
    const [first, second] = [job(), job()];
    {
      await using journal = await Journal.open({ dir, log });
      await journal.taken('t', first);
      await journal.taken('t', second);
    }
    const path = join(dir, 'journal.jsonl');
    await truncate(path, (await readFile(path)).length - 20);
    await using journal = await Journal.open({ dir, log });
    expect(journal.all().map((each) => each.job.jobId)).toEqual([first.jobId]);
    expect(journal.warnings).toEqual([]);
  });

  test('a last line of which only the end is missing counts', async () => {
    const dir = await tempDir();
    const [first, second] = [job(), job()];
    {
      await using journal = await Journal.open({ dir, log });
      await journal.taken('t', first);
      await journal.taken('t', second);
    }
    const path = join(dir, 'journal.jsonl');
    await truncate(path, (await readFile(path)).length - 1);
    await using journal = await Journal.open({ dir, log });
    expect(journal.all()).toHaveLength(2);
  });

  test('flipped bits anywhere never keep it from being opened, and what is readable is used', async () => {
    const dir = await tempDir();
    const jobs = Array.from({ length: 8 }, () => job());
    {
      await using journal = await Journal.open({ dir, log });
      for (const each of jobs) await journal.taken('t', each);
      for (const each of jobs) await journal.ended('t', each, { state: 'done', result: RESULT });
    }
    const path = join(dir, 'journal.jsonl');
    const good = await readFile(path);
    for (let at = 3; at < good.length; at += 97) {
      const bytes = Buffer.from(good);
      bytes[at] = (bytes[at] ?? 0) ^ (1 << (at % 8));
      await writeFile(path, bytes);
      await using journal = await Journal.open({ dir, log });
      expect(journal.all().length).toBeGreaterThanOrEqual(6); // two lines where a line end was hit
      expect(journal.all().every(({ end }) => end !== undefined)).toBe(true);
    }
  });

  test('a broken line in the middle: the rest is used, and the file is kept', async () => {
    const dir = await tempDir();
    const [first, second] = [job(), job()];
    {
      await using journal = await Journal.open({ dir, log });
      await journal.taken('t', first);
    }
    await appendFile(join(dir, 'journal.jsonl'), '{"event":"done","at":1,\n');
    const line = { event: 'taken', at: 1, tokenId: 't', jobId: second.jobId, attempt: 1, job: second };
    await appendFile(join(dir, 'journal.jsonl'), `${JSON.stringify(line)}\n`);
    await using journal = await Journal.open({ dir, log });
    expect(journal.all()).toHaveLength(2);
    expect(journal.warnings[0]).toMatch(/1 lines of the journal could not be read/);
    expect((await readdir(dir)).some((name) => /^journal\.jsonl\.corrupt-\d+$/.test(name))).toBe(true);
  });

  test('what ended 72 hours ago is dropped', async () => {
    const dir = await tempDir();
    const old = job();
    {
      await using journal = await Journal.open({ dir, log });
      await journal.taken('t', old);
      await journal.ended('t', old, { state: 'cancelled' });
    }
    await using journal = await Journal.open({ dir, log, keptMs: -1 });
    expect(journal.all()).toEqual([]);
  });

  test('of what was acknowledged only the newest is kept, and all that was not', async () => {
    const dir = await tempDir();
    const jobs = Array.from({ length: 6 }, (_, at) => job(`prompt ${at}`));
    {
      await using journal = await Journal.open({ dir, log });
      for (const [at, each] of jobs.entries()) {
        await journal.taken('t', each);
        await journal.ended('t', each, { state: 'done', result: RESULT });
        if (at !== 1) await journal.acked('t', each);
      }
    }
    await using journal = await Journal.open({ dir, log, keptAcked: 2 });
    expect(journal.all().map((each) => each.job)).toEqual([jobs[1], jobs[4], jobs[5]]);
  });

  test('many lines at once all arrive, in their order', async () => {
    const dir = await tempDir();
    const jobs = Array.from({ length: 50 }, (_, at) => job(`prompt ${at}`));
    {
      await using journal = await Journal.open({ dir, log });
      await Promise.all(jobs.map((each) => journal.taken('t', each)));
      await journal.compact();
      await Promise.all(jobs.map((each) => journal.ended('t', each, { state: 'cancelled' })));
    }
    await using journal = await Journal.open({ dir, log });
    expect(journal.all().map((each) => each.job)).toEqual(jobs);
    expect(journal.all().every((each) => each.end?.state === 'cancelled')).toBe(true);
  });
});

async function png(width = 64, height = 64): Promise<Buffer> {
  return await sharp({ create: { width, height, channels: 3, background: '#3366cc' } })
    .png()
    .toBuffer();
}

describe('the result store', () => {
  async function open(dir: string, change: { quotaBytes?: number; keptMs?: number } = {}): Promise<ResultStore> {
    return await ResultStore.open({ dir, quotaBytes: 1e6, keptMs: 1e6, pictures, log, ...change });
  }

  test.each([9, 10, 99, 100, MAX_ATTEMPT])('attempt %d is as good as the first', async (attempt) => {
    const dir = await tempDir();
    const { jobId, ...rest } = job();
    expect(Job.parse({ jobId, ...rest, attempt }).attempt).toBe(attempt);
    const image = await png();
    await (await open(dir)).put('t', jobId, attempt - 1, image, image);
    await (await open(dir)).put('t', jobId, attempt, image, image);
    expect((await open(dir)).find('t', jobId)?.attempt).toBe(attempt);
  });

  test('finds the latest attempt again after a restart, under its token only', async () => {
    const dir = await tempDir();
    const jobId = randomUUID();
    const [first, second] = [await png(), await png(128, 64)];
    const store = await open(dir);
    await store.put('t', jobId, 1, first, first);
    await store.put('t', jobId, 2, second, first);
    const found = (await open(dir)).find('t', jobId);
    expect(found).toMatchObject({ attempt: 2, bytes: second.length, format: 'png' });
    expect(found?.sha256).toBe(createHash('sha256').update(second).digest('hex'));
    expect(await readFile(found?.path ?? '')).toEqual(second);
    expect(store.find('other', jobId)).toBeUndefined();
    expect(store.find('t', randomUUID())).toBeUndefined();
  });

  test('a deleted result leaves nothing behind', async () => {
    const dir = await tempDir();
    const store = await open(dir);
    const jobId = randomUUID();
    await store.put('t', jobId, 1, await png(), await png());
    await store.delete('t', jobId, 1);
    await store.delete('t', jobId, 1);
    expect(store.find('t', jobId)).toBeUndefined();
    expect(await readdir(join(dir, 't'))).toEqual([]);
  });

  test('half files of a process that died are swept at the start', async () => {
    const dir = await tempDir();
    const store = await open(dir);
    await store.put('t', randomUUID(), 1, await png(), await png());
    await writeFile(join(dir, 't', `${randomUUID()}.part`), 'half');
    await writeFile(join(dir, 't', `${randomUUID()}.1.preview.jpg`), 'its image was never written');
    await open(dir);
    expect(await readdir(join(dir, 't'))).toHaveLength(2);
  });

  test('the quota is per token', async () => {
    const store = await open(await tempDir(), { quotaBytes: 100 });
    await store.put('full', randomUUID(), 1, await png(), await png());
    expect([store.isFull('full'), store.isFull('other')]).toEqual([true, false]);
  });

  test('sweeps what is too old and what nobody wants', async () => {
    const dir = await tempDir();
    const store = await open(dir);
    const [kept, unwanted] = [randomUUID(), randomUUID()];
    await store.put('t', kept, 1, await png(), await png());
    await store.put('t', unwanted, 1, await png(), await png());
    await store.sweep((_token, jobId) => jobId === kept);
    expect([store.find('t', kept) !== undefined, store.find('t', unwanted)]).toEqual([true, undefined]);
    const old = await open(dir, { keptMs: -1 });
    await old.sweep(() => true);
    expect(old.find('t', kept)).toBeUndefined();
  });
});

describe('the input store', () => {
  const signal = new AbortController().signal;
  const limits = { maxBytes: 1e6, signal };

  function sha(bytes: Buffer): string {
    return createHash('sha256').update(bytes).digest('hex');
  }

  async function put(store: InputStore, bytes: Buffer, name = sha(bytes)): Promise<string> {
    await store.put('t', name, Readable.from([bytes.subarray(0, 10), bytes.subarray(10)]), limits);
    return name;
  }

  test('keeps the pixels and nothing else: upright, PNG, no metadata', async () => {
    const store = await InputStore.open({ dir: await tempDir(), quotaBytes: 1e9, pictures, log });
    const photo = await sharp({ create: { width: 60, height: 40, channels: 3, background: '#aa0000' } })
      .withMetadata({ orientation: 6 })
      .withExifMerge({ IFD0: { Copyright: 'somebody' } })
      .jpeg()
      .toBuffer();
    const kept = await store.read('t', await put(store, photo));
    const facts = await sharp(kept).metadata();
    expect(facts).toMatchObject({ format: 'png', width: 40, height: 60 });
    expect([facts.exif, facts.icc, facts.orientation]).toEqual([undefined, undefined, undefined]);
    expect(kept.includes('somebody')).toBe(false);
  });

  test('is found again after a restart, by its token only', async () => {
    const dir = await tempDir();
    const store = await InputStore.open({ dir, quotaBytes: 1e9, pictures, log });
    const name = await put(store, await png());
    await writeFile(join(dir, 't', `${name}.xyz.part`), 'half');
    const again = await InputStore.open({ dir, quotaBytes: 1e9, pictures, log });
    expect([again.has('t', name), again.has('other', name)]).toEqual([true, false]);
    await expect(again.read('other', name)).rejects.toMatchObject({ code: 'INPUT_MISSING' });
    expect(await readdir(join(dir, 't'))).toEqual([`${name}.png`]);
  });

  const heic = Buffer.concat([Buffer.from('\0\0\0\x18ftypheic\0\0\0\0mif1heic', 'latin1'), Buffer.alloc(64)]);
  const svg = Buffer.from('<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>');
  test.each([
    ['HEIC', async () => heic],
    ['SVG', async () => svg],
    ['SVG', async () => Buffer.from('<svg width="9" height="9"></svg>')],
    [
      'GIF',
      async () =>
        await sharp(await png())
          .gif()
          .toBuffer(),
    ],
    [
      'TIFF',
      async () =>
        await sharp(await png())
          .tiff()
          .toBuffer(),
    ],
    [
      'AVIF',
      async () =>
        await sharp(await png())
          .avif()
          .toBuffer(),
    ],
    ['of an unknown format', async () => Buffer.from('just some text that is no picture')],
  ])('refuses what is %s, by name', async (format, make) => {
    const dir = await tempDir();
    const store = await InputStore.open({ dir, quotaBytes: 1e9, pictures, log });
    const bytes = await make();
    const refused = { code: 'INPUT_INVALID', message: expect.stringContaining(`The input is ${format}`) as string };
    await expect(put(store, bytes)).rejects.toMatchObject(refused);
    expect(store.has('t', sha(bytes))).toBe(false);
    expect(await readdir(join(dir, 't'))).toEqual([]);
  });

  test('refuses a truncated picture, a bomb, a wrong hash and too many bytes', async () => {
    const dir = await tempDir();
    const store = await InputStore.open({ dir, quotaBytes: 1e9, pictures, log });
    const noise = await sharp({
      create: {
        width: 300,
        height: 300,
        channels: 3,
        background: '#000',
        noise: { type: 'gaussian', mean: 128, sigma: 60 },
      },
    })
      .png()
      .toBuffer();
    await expect(put(store, noise.subarray(0, 50_000))).rejects.toMatchObject({ code: 'INPUT_INVALID' });
    const bomb = await png(8_000, 6_300);
    const tooLarge = { code: 'INPUT_INVALID', message: expect.stringContaining('50 megapixels') as string };
    await expect(put(store, bomb)).rejects.toMatchObject(tooLarge);
    const wrong = { code: 'INPUT_INVALID', message: expect.stringContaining('SHA-256') as string };
    await expect(put(store, await png(), 'b'.repeat(64))).rejects.toMatchObject(wrong);
    const small = { maxBytes: 50, signal };
    await expect(store.put('t', 'c'.repeat(64), Readable.from([noise]), small)).rejects.toMatchObject({
      code: 'INPUT_INVALID',
    });
    expect(await readdir(join(dir, 't'))).toEqual([]);
  });

  test('no token has more than its share of the disk, also after a restart', async () => {
    const dir = await tempDir();
    await put(await InputStore.open({ dir, quotaBytes: 1e9, pictures, log }), await png());
    const store = await InputStore.open({ dir, quotaBytes: 10, pictures, log });
    await expect(put(store, await png(32, 32))).rejects.toMatchObject({ code: 'QUOTA_EXCEEDED' });
    const other = await png(16, 16);
    await store.put('other', sha(other), Readable.from([other]), limits);
    expect(store.has('other', sha(other))).toBe(true);
  });

  test('an upload that is ended leaves nothing', async () => {
    const dir = await tempDir();
    const store = await InputStore.open({ dir, quotaBytes: 1e9, pictures, log });
    const stop = new AbortController();
    const body = new Readable({ read: () => undefined });
    body.push(Buffer.alloc(100));
    const upload = store.put('t', 'd'.repeat(64), body, { maxBytes: 1e6, signal: stop.signal });
    const refused = expect(upload).rejects.toThrow();
    stop.abort();
    await refused;
    expect(await readdir(join(dir, 't'))).toEqual([]);
  });

  test('is deleted one hour after the last job that names it, not before', async () => {
    const dir = await tempDir();
    const name = await put(await InputStore.open({ dir, quotaBytes: 1e9, pictures, log }), await png());
    const longAgo = new Date(Date.now() - 3_700_000);
    await utimes(join(dir, 't', `${name}.png`), longAgo, longAgo);
    const store = await InputStore.open({ dir, quotaBytes: 1e9, pictures, log });
    const held = store.hold('t', [name]);
    await store.sweep();
    expect(store.has('t', name)).toBe(true);
    held[Symbol.dispose](); // the hour begins now
    await store.sweep();
    expect(store.has('t', name)).toBe(true);
    await (await InputStore.open({ dir, quotaBytes: 1e9, pictures, log })).sweep();
    expect(await readdir(join(dir, 't'))).toEqual([]);
  });
});
