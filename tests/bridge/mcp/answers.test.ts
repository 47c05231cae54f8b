import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { BatchView, JobView } from '../../../bridge/fleet/batch-view.ts';
import { activityOf, fractionOf } from '../../../bridge/mcp/activity.ts';
import {
  progressJson,
  qualityJson,
  resultsFile,
  resultsFileJson,
  resultsJson,
  runningAnswer,
  statusOf,
  throwIfFailed,
} from '../../../bridge/mcp/answers.ts';

function job(index: number, o: Partial<JobView> = {}): JobView {
  return {
    jobId: `job-${index}`,
    index,
    prompt: `prompt ${index}`,
    seed: index,
    model: 'm',
    state: 'waiting',
    attempt: 0,
    attempts: [],
    progress: { step: 0, steps: 0, detail: '' },
    etaMs: null,
    ahead: null,
    ...o,
  };
}

function done(index: number, directory = '/out'): JobView {
  return job(index, {
    state: 'done',
    host: 'a',
    filePath: join(directory, `${index}.png`),
    result: { sha256: 'f'.repeat(64), bytes: 1, width: 1, height: 1, format: 'png', runMs: 1_500, gpu: 'g', notes: [] },
    timings: { startedInMs: 100, endedInMs: 2_000 },
  });
}

const failed = (index: number) =>
  job(index, {
    state: 'failed',
    attempts: [{ host: 'a' }, { host: 'b' }],
    error: { code: 'ENGINE_FAILED', message: 'The engine said no.', retryable: true },
  });

function batch(jobs: JobView[], o: Partial<BatchView> = {}): BatchView {
  const count = (state: JobView['state']): number => jobs.filter((each) => each.state === state).length;
  return {
    batchId: 'batch-1',
    kind: 'generate',
    state: 'running',
    createdAt: '2026-11-20T00:00:00.000Z',
    jobs,
    completed: count('done'),
    failed: count('failed'),
    cancelled: count('cancelled'),
    total: jobs.length,
    etaMs: null,
    elapsedMs: 0,
    notes: [],
    isOurs: true,
    ...o,
  };
}

describe('what a call is doing, in words', () => {
  test.each<[string, Partial<JobView>, string]>([
    ['waiting', { progress: { step: 0, steps: 0, detail: 'a loads the model' } }, 'a loads the model'],
    ['waiting without a reason', {}, 'waiting for a free host'],
    ['waiting behind others', { ahead: 2 }, 'waiting for a free host; 2 of yours ahead'],
    ['waiting as the first', { ahead: 0 }, 'waiting for a free host'],
    [
      'loading',
      { state: 'accepted', host: 'a', progress: { step: 0, steps: 0, detail: 'loading klein' } },
      'a: loading klein',
    ],
    ['running', { state: 'running', host: 'a', progress: { step: 3, steps: 9, detail: '' } }, 'step 3/9 on a'],
    ['lost', { state: 'unsure', host: 'a' }, 'connection to a lost; waiting for it to come back'],
    ['saving', { state: 'saving', host: 'a' }, 'fetching the image from a'],
  ])('%s', (_, o, expected) => {
    expect(activityOf(batch([job(0, o)]))).toBe(expected);
  });

  test('a batch counts, and says where it runs and how long it takes', () => {
    const view = batch([done(0), job(1, { state: 'running', host: 'b' }), failed(2), job(3)], { etaMs: 12_300 });
    expect(activityOf(view)).toBe('1 of 4 done, 1 failed, about 12 s left; running on b');
    expect(activityOf({ ...view, etaMs: 300 })).toContain('about 1 s left');
    expect(activityOf({ ...view, etaMs: 400_000 })).toContain('about 7 min left');
  });

  test('a batch tells which hosts still load, as long as nothing runs there', () => {
    const detail = 'loading klein, usually 24 s';
    const loading = job(0, { state: 'running', host: 'a', progress: { step: 0, steps: 0, detail } });
    const running = job(1, { state: 'running', host: 'b', progress: { step: 1, steps: 4, detail: '' } });
    expect(activityOf(batch([loading, running]))).toBe(`0 of 2 done; running on b; a: ${detail}`);
    expect(activityOf(batch([loading, { ...running, host: 'a' }]))).toBe('0 of 2 done; running on a');
    expect(activityOf(batch([loading, { ...loading, index: 1 }]))).toBe(`0 of 2 done; a: ${detail}`);
  });

  test('what another process works on is not said to wait for a host', () => {
    expect(activityOf(batch([job(0)], { isOurs: false }))).toBe('waiting; another window on this machine works on it');
    expect(activityOf(batch([done(0), job(1)], { isOurs: false }))).toBe(
      '1 of 2 done; another window on this machine works on it',
    );
  });

  test('a batch that cannot save says so, whatever else runs', () => {
    const view = batch([done(0), job(1, { state: 'fetching', host: 'b' })], { pausedBy: 'No space is left in /out.' });
    expect(activityOf(view)).toBe('1 of 2 done; paused: No space is left in /out.');
    expect(activityOf({ ...view, total: 1, jobs: view.jobs.slice(1) })).toBe('paused: No space is left in /out.');
  });

  test('steps of running jobs count as parts of the whole', () => {
    const half = job(1, { state: 'running', host: 'b', progress: { step: 5, steps: 10, detail: '' } });
    expect(fractionOf(batch([done(0), half, job(2), job(3)]))).toBe(1.5 / 4);
  });
});

