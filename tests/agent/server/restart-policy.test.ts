import { describe, expect, test } from 'vitest';
import type { Failures } from '../../../agent/server/restart-policy.ts';
import { afterReady, isFatalExit, retryAfter } from '../../../agent/server/restart-policy.ts';

const MINUTE = 60_000;
const POLICY = { isFatal: false, random: 0.5, firstMs: 2_000 };
const runs = (...atMs: number[]): Failures => atMs.map((at) => ({ atMs: at, isStart: false }));
const starts = (...atMs: number[]): Failures => atMs.map((at) => ({ atMs: at, isStart: true }));

describe('the time of the next start', () => {
  const ROWS: [rule: string, failures: Failures, policy: Partial<typeof POLICY>, inMs: number | 'never'][] = [
    ['2 s after the first death', runs(0), {}, 2_000],
    ['twice as long after each further one', runs(0, 10, 20), {}, 8_000],
    ['60 s at most', runs(...Array(20).keys()), {}, 60_000],
    ['a quarter sooner by chance', runs(0), { random: 0 }, 1_500],
    ['or a quarter later', runs(0), { random: 1 }, 2_500],
    ['as configured', runs(0), { firstMs: 100 }, 100],
    ['after two failed starts', starts(0, MINUTE), {}, 4_000],
    ['never after three failed starts in 15 minutes', starts(0, MINUTE, 14 * MINUTE), {}, 'never'],
    ['but where one of them is longer ago', starts(0, MINUTE, 15 * MINUTE), {}, 8_000],
    ['deaths of a running server are no failed starts', [...runs(0, 1), ...starts(2)], {}, 8_000],
    ['a death after two failed starts is not the third', [...starts(0, 1), ...runs(2)], {}, 8_000],
    ['never where the cause stays', starts(0), { isFatal: true }, 'never'],
  ];
  test.each(ROWS)('%s', (_, failures, policy, inMs) => {
    const retry = retryAfter(failures, { ...POLICY, ...policy });
    expect(retry === 'never' ? retry : retry.atMs - (failures.at(-1)?.atMs ?? 0)).toBe(inMs);
  });
});

test('ten minutes of work make up for all that was before', () => {
  expect(afterReady(starts(0, 1), 10 * MINUTE - 1)).toHaveLength(2);
  expect(afterReady(starts(0, 1), 10 * MINUTE)).toEqual([]);
});

test.each([
  [78, true],
  [126, true],
  [127, true],
  [1, false],
  [137, false],
  [null, false],
])('exit %s is fatal: %s', (code, isFatal) => {
  expect(isFatalExit(code)).toBe(isFatal);
});
