import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { countSwaps, dealtInTurn, lowerBoundMs, optimumMs, quantile } from '../../scripts/bench/batches/bounds.ts';
import { median } from '../../scripts/bench/median.ts';
import { gapsMs, imagesIn, runsMs, within } from '../../scripts/bench/batches/engine-log.ts';
import { mixedJobs, mixedModels, SPEEDS, stepMs, uniformJobs } from '../../scripts/bench/batches/fixture.ts';
import type { Measured } from '../../scripts/bench/batches/makespans.ts';
import { makespanRows } from '../../scripts/bench/batches/makespans.ts';
import { CONFIGS } from '../../scripts/bench/batches/peers.ts';
import { largestLead, spansIn } from '../../scripts/bench/batches/served.ts';

const rates = [...SPEEDS];
const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);

describe('the fixture', () => {
  test('uniform40 is 32 s of work, mixed40 41.6 s, always the same', () => {
    expect(sum(uniformJobs().map(({ workMs }) => workMs))).toBe(32_000);
    expect(sum(mixedJobs().map(({ workMs }) => workMs))).toBe(41_600);
    expect(mixedJobs()).toEqual(mixedJobs());
    expect(mixedJobs(40, 1)).not.toEqual(mixedJobs(40, 2));
    expect(new Set(mixedJobs().map(({ workMs }) => workMs))).toEqual(new Set([400, 800, 1_600, 3_200]));
  });

  test('a job takes its work divided by the speed, in whole ms a step, as the simulator wants them', () => {
    for (const { steps, workMs } of mixedJobs()) {
      for (const speed of SPEEDS) expect(steps * stepMs(speed)).toBe(workMs / speed);
    }
    expect(SPEEDS.map((speed) => Number.isInteger(stepMs(speed)))).toEqual([true, true, true, true]);
  });

  test('both models are wanted', () => {
    const models = mixedModels(40, ['a', 'b']);
    expect(Math.min(...['a', 'b'].map((name) => models.filter((each) => each === name).length))).toBeGreaterThan(12);
  });
});

describe('what no schedule can beat', () => {
  test('is work over rates, or the longest job on the fastest host', () => {
    const works = (jobs: { workMs: number }[]): number[] => jobs.map(({ workMs }) => workMs);
    expect(lowerBoundMs(works(uniformJobs()), rates)).toBe(4_000);
    expect(lowerBoundMs(works(mixedJobs()), rates)).toBe(5_200);
    expect(lowerBoundMs([8_000, 100], rates)).toBe(2_000);
  });

  test.each([
    [1, 200],
    [2, 400],
    [3, 400],
    [8, 800],
    [9, 1_000],
    [40, 4_000],
  ])('%i equal jobs of 0.8 s: %i ms', (count, ms) => expect(optimumMs(count, { workMs: 800, rates })).toBe(ms));

  test('the optimum is the smallest time in which so many jobs fit', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 60 }),
        fc.array(fc.integer({ min: 1, max: 8 }), { minLength: 1, maxLength: 6 }),
        (count, speeds) => {
          const best = optimumMs(count, { workMs: 840, rates: speeds });
          const fit = (ms: number): number => sum(speeds.map((speed) => Math.floor((ms * speed) / 840 + 1e-9)));
          expect(fit(best)).toBeGreaterThanOrEqual(count);
          expect(fit(best - 0.001)).toBeLessThan(count);
        },
      ),
    );
  });
});

test('a swap is a job for another model than the host had', () => {
  const before = new Map([
    ['x', 'a'],
    ['y', 'a'],
  ]);
  const runs = dealtInTurn(['a', 'b', 'b', 'b', 'a'], ['x', 'y']);
  expect(runs.map(({ host }) => host).join('')).toBe('xyxyx');
  expect(countSwaps(runs, before)).toBe(3); // x: a b a, y: b b
  expect(countSwaps([{ host: 'new', model: 'a' }], new Map())).toBe(1);
});

test('quantiles', () => {
  expect([median([3, 1, 2]), quantile([5, 1, 4, 2, 3], 0.95), median([7])]).toEqual([2, 5, 7]);
});

