import fc from 'fast-check';
import { randomUUID } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { expect, test } from 'vitest';
import { Journal } from '../../../agent/job/journal.ts';
import type { Attempt } from '../../../agent/job/journal-lines.ts';
import type { Job, JobResult } from '../../../shared/job.ts';

const log = pino({ level: 'silent' });
const RESULT: JobResult = {
  ...{ sha256: 'a'.repeat(64), bytes: 10, width: 64, height: 64, format: 'png' as const, runMs: 5, gpu: 'g' },
  notes: [],
};

test('cut at any byte: every line that is whole counts, and none is invented', async () => {
  await using stage = await Stage.create();
  for (let bytes = 0; bytes <= stage.good.length; bytes += 1) {
    if (bytes % 41 !== 0 && bytes < stage.good.length - 12) continue; // enough places in each line, and every one at the end
    const attempts = await stage.reopened(stage.good.subarray(0, bytes));
    for (const [n, attempt] of stage.attempts.entries()) {
      const found = attempts.find(({ job }) => job.jobId === attempt.job.jobId);
      // Its `taken` and its end; without its last byte, the line end, a line is as good as whole.
      const [taken = 0, ended = 0] = [stage.ends[n], stage.ends[n + stage.attempts.length]];
      if (bytes < taken - 1) expect(found).toBeUndefined();
      else if (bytes < ended - 1) expect(found?.end).toMatchObject(INTERRUPTED);
      else expect(found).toEqual(attempt);
    }
  }
});

test('whatever bytes are flipped: an attempt is as it was, interrupted, or forgotten, and the others keep their state', async () => {
  await using stage = await Stage.create();
  const size = stage.good.length - 1;
  const flips = fc.array(fc.tuple(fc.nat(size), fc.integer({ min: 1, max: 255 })), { minLength: 1, maxLength: 4 });
  await fc.assert(
    fc.asyncProperty(flips, async (all) => {
      const bytes = Buffer.from(stage.good);
      for (const [at, by] of all) bytes[at] = (bytes[at] ?? 0) ^ by;
      const attempts = await stage.reopened(bytes);
      for (const [n, attempt] of stage.attempts.entries()) {
        const found = attempts.find(({ job }) => job.jobId === attempt.job.jobId);
        if (!stage.isTouched(bytes, n) && !stage.isTouched(bytes, n + stage.attempts.length))
          expect(found).toEqual(attempt);
        if (found === undefined) continue;
        expect(found.job).toEqual(attempt.job);
        if (found.end?.state !== attempt.end?.state) expect(found.end).toMatchObject(INTERRUPTED);
        else
          expect(found.end).toMatchObject(attempt.end?.state === 'failed' ? { state: 'failed' } : (attempt.end ?? {}));
      }
      expect(attempts.length).toBeLessThanOrEqual(stage.attempts.length);
      // The last line alone may be half written, which is no damage.
      const last = stage.ends.length - 1;
      const isDamaged = stage.ends.some((_, line) => line < last && stage.isTouched(bytes, line));
      if (isDamaged) expect(await stage.keptFiles(), 'the damaged file').toBeGreaterThan(0);
    }),
    { numRuns: 200 },
  );
});

const INTERRUPTED = { state: 'failed', error: { code: 'INTERRUPTED', retryable: true } };

/** A journal of three attempts and then their ends: one line each, in this order. */
class Stage implements AsyncDisposable {
  readonly good: Buffer;
  readonly attempts: readonly Attempt[];
  /** Where each line ends. */
  readonly ends: readonly number[];
  readonly #dir: string;

  private constructor(dir: string, o: { good: Buffer; attempts: readonly Attempt[] }) {
    this.#dir = dir;
    this.good = o.good;
    this.attempts = o.attempts;
    this.ends = [...o.good.entries()].flatMap(([at, byte]) => (byte === 10 ? [at + 1] : []));
  }

  static async create(): Promise<Stage> {
    const dir = await mkdtemp(join(tmpdir(), 'gantry-journal-'));
    await using journal = await Journal.open({ dir, log });
    const jobs = [job(), job(), job()] as const;
    for (const each of jobs) await journal.taken('t', each);
    const error = { code: 'ENGINE_FAILED', message: 'no', retryable: true };
    await journal.ended('t', jobs[0], { state: 'done', result: RESULT });
    await journal.ended('t', jobs[1], { state: 'failed', error });
    await journal.ended('t', jobs[2], { state: 'cancelled' });
    return new Stage(dir, { good: await readFile(join(dir, 'journal.jsonl')), attempts: journal.all() });
  }

  async reopened(bytes: Buffer): Promise<Attempt[]> {
    for (const name of await readdir(this.#dir)) await rm(join(this.#dir, name));
    await writeFile(join(this.#dir, 'journal.jsonl'), bytes);
    await using journal = await Journal.open({ dir: this.#dir, log });
    return journal.all();
  }

  /** The line is not as it was, or does not begin where it did. */
  isTouched(bytes: Buffer, line: number): boolean {
    const start = this.ends[line - 1] ?? 0;
    const end = this.ends[line];
    const isMoved = start > 0 && bytes[start - 1] !== 10;
    return isMoved || !bytes.subarray(start, end).equals(this.good.subarray(start, end));
  }

  async keptFiles(): Promise<number> {
    return (await readdir(this.#dir)).filter((name) => name.includes('.corrupt-')).length;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.#dir, { recursive: true, force: true });
  }
}

function job(): Job {
  return {
    ...{ jobId: randomUUID(), attempt: 1, class: 'batch' },
    request: {
      ...{ kind: 'generate', model: 'M', prompt: 'a red fox', steps: 4, seed: 7, format: 'png', width: 64, height: 64 },
      guidance: { field: 'guidance_scale', value: 0 },
    },
  };
}
