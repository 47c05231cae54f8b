import fc from 'fast-check';
import { expect, test } from 'vitest';
import { answerGrant, forecastEnds, planOrder } from '../../../bridge/fleet/batch-plan.ts';
import type { PlanJob, PlanRules, PlanSlot } from '../../../bridge/fleet/batch-plan.ts';
import {
  optimumMs,
  planJob as job,
  planMakespanMs,
  planSlot as slot,
} from '../../../scripts/bench/decisions/plan-in-virtual-time.ts';

const ANY: PlanRules = { only: undefined, avoid: [], spread: undefined };

function grant(host: string, o: { class?: 'batch' | 'interactive' } = {}) {
  return { host, slotId: host, class: o.class ?? ('batch' as const) };
}

const two = [slot('slow', 1), slot('fast', 10)];
test.each<[string, ReturnType<typeof grant>, PlanJob[], PlanSlot[], string]>([
  ['a slow host does not get the only job', grant('slow'), [job('a', 1_000)], two, 'decline'],
  ['the fast one does', grant('fast'), [job('a', 1_000)], two, 'a'],
  ['the longest goes to the fast one', grant('fast'), [job('long', 9_000), job('short', 1_000)], two, 'long'],
  [
    'a slow host gets what it ends in time',
    grant('slow'),
    Array.from({ length: 10 }, (_, n) => job(`j${n}`, 1_000)),
    two,
    'j9',
  ],
  [
    'a busy fast host loses',
    grant('slow'),
    [job('a', 100)],
    [slot('slow', 1), slot('fast', 10, { startsInMs: 5_000 })],
    'a',
  ],
  ['a transfer counts', grant('slow'), [job('a', 100)], [slot('slow', 1), slot('fast', 10, { transferMs: 100 })], 'a'],
  ['equal: the granted slot', grant('b'), [job('a', 100)], [slot('a', 1), slot('b', 1)], 'a'],
  ['nothing of this class', grant('fast'), [job('a', 100, { class: 'interactive' })], two, 'decline'],
  ['nothing at all', grant('fast'), [], two, 'decline'],
  ['an unknown slot', grant('gone'), [job('a', 100)], two, 'decline'],
  ['declined for too long', grant('slow'), [job('a', 100), job('b', 100, { declinedForMs: 10_001 })], two, 'b'],
  ['its own time there is patience too', grant('slow'), [job('a', 20_000, { declinedForMs: 15_000 })], two, 'decline'],
  ['pinned elsewhere', grant('fast'), [job('a', 100, { rules: { ...ANY, only: 'slow' } })], two, 'decline'],
  ['pinned here', grant('slow'), [job('a', 100, { rules: { ...ANY, only: 'slow' } })], two, 'a'],
  ['avoided here', grant('fast'), [job('a', 100, { rules: { ...ANY, avoid: ['fast'] } })], two, 'decline'],
  ['nearly equal: alone, the better one', grant('a'), [job('x', 1_000)], [slot('a', 1), slot('b', 1.05)], 'decline'],
  [
    'nearly equal: where others offer too, the one that is there',
    grant('a'),
    [job('x', 1_000)],
    [slot('a', 1), slot('b', 1.05, { crowding: 2 })],
    'x',
  ],
  [
    'others on the fast host: more is done on the slow one',
    grant('slow'),
    Array.from({ length: 6 }, (_, n) => job(`j${n}`, 1_000)),
    [slot('slow', 1), slot('fast', 10, { crowding: 2 })],
    'j5',
  ],
  [
    'alone: the fast host ends them all sooner',
    grant('slow'),
    Array.from({ length: 6 }, (_, n) => job(`j${n}`, 1_000)),
    two,
    'decline',
  ],
  [
    'however many jobs may not come here, they hide none that may',
    grant('slow'),
    [
      ...Array.from({ length: 1_000 }, (_, n) => job(`j${n}`, 1_000, { rules: { ...ANY, only: 'fast' } })),
      job('mine', 500),
    ],
    two,
    'mine',
  ],
  [
    'a single interactive job takes a nearly best slot that is ready',
    grant('a', { class: 'interactive' }),
    [job('x', 1_000, { class: 'interactive' })],
    [slot('a', 1), slot('b', 1.2)],
    'x',
  ],
  [
    'but not one that must load first',
    grant('a', { class: 'interactive' }),
    [job('x', 1_000, { class: 'interactive' })],
    [slot('a', 1, { isReady: false }), slot('b', 1.2)],
    'decline',
  ],
])('%s', (_, granted, jobs, slots, expected) => {
  const answer = answerGrant(granted, jobs, slots);
  expect(answer.kind === 'take' ? answer.jobId : 'decline').toBe(expected);
});

