import { expect, test } from 'vitest';
import { spread } from '../../scripts/bench/start-up.ts';

test.each([
  [[3, 1, 2], { p50: 2, min: 1 }],
  [[4, 1, 2, 3], { p50: 2.5, min: 1 }],
  [[7], { p50: 7, min: 7 }],
])('of %j the spread is %j', (values, expected) => {
  expect(spread(values)).toEqual(expected);
});