describe('the log of an engine', () => {
  const line = (o: { at: number; end: number; path?: string; status?: number }): string => {
    const { at, end, path = '/v1/images/generations', status = 200 } = o;
    return `${JSON.stringify({ method: 'POST', path, status, arrivedMs: at, answeredMs: end })}\n`;
  };
  const text = [
    line({ at: 210.5, end: 300 }),
    line({ at: 100, end: 200 }),
    line({ at: 150, end: 151, path: '/health' }),
    line({ at: 302, end: 303, status: 500 }),
    line({ at: 310, end: 410 }),
    '{"method":"POST","path":"/v1/im',
  ].join('');

  test('has images only, in order; half a line is left alone', () => {
    expect(imagesIn(text).map(({ arrivedMs }) => arrivedMs)).toEqual([100, 210.5, 310]);
    expect(imagesIn('')).toEqual([]);
  });

  test('tells gaps and run times', () => {
    expect(gapsMs(imagesIn(text))).toEqual([10.5, 10]);
    expect(runsMs(imagesIn(text))).toEqual([100, 89.5, 100]);
    expect(gapsMs(within(imagesIn(text), { fromMs: 0, toMs: 250 }))).toEqual([10.5]);
    expect(gapsMs([])).toEqual([]);
  });
});

describe('how evenly two bridges are served', () => {
  const span = (endMs: number, runMs: number) => ({ endMs, runMs });

  test('reads the results file', () => {
    expect(spansIn('{"finished_seconds":1.5,"generation_time_seconds":0.4}\n', 1_000)).toEqual([span(2_500, 400)]);
  });

  test('is the largest difference, running jobs by their part', () => {
    const even = [span(100, 100), span(200, 100), span(300, 100)];
    expect(largestLead([even, even], { afterJobs: 1 })).toBe(0);
    const late = [span(200, 100), span(300, 100), span(400, 100)];
    // At 200 the first has had 200 and the second 100.
    expect(largestLead([even, late], { afterJobs: 2 })).toBe(0.5);
    expect(largestLead([even, late], { afterJobs: 6 })).toBe(0);
  });
});

describe('the rows', () => {
  const peer = { version: '2.6', makespansMs: { uniform40: [4_040], mixed40: [5_900] } };
  const good: Measured = {
    ...{
      rates,
      cold: { uniform40: 5_000, mixed40: 7_000 },
      warm: { uniform40: [9_000, 4_080, 4_080], mixed40: [5_300] },
    },
    ...{ published: [1.02], haproxy: peer, nginx: { ...peer, makespansMs: { uniform40: [8_000], mixed40: [12_000] } } },
    ...{
      roundRobinMs: { uniform40: 8_000, mixed40: 13_000 },
      sixteen: { uniform: [1.05], mixed: [1.09], published: [1] },
    },
    ...{
      small: [{ count: 3, makespanMs: 450, lastHost: 3 }],
      gapsMs: { uniform40: [2, 2, 9], mixed40: [2] },
      note: 'n',
    },
  };
  const failed = (o: Measured): string[] => makespanRows(o).flatMap(({ id, pass }) => (pass === false ? [id] : []));

  test('pass by the median of the runs', () => {
    expect(failed(good)).toEqual([]);
    expect(makespanRows(good).find(({ id }) => id === 'B1 uniform40')).toMatchObject({ value: 4.08, ratio: 1.02 });
  });

  test.each([
    [{ warm: { uniform40: [4_130], mixed40: [5_300] } }, ['B1 uniform40', 'B2 uniform40']],
    [{ warm: { uniform40: [4_080], mixed40: [5_910] } }, ['B1 mixed40', 'B2 mixed40', 'B8 10 a slot, mixed']],
    [{ nginx: peer }, ['B3 uniform40', 'B3 mixed40']],
    [{ published: [1.06] }, ['B8 10 a slot']],
    [{ small: [{ count: 3, makespanMs: 610, lastHost: 3 }] }, ['B9 3 jobs']],
    [{ gapsMs: { uniform40: [3.1], mixed40: [2] } }, ['slotGapMs p50']],
  ] as const)('fail where a gate is missed: %j', (change, ids) => expect(failed({ ...good, ...change })).toEqual(ids));

  test('a peer that is not installed is neither passed nor failed', () => {
    const rows = makespanRows({ ...good, haproxy: undefined });
    const missing = rows.filter(({ value }) => value === null);
    expect(missing.map(({ id, pass }) => [id, pass])).toEqual([
      ['B2 uniform40', null],
      ['B2 mixed40', null],
    ]);
    expect(missing[0]?.note).toContain('apt-get install haproxy');
  });

  test('each has an id of its own', () => {
    const ids = makespanRows(good).map(({ id }) => id);
    expect(new Set(ids).size).toBe(ids.length);
  });
});

test('the load balancers get every engine, one request at a time or without weights', () => {
  const o = { directory: '/d', socketPath: '/d/socket', ports: [11, 12] };
  expect(CONFIGS.haproxy(o).match(/server engine\d 127\.0\.0\.1:1\d maxconn 1/g)).toHaveLength(2);
  expect(CONFIGS.haproxy(o)).toContain('balance leastconn');
  expect(CONFIGS.nginx(o)).toContain('least_conn;\n    server 127.0.0.1:11;\n    server 127.0.0.1:12;');
});
