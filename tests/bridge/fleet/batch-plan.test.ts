import fc from 'fast-check';
import { performance } from 'node:perf_hooks';
import { expect, test } from 'vitest';
import { answerGrant, forecastEnds, planOrder } from '../../../bridge/fleet/batch-plan.ts';
import type { PlanJob, PlanRules, PlanSlot } from '../../../bridge/fleet/batch-plan.ts';

const ANY: PlanRules = { only: undefined, avoid: [], spread: undefined };

function job(jobId: string, units: number, o: Partial<PlanJob> = {}): PlanJob {
  return { jobId, class: 'batch', units, rules: ANY, declinedForMs: 0, ...o };
}

function slot(host: string, speed: number, o: Partial<PlanSlot> = {}): PlanSlot {
  const service = { fixedMs: 0, unitMs: 1 / speed, samples: 5 };
  return { host, slotId: host, startsInMs: 0, service, transferMs: 0, isReady: true, crowding: 1, ...o };
}

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

test('one at a time keeps to the fastest slot', () => {
  const rules = { ...ANY, spread: 1 };
  const jobs = Array.from({ length: 40 }, (_, n) => job(`j${n}`, 1_000, { rules }));
  expect(answerGrant(grant('slow'), jobs, two).kind).toBe('decline');
  expect(answerGrant(grant('fast'), jobs, two)).toMatchObject({ kind: 'take', jobId: 'j0', endsInMs: 100 });
});

test('interactive first, then batch by batch, each in its own order', () => {
  const make = (jobClass: 'batch' | 'interactive', index: number, units: number) => ({ class: jobClass, index, units });
  const order = planOrder([
    { order: 'longest-first', jobs: [make('batch', 0, 1), make('batch', 1, 5)] },
    { order: 'fifo', jobs: [make('batch', 1, 9), make('batch', 0, 2)] },
    { order: 'fifo', jobs: [make('interactive', 0, 3)] },
  ]);
  expect(order.map(({ units }) => units)).toEqual([3, 5, 1, 2, 9]);
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
    expect(simulate(works, speeds, [3, 1, 0, 2]), `n = ${n}`).toBeCloseTo(optimumMs(n, { workMs: 800, speeds }), 6);
  }
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 40 }),
      fc.shuffledSubarray([0, 1, 2, 3], { minLength: 4 }),
      fc.integer({ min: 50, max: 60_000 }),
      (n, order, workMs) => {
        const makespan = simulate(Array<number>(n).fill(workMs), speeds, order);
        expect(makespan).toBeCloseTo(optimumMs(n, { workMs, speeds }), 4);
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
        const makespan = simulate(Array<number>(n).fill(800), speeds, [...speeds.keys()]);
        expect(makespan).toBeCloseTo(optimumMs(n, { workMs: 800, speeds }), 4);
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
        expect(simulate(works, speeds, order) / bound).toBeLessThanOrEqual(1.05);
      },
    ),
    { numRuns: 200 },
  );
});

test('what one decision costs with 200 jobs x 50 hosts is printed, not judged', () => {
  const slots = Array.from({ length: 50 }, (_, n) =>
    slot(`h${n}`, [1, 1, 1.5, 2, 4][n % 5] ?? 1, { startsInMs: n * 10 }),
  );
  const jobs = Array.from({ length: 200 }, (_, n) => job(`j${n}`, 60_000 - n * 250));
  const rounds = 200;
  const startedMs = performance.now();
  for (let n = 0; n < rounds; n += 1) answerGrant(grant(`h${n % 50}`), jobs, slots);
  const perDecisionUs = ((performance.now() - startedMs) / rounds) * 1000;
  // eslint-disable-next-line no-console -- a measurement is for the reader of the test's output
  console.info(`one decision, 200 jobs x 50 hosts: ${perDecisionUs.toFixed(0)} µs`);
  expect(perDecisionUs).toBeGreaterThan(0);
});

/**
 * Batches in virtual time, as the protocol of offers and grants has it: every idle slot is granted when it becomes idle
 * and again, declined or not, at each end of a job; the plan is the real one.
 */
function simulate(works: readonly number[], speeds: readonly number[], order: readonly number[]): number {
  let waiting = works
    .map((units, index) => ({ ...job(`j${index}`, units), index }))
    .sort((a, b) => b.units - a.units || a.index - b.index);
  const endsAtMs = speeds.map(() => 0);
  let nowMs = 0;
  for (;;) {
    for (const index of order) {
      if ((endsAtMs[index] ?? 0) > nowMs) continue;
      const slots = speeds.map((speed, n) =>
        slot(`h${n}`, speed, { startsInMs: Math.max(0, (endsAtMs[n] ?? 0) - nowMs) }),
      );
      const answer = answerGrant(grant(`h${index}`), waiting, slots);
      if (answer.kind === 'decline') continue;
      const units = waiting.find(({ jobId }) => jobId === answer.jobId)?.units ?? 0;
      waiting = waiting.filter(({ jobId }) => jobId !== answer.jobId);
      endsAtMs[index] = nowMs + units / (speeds[index] ?? 1);
    }
    const running = endsAtMs.filter((ms) => ms > nowMs);
    if (running.length === 0) {
      if (waiting.length > 0) throw new Error(`stuck with ${waiting.length} jobs`);
      return nowMs;
    }
    nowMs = Math.min(...running);
  }
}

function optimumMs(n: number, { workMs, speeds }: { workMs: number; speeds: readonly number[] }): number {
  const ends = speeds.flatMap((speed) => Array.from({ length: n }, (_, k) => ((k + 1) * workMs) / speed));
  return ends.sort((a, b) => a - b)[n - 1] ?? 0;
}
