import { expect, test } from 'vitest';
import { enterState, findAttempt, nextAttempt, openAttempts, remainingMs } from '../../../bridge/fleet/job-record.ts';
import { canEnter, isInFlight, isOver, JOB_TRANSITIONS, placeOf } from '../../../bridge/fleet/job-state.ts';
import type { JobState, JobStateKind } from '../../../bridge/fleet/job-state.ts';
import type { JobResult } from '../../../shared/job.ts';
import { record } from './builders.ts';

const at = { host: 'a', attempt: 1 };
const result: JobResult = {
  sha256: 'a'.repeat(64),
  bytes: 1,
  width: 16,
  height: 16,
  format: 'png',
  runMs: 1,
  gpu: 'g',
  notes: [],
};
const STATES: Record<JobStateKind, JobState> = {
  waiting: { kind: 'waiting' },
  taking: { kind: 'taking', at },
  accepted: { kind: 'accepted', at },
  running: { kind: 'running', at },
  unsure: { kind: 'unsure', at, sinceMs: 0 },
  fetching: { kind: 'fetching', at, result },
  saving: { kind: 'saving', at, result },
  done: { kind: 'done', at, result, path: '/a', previewPath: undefined },
  failed: { kind: 'failed', error: { code: 'ENGINE_FAILED', message: 'no', retryable: true } },
  cancelled: { kind: 'cancelled', ranAt: undefined },
};
const kinds = Object.values(STATES).map(({ kind }) => kind);
const pairs = kinds.flatMap((from) => kinds.map((to) => [from, to] as const));

test.each(pairs.filter(([from, to]) => canEnter(from, to)))('%s may become %s', (from, to) => {
  const job = record({ state: STATES[from] });
  enterState(job, STATES[to]);
  expect(job.state.kind).toBe(to);
});

test.each(pairs.filter(([from, to]) => !canEnter(from, to)))('%s never becomes %s', (from, to) => {
  expect(() => enterState(record({ state: STATES[from] }), STATES[to])).toThrow(`from ${from} to ${to}`);
});

test('what is over stays as it is: done wins over a later cancel', () => {
  for (const kind of kinds.filter((one) => isOver(STATES[one]))) expect(JOB_TRANSITIONS[kind]).toEqual([]);
  expect(canEnter('saving', 'cancelled')).toBe(false);
});

test('a state is bound to a host exactly while something may still come from there', () => {
  expect(kinds.filter((kind) => placeOf(STATES[kind]) !== undefined)).toEqual([
    'taking',
    'accepted',
    'running',
    'unsure',
    'fetching',
    'saving',
  ]);
  expect(kinds.filter((kind) => isInFlight(STATES[kind]))).toEqual(['taking', 'accepted', 'running', 'unsure']);
});

test('an attempt number that was accepted is never used again, one that was refused is', () => {
  const job = record();
  expect(nextAttempt(job)).toBe(1);
  job.attempts.push({ host: 'a', attempt: 1, end: { kind: 'refused' } });
  expect(nextAttempt(job)).toBe(1);
  job.attempts.push({ host: 'b', attempt: 1 });
  expect(nextAttempt(job)).toBe(2);
  expect(openAttempts(job)).toEqual([{ host: 'b', attempt: 1 }]);
  expect(findAttempt(job, { host: 'a', attempt: 1 })?.end).toEqual({ kind: 'refused' });
});

test('a job that is late by x is expected to be late by x more', () => {
  const holding = { host: 'a', slotId: 's', endsAtMs: 1_000 };
  expect([400, 1_000, 1_300].map((nowMs) => remainingMs(holding, nowMs))).toEqual([600, 0, 300]);
});