describe('answers', () => {
  test('a running single image is asked for by its job, a batch by its batch', () => {
    expect(runningAnswer(batch([job(0)]))).toMatchObject({
      json: { status: 'running', job_id: 'job-0', batch_id: 'batch-1' },
    });
    const many = runningAnswer(batch([job(0), job(1)]));
    expect(many.json).not.toHaveProperty('job_id');
    expect(many.sentence).toContain('get_job, id batch-1');
  });

  test('a waiting job knows how many are before it', () => {
    const view = batch([job(0, { state: 'running', host: 'a' }), job(1), job(2, { ahead: 1 })]);
    expect(progressJson(view, view.jobs[2])).toMatchObject({ queue_position: 1, eta_seconds: null });
    expect(progressJson(view, view.jobs[0])).toMatchObject({ queue_position: null, host: 'a' });
  });

  test('the first 20 results and the first 20 failures are told, prompts cut to 80 characters', () => {
    const jobs = Array.from({ length: 60 }, (_, index) => (index % 2 === 0 ? done(index) : failed(index)));
    const results = resultsJson(batch([...jobs, { ...done(60), prompt: 'x'.repeat(200) }]));
    expect(results).toHaveLength(40);
    expect(results.filter((each) => 'error' in each)).toHaveLength(20);
    const [one] = resultsJson(batch([{ ...done(0), prompt: 'x'.repeat(200) }]));
    expect(one).toMatchObject({
      index: 0,
      seed: 0,
      host: 'a',
      file_path: '/out/0.png',
      generation_time_seconds: 1.5,
      started_seconds: 0.1,
      finished_seconds: 2,
    });
    expect(String(one?.['prompt'])).toHaveLength(80);
  });

  test('a large batch leaves a file with every result beside its images, a small one does not', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'gantry-answers-'));
    const many = Array.from({ length: 21 }, (_, index) => done(index, directory));
    expect(await resultsFile(batch(many.slice(1), { state: 'success' }))).toBeUndefined();
    expect(await resultsFile(batch(many, { state: 'running' }))).toBeUndefined();
    const path = await resultsFile(batch(many, { state: 'partial' }));
    expect(await readdir(directory)).toEqual(['batch_batch-1.jsonl']);
    const lines = (await readFile(String(path), 'utf8')).trim().split('\n');
    expect(lines.map((line) => (JSON.parse(line) as { index: number }).index)).toEqual(many.map(({ index }) => index));
    await rm(directory, { recursive: true });
  });

  test('a results file that cannot be written is a note, not a failure', async () => {
    const many = Array.from({ length: 21 }, (_, index) => done(index, '/nowhere/at/all'));
    const { json, notes } = await resultsFileJson(batch(many, { state: 'success' }));
    expect(json).toEqual({});
    expect(notes).toEqual([
      expect.stringMatching(/^The results file could not be written \(.*ENOENT.*get_job tries again/),
    ]);
  });

  test('the quality of a batch has everything its owner can check, and of older records what they have', () => {
    const quality = { makespanMs: 2_000, lowerBoundMs: 1_900, ratio: 1.0526, jobsByHost: { a: 3 } };
    const told = { makespan_seconds: 2, lower_bound_seconds: 1.9, ratio: 1.053, images_per_host: { a: 3 } };
    expect(qualityJson(batch([done(0)], { quality: { ...quality, swaps: 1, reRuns: 2 } }))).toEqual({
      quality: { ...told, swaps: 1, re_runs: 2 },
    });
    expect(qualityJson(batch([done(0)], { quality }))).toEqual({ quality: told });
    expect(qualityJson(batch([done(0)]))).toEqual({});
  });

  test('a batch of which nothing came out is an error that says what was tried', () => {
    const view = batch([failed(0), failed(1)], { state: 'failed' });
    expect(() => throwIfFailed(view)).toThrow(
      expect.objectContaining({
        code: 'ENGINE_FAILED',
        message: 'The engine said no. All 2 images of batch batch-1 failed; this was the first.',
      }) as Error,
    );
    expect(() => throwIfFailed(batch([done(0), failed(1)], { state: 'partial' }))).not.toThrow();
    expect(statusOf(batch([done(0), failed(1)], { state: 'partial' }))).toBe('partial');
  });
});
