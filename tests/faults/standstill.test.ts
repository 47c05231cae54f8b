import { expect, test } from 'vitest';
import { Standstill } from './standstill.ts';

test('what a process did not see of the time is counted', () => {
  using standstill = new Standstill();
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1_000);
  expect(standstill.ms).toBeGreaterThan(800);
});
