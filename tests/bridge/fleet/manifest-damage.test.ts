import fc from 'fast-check';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { BatchIndex } from '../../../bridge/fleet/batch-index.ts';
import { manifestView } from '../../../bridge/fleet/batch-view.ts';
import type { ManifestLine } from '../../../bridge/fleet/manifest-lines.ts';
import { ManifestState, readLines } from '../../../bridge/fleet/manifest-lines.ts';
import { Manifest } from '../../../bridge/fleet/manifest.ts';
import { toCheckedLine } from '../../../shared/checked-line.ts';
import { request } from './builders.ts';

const batchId = '22222222-2222-4222-8222-222222222222';
const JOBS = 4;
const result = {
  ...{ sha256: 'a'.repeat(64), bytes: 1, width: 16, height: 16, format: 'png' as const, runMs: 1, gpu: 'g' },
  notes: [],
};
const error = { code: 'ENGINE_FAILED', message: 'no', retryable: true };

/** One job done, one being saved, one failed once and running again, one waiting. */
const LINES: ManifestLine[] = [
  {
    ...{ type: 'batch', version: 1, batchId, kind: 'generate', class: 'batch', order: 'longest-first' },
    ...{ maxConcurrent: null, host: null, client: 'test', createdAt: '2026-11-20T12:00:00.000Z', total: JOBS },
  },
  ...Array.from({ length: JOBS }, (_, index): ManifestLine => ({
    ...{ type: 'job', jobId: idOf(index), index, request: request({ prompt: `picture ${index}` }) },
    ...{ inputFiles: [], directory: '/out', name: null },
  })),
  { type: 'sent', ...at(0), sentInMs: 5, routing: 'why' },
  { type: 'saving', ...at(0), name: 'x.png', sha256: result.sha256, result },
  { type: 'saved', ...at(0), path: '/out/x.png', previewPath: null, result, endedInMs: 9 },
  { type: 'sent', ...at(1), sentInMs: 5, routing: 'why' },
  { type: 'saving', ...at(1), name: 'y.png', sha256: result.sha256, result },
  { type: 'sent', ...at(2), sentInMs: 5, routing: 'why' },
  { type: 'attempt-failed', ...at(2), error, serverDied: false },
  { type: 'sent', ...at(2), attempt: 2, sentInMs: 6, routing: 'why' },
  { type: 'phase', ...at(2), attempt: 2, phase: 'running' },
];
const TEXTS = LINES.map(toCheckedLine);
const WHOLE = Buffer.from(TEXTS.join(''));
/** The first byte of each line, and of what would come next. */
const STARTS = TEXTS.reduce<number[]>((starts, text) => [...starts, (starts.at(-1) ?? 0) + text.length], [0]);

describe('a manifest after a power cut or with bad bytes', () => {
  test('cut at any byte it is what was written before, and no damage', () => {
    for (let bytes = 0; bytes <= WHOLE.length; bytes += 1) {
      const { lines, damaged } = readLines(WHOLE.subarray(0, bytes).toString('utf8'));
      expect(damaged).toBe(0);
      expect(lines).toEqual(LINES.slice(0, STARTS.filter((start) => start <= bytes).length - 1));
    }
  });

  test('whatever bytes are flipped: every job whose lines are whole keeps its state, and none has a wrong one', async () => {
    await using directory = await temporary();
    const flips = fc.array(fc.tuple(fc.nat(WHOLE.length - 1), fc.integer({ min: 1, max: 255 })), {
      minLength: 1,
      maxLength: 4,
    });
    await fc.assert(
      fc.asyncProperty(flips, async (all) => {
        const bytes = Buffer.from(WHOLE);
        for (const [place, by] of all) bytes[place] = (bytes[place] ?? 0) ^ by;
        await writeFile(directory.file, bytes);
        const resumed = await Manifest.resume(directory.file, { batchId });
        await resumed?.manifest[Symbol.asyncDispose]();
        if (resumed === undefined) {
          expect(touchedJobs(bytes)).toHaveLength(JOBS); // not one job is left to go on with
          return;
        }
        expectUnharmed(bytes, resumed.lines);
        // What was written instead is whole, and says the same.
        const again = readLines(await readFile(directory.file, 'utf8'));
        expect(again).toMatchObject({ damaged: 0, lines: resumed.lines });
      }),
      { numRuns: 300 },
    );
  });

  test('a job whose line is lost is told as failed, a file it has counts, and the batch is seen', async () => {
    await using directory = await temporary();
    // The lines of the first two jobs: one is saved, the other one was about to be.
    await writeFile(directory.file, damaged([1, 2]));
    const index = new BatchIndex(directory.path);
    expect(index.unfinished(), 'whoever gets the lock mends it').toEqual([batchId]);
    const resumed = await Manifest.resume(directory.file, { batchId });
    await resumed?.manifest[Symbol.asyncDispose]();
    const state = replayed(resumed?.lines ?? []);
    expect(state.isWhole).toBe(true);
    expect(state.jobs.map(({ state: { kind } }) => kind).sort()).toEqual(['done', 'failed', 'running', 'waiting']);
    expect(state.job(idOf(0))?.state).toMatchObject({ kind: 'done', path: '/out/x.png' });
    const view = index.find(batchId)?.state;
    expect(view && manifestView(view)?.notes.join()).toMatch(/2 lines .* of 2 images .*corrupt-/i);
    expect(await readFile(String((await keptFiles(directory.path))[0]))).toEqual(damaged([1, 2]));
  });

  test('without its header the batch goes on', async () => {
    await using directory = await temporary();
    await writeFile(directory.file, damaged([0]));
    const resumed = await Manifest.resume(directory.file, { batchId });
    await resumed?.manifest[Symbol.asyncDispose]();
    expect(replayed(resumed?.lines ?? []).header).toMatchObject({ batchId, kind: 'generate', total: JOBS });
  });

  test('an end is not believed where what a job came to is lost', async () => {
    await using directory = await temporary();
    const ended: ManifestLine = { type: 'ended', state: 'success', elapsedMs: 9, quality: null };
    const cancelled = [1, 2, 3].map((n): ManifestLine => ({ type: 'cancelled', jobId: idOf(n), endedInMs: 9 }));
    const saved = LINES.findIndex(({ type }) => type === 'saved');
    const text = Buffer.concat([damaged([saved]), Buffer.from([...cancelled, ended].map(toCheckedLine).join(''))]);
    await writeFile(directory.file, text);
    const resumed = await Manifest.resume(directory.file, { batchId });
    await resumed?.manifest[Symbol.asyncDispose]();
    const state = replayed(resumed?.lines ?? []);
    expect(state.ended).toBeUndefined();
    expect(state.job(idOf(0))?.state.kind).toBe('saving');
  });

  test.each([
    ['garbage', Buffer.from('\u0000\u0001\u00ff garbage\n{"type":1}\n\n')],
    ['zeros', Buffer.concat([Buffer.alloc(512), Buffer.from('\n')])],
  ])('nothing but %s is moved aside', async (_, bytes) => {
    await using directory = await temporary();
    await writeFile(directory.file, bytes);
    expect(new BatchIndex(directory.path).unfinished()).toEqual([batchId]);
    expect(await Manifest.resume(directory.file, { batchId })).toBeUndefined();
    expect(await keptFiles(directory.path)).toHaveLength(1);
    expect(new BatchIndex(directory.path).unfinished()).toEqual([]);
  });

  test('an empty one is a call that was never answered', async () => {
    await using directory = await temporary();
    await writeFile(directory.file, '');
    expect(new BatchIndex(directory.path).unfinished()).toEqual([]);
  });
});