const anyJobs = fc.array(
  fc.record({ units: fc.integer({ min: 1, max: 60_000 }), declinedForMs: fc.integer({ min: 0, max: 60_000 }) }),
  { minLength: 1, maxLength: 30 },
);

test('the only slot is never declined, and what has been declined for too long is taken', () => {
  const speeds = fc.array(fc.double({ min: 0.2, max: 10, noNaN: true }), { minLength: 1, maxLength: 5 });
  fc.assert(
    fc.property(anyJobs, speeds, (given, all) => {
      const jobs = given.map(({ units, declinedForMs }, n) => job(`j${n}`, units, { declinedForMs }));
      const slots = all.map((speed, n) => slot(`h${n}`, speed));
      expect(answerGrant(grant('h0'), jobs, slots.slice(0, 1)).kind).toBe('take');
      const overdue = jobs.filter((one) => one.declinedForMs > Math.max(10_000, one.units / (all[0] ?? 1)));
      const answer = answerGrant(grant('h0'), jobs, slots);
      if (overdue.length > 0) expect(answer).toMatchObject({ kind: 'take', jobId: overdue[0]?.jobId });
      if (answer.kind === 'take') expect(jobs.map(({ jobId }) => jobId)).toContain(answer.jobId);
    }),
  );
});

test('one at a time keeps to the fastest slot', () => {
  const rules = { ...ANY, spread: 1 };
  const jobs = Array.from({ length: 40 }, (_, n) => job(`j${n}`, 1_000, { rules }));
  expect(answerGrant(grant('slow'), jobs, two).kind).toBe('decline');
  expect(answerGrant(grant('fast'), jobs, two)).toMatchObject({ kind: 'take', jobId: 'j0', endsInMs: 100 });
});

test('interactive first, then batch by batch, each in its own order', () => {
  const order = planOrder([
    { class: 'batch', jobs: ['a', 'b'] },
    { class: 'batch', jobs: ['c'] },
    { class: 'interactive', jobs: ['x', 'y'] },
  ]);
  expect(order).toEqual(['x', 'y', 'a', 'b', 'c']);
});

test('the forecast is when the last job ends', () => {
  expect(forecastEnds([job('a', 1_000), job('b', 1_000), job('c', 500)], [slot('x', 1), slot('y', 1)])).toEqual([
    1_000, 1_000, 1_500,
  ]);
  expect(forecastEnds([], [])).toEqual([]);
  expect(forecastEnds([job('a', 1_000)], [])).toEqual([undefined]);
});

/** B6: identical jobs on unequal hosts end when no schedule could end sooner. */
test('identical jobs, n = 1 to 40, on speeds 1, 1, 2, 4: exactly the optimum, in any order of grants', () => {
  const speeds = [1, 1, 2, 4];
  for (let n = 1; n <= 40; n += 1) {
    const works = Array<number>(n).fill(800);
    expect(planMakespanMs(works, speeds, [3, 1, 0, 2]), `n = ${n}`).toBeCloseTo(
      optimumMs(n, { units: 800, speeds }),
      6,
    );
  }
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 40 }),
      fc.shuffledSubarray([0, 1, 2, 3], { minLength: 4 }),
      fc.integer({ min: 50, max: 60_000 }),
      (n, order, workMs) => {
        const makespan = planMakespanMs(Array<number>(n).fill(workMs), speeds, order);
        expect(makespan).toBeCloseTo(optimumMs(n, { units: workMs, speeds }), 4);
      },
    ),
    { numRuns: 200 },
  );
});

test('identical jobs on any speeds: exactly the optimum', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 40 }),
      fc.array(fc.double({ min: 0.2, max: 12, noNaN: true }), { minLength: 1, maxLength: 6 }),
      (n, speeds) => {
        const makespan = planMakespanMs(Array<number>(n).fill(800), speeds, [...speeds.keys()]);
        expect(makespan).toBeCloseTo(optimumMs(n, { units: 800, speeds }), 4);
      },
    ),
    { numRuns: 1_000 },
  );
});

test('mixed jobs, 40 and more: within 5 % of the lower bound', () => {
  const speeds = [1, 1, 2, 4];
  fc.assert(
    fc.property(
      fc.array(fc.constantFrom(400, 400, 800, 800, 1_600, 3_200), { minLength: 40, maxLength: 120 }),
      fc.shuffledSubarray([0, 1, 2, 3], { minLength: 4 }),
      (works, order) => {
        const bound = Math.max(works.reduce((sum, work) => sum + work, 0) / 8, Math.max(...works) / 4);
        expect(planMakespanMs(works, speeds, order) / bound).toBeLessThanOrEqual(1.05);
      },
    ),
    { numRuns: 200 },
  );
});
