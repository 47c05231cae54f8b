import fc from 'fast-check';
import { expect, test } from 'vitest';
import { newRecord } from '../../../bridge/fleet/job-record.ts';
import type { JobRecord } from '../../../bridge/fleet/job-record.ts';
import { isInFlight } from '../../../bridge/fleet/job-state.ts';
import type { JobState } from '../../../bridge/fleet/job-state.ts';
import { JobTable } from '../../../bridge/fleet/job-table.ts';
import { workUnits } from '../../../shared/service-time.ts';
import { request } from './builders.ts';

const at = { host: 'a', attempt: 1 };
const result = {
  sha256: 'a'.repeat(64),
  bytes: 1,
  width: 16,
  height: 16,
  format: 'png' as const,
  runMs: 1,
  gpu: 'g',
  notes: [],
};
const STATES: readonly JobState[] = [
  { kind: 'waiting' },
  { kind: 'taking', at },
  { kind: 'running', at },
  { kind: 'unsure', at, sinceMs: 0 },
  { kind: 'fetching', at, result },
  { kind: 'done', at, result, path: '/x', previewPath: undefined },
  { kind: 'cancelled', ranAt: undefined },
];

function jobs(plan: readonly { steps: number; model: string }[]): JobRecord[] {
  return plan.map(({ steps, model }, index) =>
    newRecord({
      jobId: `job-${index}`,
      index,
      request: request({ steps, model }),
      inputFiles: [],
      directory: '/out',
      name: undefined,
    }),
  );
}

const plan = fc.array(fc.record({ steps: fc.integer({ min: 1, max: 4 }), model: fc.constantFrom('m', 'n') }), {
  minLength: 1,
  maxLength: 12,
});
const moves = fc.array(fc.record({ job: fc.nat(), state: fc.constantFrom(...STATES), isSent: fc.boolean() }));

test('after any moves the lists are what a look at all jobs would find', () => {
  fc.assert(
    fc.property(plan, moves, fc.constantFrom('fifo' as const, 'longest-first' as const), (planned, moved, order) => {
      const table = new JobTable(jobs(planned), order);
      for (const { job: n, state, isSent } of moved) {
        const job = table.jobs[n % table.jobs.length];
        if (job === undefined) continue;
        table.move(job, () => {
          job.state = state;
          if (isSent) job.attempts.push({ ...at });
        });
      }
      const waiting = [...table.jobs]
        .sort((a, b) => (order === 'fifo' ? 0 : workUnits(b.request) - workUnits(a.request)) || a.index - b.index)
        .filter(({ state }) => state.kind === 'waiting');
      expect(table.waiting()).toEqual(waiting);
      for (const model of ['m', 'n']) {
        expect(table.waitingFor(model)).toEqual(waiting.filter((job) => job.request.model === model));
      }
      expect(new Set(table.inFlight)).toEqual(new Set(table.jobs.filter(({ state }) => isInFlight(state))));
      for (const { kind } of STATES) {
        expect(table.count(kind)).toBe(table.jobs.filter(({ state }) => state.kind === kind).length);
      }
      const shapes = table.waitingShapes();
      expect(shapes.reduce((sum, { count }) => sum + count, 0)).toBe(waiting.length);
      const sent = new Set(waiting.filter(({ attempts }) => attempts.length > 0));
      expect(new Set(shapes.flatMap(({ retried }) => retried ?? []))).toEqual(sent);
    }),
  );
});

test('a move that is refused leaves the job where it was', () => {
  const table = new JobTable(jobs([{ steps: 1, model: 'm' }]), 'fifo');
  const [job] = table.jobs;
  if (job === undefined) throw new Error('there is one');
  const refused = () =>
    table.move(job, () => {
      throw new Error('no');
    });
  expect(refused).toThrow('no');
  expect(table.waiting()).toEqual([job]);
  expect(table.count('waiting')).toBe(1);
});