/** Every job of which no line was touched is as it was; of the others none is what it never was. */
function expectUnharmed(bytes: Buffer, lines: readonly ManifestLine[]): void {
  const [before, now] = [replayed(LINES), replayed(lines)];
  const touched = touchedJobs(bytes);
  for (const { jobId, state, request: asked } of before.jobs) {
    if (touched.includes(jobId)) continue;
    expect(now.job(jobId)?.state).toEqual(state);
    expect(now.job(jobId)?.request).toEqual(asked);
  }
  if (!isTouched(bytes, 0)) expect(now.jobs).toHaveLength(JOBS); // else nobody knows how many there were
  // Only what was true once: a job that was never failed or cancelled is so only where its own line is lost.
  for (const { jobId, state } of now.jobs) {
    if (state.kind === 'done') expect(jobId).toBe(idOf(0));
    expect(state.kind).not.toBe('cancelled');
  }
}

/** Jobs of which a line is not as it was, or does not begin where it did. */
function touchedJobs(bytes: Buffer): string[] {
  const changed = LINES.filter((_, n) => isTouched(bytes, n) || (n > 0 && bytes[(STARTS[n] ?? 0) - 1] !== 10));
  return [...new Set(changed.flatMap((line) => ('jobId' in line ? [line.jobId] : [])))];
}

function isTouched(bytes: Buffer, n: number): boolean {
  return !bytes.subarray(STARTS[n], STARTS[n + 1]).equals(WHOLE.subarray(STARTS[n], STARTS[n + 1]));
}

/** With one bit flipped in each of these lines. */
function damaged(lines: readonly number[]): Buffer {
  const bytes = Buffer.from(WHOLE);
  for (const n of lines) bytes[(STARTS[n] ?? 0) + 30] = (bytes[(STARTS[n] ?? 0) + 30] ?? 0) ^ 1;
  return bytes;
}

function replayed(lines: readonly ManifestLine[]): ManifestState {
  const state = new ManifestState();
  for (const line of lines) state.apply(line);
  return state;
}

function idOf(index: number): string {
  return `11111111-1111-4111-8111-00000000000${index}`;
}

function at(index: number) {
  return { jobId: idOf(index), host: 'a', attempt: 1 };
}

async function keptFiles(root: string): Promise<string[]> {
  const names = await readdir(join(root, batchId));
  return names.filter((name) => name.includes('.corrupt-')).map((name) => join(root, batchId, name));
}

async function temporary(): Promise<{ path: string; file: string } & AsyncDisposable> {
  const path = await mkdtemp(join(tmpdir(), 'gantry-damage-'));
  await mkdir(join(path, batchId));
  const file = join(path, batchId, 'manifest.jsonl');
  return { path, file, [Symbol.asyncDispose]: () => rm(path, { recursive: true }) };
}
