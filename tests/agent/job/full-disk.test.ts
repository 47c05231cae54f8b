import { execFileSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { DiskWatch } from '../../../agent/job/disk-watch.ts';
import { Journal } from '../../../agent/job/journal.ts';
import { PictureProcess } from '../../../agent/job/picture-process.ts';
import { ResultStore } from '../../../agent/job/result-store.ts';
import { jobOf, log } from './exchange-host.ts';

const pictures = new PictureProcess(); // none is started: nothing is decoded here
let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-full-'));
});
afterEach(async () => await rm(dir, { recursive: true, force: true }));

describe.skipIf(!canLimit())('a disk that is full', () => {
  test('takes part of a line: nothing is accepted that is not there whole, and the journal goes on afterwards', async () => {
    const [first, refused, next] = [jobOf(), jobOf(), jobOf()];
    {
      await using journal = await Journal.open({ dir, log });
      await journal.taken('t', first);
      const { size } = await stat(join(dir, 'journal.jsonl'));
      using full = limitFileSize(size + 50);
      await expect(journal.taken('t', refused)).rejects.toMatchObject({ code: 'DISK_FULL' });
      expect(journal.failure).toMatchObject({ code: 'DISK_FULL' });
      expect(journal.find('t', refused.jobId, 1)).toBeUndefined();
      await journal.probe();
      expect(journal.failure).toBeDefined();
      full[Symbol.dispose]();
      await journal.probe();
      expect(journal.failure).toBeUndefined();
      await journal.taken('t', next);
    }
    await using journal = await Journal.open({ dir, log });
    expect(journal.all().map(({ job }) => job.jobId)).toEqual([first.jobId, next.jobId]);
    expect(journal.warnings).toEqual([]);
  });

  test('does not keep the journal from being opened: it says so, and takes lines once there is room', async () => {
    const [taken, next] = [jobOf(), jobOf()];
    {
      await using journal = await Journal.open({ dir, log });
      await journal.taken('t', taken);
    }
    const before = await readFile(join(dir, 'journal.jsonl'));
    using full = limitFileSize(20);
    await using journal = await Journal.open({ dir, log });
    expect(journal.failure).toMatchObject({ code: 'DISK_FULL' });
    expect(journal.find('t', taken.jobId, 1)?.end).toMatchObject({ error: { code: 'INTERRUPTED' } });
    expect(await readFile(join(dir, 'journal.jsonl'))).toEqual(before);
    full[Symbol.dispose]();
    await journal.taken('t', next);
    expect(journal.failure).toBeUndefined();
    await using again = await Journal.open({ dir, log });
    expect(again.all().map(({ job }) => job.jobId)).toEqual([taken.jobId, next.jobId]);
  });

  test('is known to the result store until as much as was refused can be written', async () => {
    const store = await ResultStore.open({ dir, quotaBytes: 1e9, keptMs: 1e9, pictures, log });
    const image = Buffer.concat([Buffer.from('\x89PNG', 'latin1'), Buffer.alloc(50_000)]);
    using full = limitFileSize(10_000);
    await expect(store.put('t', randomUUID(), 1, image, Buffer.alloc(10))).rejects.toMatchObject({ code: 'DISK_FULL' });
    expect(store.failure).toMatchObject({ code: 'DISK_FULL' });
    await store.probe();
    expect(store.failure).toMatchObject({ code: 'DISK_FULL' });
    full[Symbol.dispose]();
    await store.probe();
    expect(store.failure).toBeUndefined();
    await store.put('t', randomUUID(), 1, image, Buffer.alloc(10));
  });

  test('is tried again at its own pace, however often somebody asks why there are no grants', async () => {
    const store = await ResultStore.open({ dir, quotaBytes: 1e9, keptMs: 1e9, pictures, log });
    let writable = 0;
    await using watch = new DiskWatch({ stores: [store], everyMs: 100, onWritable: () => (writable += 1) });
    const image = Buffer.concat([Buffer.from('\x89PNG', 'latin1'), Buffer.alloc(50_000)]);
    {
      using _full = limitFileSize(10_000);
      await expect(store.put('t', randomUUID(), 1, image, Buffer.alloc(10))).rejects.toThrow();
      expect(watch.failure).toMatchObject({ code: 'DISK_FULL' });
    }
    await expect.poll(() => watch.failure, { interval: 20 }).toBeUndefined();
    await expect.poll(() => writable).toBe(1);
  });
});

/** Files of this process cannot grow beyond this: like a disk that is full, down to the part that is still written. */
function limitFileSize(bytes: number | 'unlimited'): Disposable {
  execFileSync('prlimit', ['--pid', String(process.pid), `--fsize=${bytes}:`]);
  return { [Symbol.dispose]: () => void (bytes === 'unlimited' || limitFileSize('unlimited')) };
}

function canLimit(): boolean {
  try {
    limitFileSize('unlimited');
    return true;
  } catch {
    return false; // not Linux, or without util-linux
  }
}
