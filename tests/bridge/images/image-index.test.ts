import { appendFile, mkdtemp, readdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { removeOldBatches } from '../../../bridge/fleet/old-batches.ts';
import type { ImageEntry } from '../../../bridge/images/image-entry.ts';
import { ImageIndex } from '../../../bridge/images/image-index.ts';
import { ImageLog } from '../../../bridge/images/image-log.ts';
import { toCheckedLine } from '../../../shared/checked-line.ts';
import { END, entry, savedLine, writeBatch } from './builders.ts';

let stateDir: string;
beforeEach(async () => {
  stateDir = await mkdtemp(join(tmpdir(), 'gantry-index-'));
});
afterEach(() => rm(stateDir, { recursive: true, force: true }));

const inLog = () => join(stateDir, 'images', 'images.jsonl');

async function all(log: ImageLog): Promise<{ entries: ImageEntry[]; damaged: number }> {
  const reading = { damaged: 0 };
  const entries: ImageEntry[] = [];
  for await (const one of log.newestFirst(reading)) entries.push(one);
  return { entries, damaged: reading.damaged };
}

describe('the index', () => {
  test('knows nothing where nothing was made, and makes nothing', async () => {
    const index = new ImageIndex(stateDir);
    expect(await index.recent({ limit: 5 })).toEqual({ entries: [], hasMore: false, damagedLines: 0 });
    expect(await index.find('8e0d0d33-3d3c-4f9f-a2ad-6d2c8ffb44f2')).toBeUndefined();
    expect(await index.find('not an id "\\')).toBeUndefined();
    expect(await readdir(stateDir)).toEqual([]);
  });

  test('follows a batch that is under way, and copies it when it is over', async () => {
    const [first, second] = [entry({ second: 1 }), entry({ second: 2 })];
    const { manifest } = await writeBatch(stateDir, [first], { isEnded: false, more: 1 });
    const index = new ImageIndex(stateDir);
    expect((await index.recent({ limit: 5 })).entries).toEqual([first]);
    await expect(readFile(inLog())).rejects.toThrow(/ENOENT/);
    const job = {
      type: 'job',
      jobId: second.id,
      index: 1,
      request: second.request,
      inputFiles: [],
      directory: '/',
      name: null,
    };
    const line = toCheckedLine(savedLine({ ...second, batchId: first.batchId }));
    await appendFile(manifest, `${toCheckedLine(job)}${line.slice(0, 40)}`);
    expect((await index.recent({ limit: 5 })).entries).toEqual([first]); // half a line is none
    await appendFile(manifest, `${line.slice(40)}${toCheckedLine(END)}`);
    const both = [{ ...second, batchId: first.batchId }, first];
    expect((await index.recent({ limit: 5 })).entries).toEqual(both);
    await rm(join(stateDir, 'batches'), { recursive: true });
    expect((await index.recent({ limit: 5 })).entries).toEqual(both);
    expect(await new ImageIndex(stateDir).find(second.id)).toEqual(both[0]);
  });

  test('an ended batch is read once, whoever asks', async () => {
    const made = entry();
    const { batchId } = await writeBatch(stateDir, [made]);
    await new ImageIndex(stateDir).recent({ limit: 1 });
    const size = (await readFile(inLog())).length;
    expect(await readdir(join(stateDir, 'batches', batchId))).toContain('images-kept');
    expect(await new ImageIndex(stateDir).find(made.id)).toEqual(made);
    expect((await readFile(inLog())).length).toBe(size);
  });

  test('a crash between the copy and its marker shows no image twice', async () => {
    const made = entry();
    const { batchId } = await writeBatch(stateDir, [made]);
    await new ImageIndex(stateDir).recent({ limit: 1 });
    await rm(join(stateDir, 'batches', batchId, 'images-kept'));
    expect((await new ImageIndex(stateDir).recent({ limit: 5 })).entries).toEqual([made]);
  });

  test('what is about to be removed is on the disk first', async () => {
    const made = entry();
    const { batchId } = await writeBatch(stateDir, [made]);
    await new ImageIndex(stateDir).keep(batchId);
    await rm(join(stateDir, 'batches'), { recursive: true });
    expect(await new ImageIndex(stateDir).find(made.id)).toEqual(made);
  });

  test('who only lists what there is writes nothing', async () => {
    const made = entry();
    const { batchId } = await writeBatch(stateDir, [made]);
    const index = new ImageIndex(stateDir);
    expect((await index.recent({ limit: 5, isQuiet: true })).entries).toEqual([made]);
    expect(await readdir(stateDir)).toEqual(['batches']);
    expect(await readdir(join(stateDir, 'batches', batchId))).toEqual(['manifest.jsonl']);
    expect((await index.recent({ limit: 5 })).entries).toEqual([made]);
    expect((await readdir(stateDir)).sort()).toEqual(['batches', 'images']);
  });

  test('a batch goes only when its images are kept', async () => {
    const made = entry();
    const { batchId } = await writeBatch(stateDir, [made]);
    const root = join(stateDir, 'batches');
    const sweep = (onRemoving: (id: string) => Promise<void>) =>
      removeOldBatches(root, { nowMs: Date.now(), keep: 0, onRemoving });
    await expect(sweep(() => Promise.reject(new Error('disk full')))).rejects.toThrow('disk full');
    expect(await readdir(root)).toEqual([batchId]);
    await sweep((id) => new ImageIndex(stateDir).keep(id));
    expect(await readdir(root)).toEqual([]);
    expect(await new ImageIndex(stateDir).find(made.id)).toEqual(made);
  });

  test('what cannot be copied is shown all the same, and copied later', async () => {
    const made = entry();
    await writeBatch(stateDir, [made]);
    await writeFile(join(stateDir, 'images'), 'no directory');
    const index = new ImageIndex(stateDir);
    expect((await index.recent({ limit: 5 })).entries).toEqual([made]);
    await rm(join(stateDir, 'images'));
    expect(await index.find(made.id)).toEqual(made);
    await rm(join(stateDir, 'batches'), { recursive: true });
    expect(await index.find(made.id)).toEqual(made);
  });

  test('where the marker cannot be written the images are not copied again at each look', async () => {
    const made = entry();
    const { batchId } = await writeBatch(stateDir, [made]);
    await symlink('nowhere/at/all', join(stateDir, 'batches', batchId, 'images-kept')); // also root cannot write through it
    const index = new ImageIndex(stateDir);
    await index.recent({ limit: 5 });
    const size = (await readFile(inLog())).length;
    expect((await index.recent({ limit: 5 })).entries).toEqual([made]);
    expect((await index.find(made.id))?.id).toBe(made.id);
    expect((await readFile(inLog())).length).toBe(size);
  });

  test('a manifest that was made whole again is read from its start', async () => {
    const [kept, lost] = [entry({ second: 1 }), entry({ second: 2 })];
    const { manifest } = await writeBatch(stateDir, [kept], { isEnded: false, more: 1 });
    const index = new ImageIndex(stateDir);
    await index.recent({ limit: 5 });
    await rename(manifest, `${manifest}.old`); // it keeps its inode, as the file that was repaired does until then
    await writeBatch(stateDir, [kept, { ...lost, batchId: kept.batchId }], { isEnded: false });
    expect((await index.recent({ limit: 5 })).entries).toHaveLength(2);
  });

  test('finds by bytes, rather the one at the same path', async () => {
    const sha256 = 'a'.repeat(64);
    const [here, there] = [entry({ sha256, path: '/p/a.png' }), entry({ sha256, path: '/p/b.png' })];
    await writeBatch(stateDir, [here]);
    await writeBatch(stateDir, [there], { isEnded: false });
    const index = new ImageIndex(stateDir);
    expect((await index.findBytes(sha256, '/p/a.png'))?.id).toBe(here.id);
    expect((await index.findBytes(sha256, '/p/b.png'))?.id).toBe(there.id);
    expect(await index.findBytes(sha256, '/p/moved.png')).toBeDefined();
    expect(await index.findBytes('b'.repeat(64), '/p/a.png')).toBeUndefined();
  });

  test('says that there are more', async () => {
    const made = [1, 2, 3].map((second) => entry({ second }));
    for (const one of made) await writeBatch(stateDir, [one]);
    const index = new ImageIndex(stateDir);
    expect(await index.recent({ limit: 2 })).toMatchObject({ entries: [made[2], made[1]], hasMore: true });
    expect(await index.recent({ limit: 3 })).toMatchObject({ hasMore: false });
    expect(
      await index.recent({ limit: 3, matches: ({ createdAt }) => createdAt === made[0]?.createdAt }),
    ).toMatchObject({
      entries: [made[0]],
      hasMore: false,
    });
  });
});

describe('the log', () => {
  test('several writers at once lose nothing and tear nothing', async () => {
    const writers = Array.from({ length: 4 }, (_, writer) => ({
      log: new ImageLog(join(stateDir, 'images'), { fileBytes: 30_000 }),
      entries: Array.from({ length: 60 }, (_, index) => entry({ prompt: `${writer}-${index} ${'long '.repeat(50)}` })),
    }));
    await Promise.all(
      writers.map(async ({ log, entries }) => {
        for (let from = 0; from < entries.length; from += 7) await log.append(entries.slice(from, from + 7));
      }),
    );
    const { entries, damaged } = await all(new ImageLog(join(stateDir, 'images')));
    expect(damaged).toBe(0);
    expect(new Set(entries.map(({ id }) => id)).size).toBe(240);
    expect((await readdir(join(stateDir, 'images'))).length).toBeGreaterThan(1); // it was turned over on the way
  });

  test('a torn line costs only itself', async () => {
    const log = new ImageLog(join(stateDir, 'images'));
    const [first, second] = [entry(), entry()];
    await log.append([first]);
    await appendFile(inLog(), '{"id":"half a li');
    await log.append([second]);
    expect(await all(log)).toEqual({ entries: [second, first], damaged: 1 });
  });

  test.each([0, 0.3, 0.6, 0.99])('a flipped bit at %d of a line is seen', async (at) => {
    const log = new ImageLog(join(stateDir, 'images'));
    const [first, second] = [entry(), entry()];
    await log.append([first, second]);
    const bytes = await readFile(inLog());
    const place = 1 + Math.floor(at * (toCheckedLine(first).length - 2));
    bytes.writeUInt8(bytes.readUInt8(place) ^ 1, place);
    await writeFile(inLog(), bytes);
    expect(await all(log)).toEqual({ entries: [second], damaged: 1 });
  });

  test('all its files together stay within their limit; the oldest go', async () => {
    const log = new ImageLog(join(stateDir, 'images'), { fileBytes: 4_000, totalBytes: 12_000 });
    const made = Array.from({ length: 60 }, (_, second) => entry({ second }));
    for (const one of made) await log.append([one]);
    const { entries } = await all(log);
    expect(entries.length).toBeLessThan(60);
    expect(entries).toEqual(made.slice(60 - entries.length).reverse());
  });

  test('an id is found in any of its files, and only as an id', async () => {
    const log = new ImageLog(join(stateDir, 'images'), { fileBytes: 1 });
    const [wanted, other] = [entry(), entry({ prompt: 'x' })];
    await log.append([wanted]);
    await log.append([{ ...other, request: { ...other.request, prompt: `"id":"${wanted.id}"` } }]);
    const found: string[] = [];
    for await (const { id } of log.containing(`"id":"${wanted.id}"`, ({ id }) => id === wanted.id)) found.push(id);
    expect(found).toEqual([wanted.id]);
  });
});
