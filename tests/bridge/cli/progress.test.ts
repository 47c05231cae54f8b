import { setImmediate as turn } from 'node:timers/promises';
import { expect, test } from 'vitest';
import type { RunningBatch } from '../../../bridge/cli/ask.ts';
import { LiveProgress } from '../../../bridge/cli/live-progress.ts';
import { endedLine, newlyEnded, progressLine } from '../../../bridge/cli/progress-text.ts';
import type { Screen } from '../../../bridge/cli/screen.ts';
import type { BatchView, JobView } from '../../../bridge/fleet/batch-view.ts';

const RESULT = { runMs: 12_300 } as unknown as NonNullable<JobView['result']>; // nothing else of it is shown

function job(index: number, more: Partial<JobView> = {}): JobView {
  return {
    jobId: `job-${index}`,
    index,
    prompt: `a fox ${index}`,
    seed: 1,
    model: 'm',
    state: 'waiting',
    attempt: 0,
    attempts: [],
    progress: { step: 0, steps: 0, detail: '' },
    etaMs: null,
    ahead: null,
    ...more,
  };
}

const done = (index: number, endedInMs: number): JobView =>
  job(index, {
    state: 'done',
    host: 'attic',
    result: RESULT,
    filePath: `/pics/${index}.png`,
    timings: { startedInMs: 0, endedInMs },
  });

function view(jobs: JobView[]): BatchView {
  return {
    batchId: 'b',
    kind: 'generate',
    state: 'running',
    createdAt: '2026-11-21T00:00:00Z',
    jobs,
    completed: 0,
    failed: 0,
    cancelled: 0,
    total: jobs.length,
    etaMs: null,
    elapsedMs: 0,
    notes: [],
    isOurs: true,
  };
}

/** What a command would have written, in the order in which it did. */
function recorder({ columns, isJson = false }: { columns?: number; isJson?: boolean }) {
  const written: string[] = [];
  const paper = (name: string) => ({
    columns,
    write: (text: string) => void written.push(`${name}${text}`),
    paint: (_: string, text: string) => text,
  });
  const screen: Screen = { out: paper('out:'), talk: paper(''), complain: () => undefined, isJson };
  return { screen, written };
}

test('the line that changes has a bar where there is room, and never fills the terminal', () => {
  expect(progressLine({ message: '2 of 4 done', fraction: 0.5 }, 80)).toBe('[##########----------] 2 of 4 done');
  expect(progressLine({ message: 'x'.repeat(200), fraction: 2 }, 80)).toHaveLength(79);
  expect(progressLine({ message: '2 of 4 done', fraction: 0.5 }, 40)).toBe('2 of 4 done');
  expect(progressLine({ message: 'looking\u001b[2J' }, 80)).not.toMatch(/\p{Cc}/u);
});

test('a finished image says where it was made and how long it took; a failed one why', () => {
  expect(endedLine(done(1, 1), { ended: 3, total: 12 })).toBe(' 3/12  made on attic in 12 s  a fox 1');
  expect(endedLine(done(1, 1), { ended: 1, total: 1 })).toBe('made on attic in 12 s');
  const error = { code: 'ENGINE_FAILED' as const, message: 'It said no.\u0007', retryable: false };
  expect(endedLine(job(2, { state: 'failed', host: 'rack', error }), { ended: 1, total: 2 })).toBe(
    '1/2  failed on rack  a fox 2: ENGINE_FAILED: It said no. ',
  );
});

test('images are told once, in the order in which they ended', () => {
  const jobs = [done(0, 30), done(1, 10), job(2), done(3, 20)];
  expect(newlyEnded(view(jobs), new Set(['job-3'])).map(({ index }) => index)).toEqual([1, 0]);
});

test('on a terminal the line is replaced, and gone in the end; paths are on stdout', async () => {
  const { screen, written } = recorder({ columns: 80 });
  const jobs = [job(0), job(1)];
  const batch: RunningBatch = { id: 'b', view: () => view(jobs) };
  const progress = new LiveProgress(screen);
  progress.doing(() => ({ message: 'one' }));
  progress.follow(batch);
  jobs[0] = done(0, 1);
  await progress[Symbol.asyncDispose]();
  expect(written).toEqual([
    '\r\u001b[2Klooking for your hosts',
    '\r\u001b[2K',
    '1/2  made on attic in 12 s  a fox 0\n',
    'out:/pics/0.png\n',
  ]);
});

test('without a terminal nothing is replaced, and for --json no path is printed in between', async () => {
  const { screen, written } = recorder({ isJson: true });
  const progress = new LiveProgress(screen);
  progress.follow({ id: 'b', view: () => view([done(0, 1)]) });
  await turn();
  await progress[Symbol.asyncDispose]();
  expect(written).toEqual(['made on attic in 12 s\n']);
});
