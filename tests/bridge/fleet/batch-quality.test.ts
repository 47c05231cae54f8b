import { expect, test } from 'vitest';
import { batchQuality } from '../../../bridge/fleet/batch-quality.ts';
import type { JobRecord } from '../../../bridge/fleet/job-record.ts';
import { record, request } from './builders.ts';

function done(host: string, runMs: number, steps = 10): JobRecord {
  const result = {
    sha256: 'a'.repeat(64),
    bytes: 1,
    width: 16,
    height: 16,
    format: 'png' as const,
    runMs,
    gpu: 'g',
    notes: [],
  };
  return record({
    request: request({ steps }),
    state: { kind: 'done', at: { host, attempt: 1 }, result, path: '/x', previewPath: undefined },
  });
}
const host = (name: string, unitMs: number, slots = 1) => ({
  host: name,
  slots,
  service: { fixedMs: 0, unitMs, samples: 1 },
});

test('the lower bound is the work over the rates that were observed', () => {
  // Observed: a runs a job in 1 s, b in 0.5 s; what the agents had estimated does not matter.
  const jobs = [done('a', 1_000), done('b', 500), done('b', 500)];
  const quality = batchQuality(jobs, { makespanMs: 1_100, hosts: [host('a', 77), host('b', 3)] });
  expect(quality).toMatchObject({ makespanMs: 1_100, jobsByHost: { a: 1, b: 2 } });
  expect(quality?.lowerBoundMs).toBeCloseTo(1_000, 6);
  expect(quality?.ratio).toBeCloseTo(1.1, 6);
});

test('it is never below the longest job on the fastest host', () => {
  const quality = batchQuality([done('a', 1_000)], { makespanMs: 1_000, hosts: [host('a', 100, 4)] });
  expect(quality?.lowerBoundMs).toBeCloseTo(1_000, 6);
  expect(quality?.ratio).toBeCloseTo(1, 6);
});

test('a host that could have helped counts with its estimate', () => {
  const jobs = [done('a', 1_000), done('a', 1_000)];
  const quality = batchQuality(jobs, { makespanMs: 2_000, hosts: [host('a', 100), host('idle', 100)] });
  expect(quality?.lowerBoundMs).toBeCloseTo(1_000, 6);
  expect(quality?.ratio).toBeCloseTo(2, 6);
});

test('jobs of different sizes are weighed by their size', () => {
  const jobs = [done('a', 2_000, 20), done('b', 1_000, 10)];
  expect(batchQuality(jobs, { makespanMs: 2_000, hosts: [host('a', 100), host('b', 100)] })?.lowerBoundMs).toBeCloseTo(
    2_000,
    6,
  );
});

test('nothing done has no quality', () => {
  expect(batchQuality([record()], { makespanMs: 5, hosts: [] })).toBeUndefined();
});

test('loads and wakes for it, and attempts beyond the first of a job, are counted; a take that was refused is none', () => {
  const error = { code: 'INTERRUPTED', message: 'no', retryable: true };
  const first = {
    ...done('a', 1_000),
    attempts: [
      { host: 'b', attempt: 1, isSwap: true, end: { kind: 'refused' as const } },
      { host: 'b', attempt: 1, isSwap: true, end: { kind: 'failed' as const, error, serverDied: false } },
      { host: 'a', attempt: 2, end: { kind: 'saved' as const } },
    ],
  };
  const second = { ...done('a', 1_000), attempts: [{ host: 'a', attempt: 1, isSwap: true }] };
  const quality = batchQuality([first, second], { makespanMs: 3_000, hosts: [host('a', 100)] });
  expect(quality).toMatchObject({ swaps: 2, reRuns: 1 });
});
