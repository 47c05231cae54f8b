import { setImmediate } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { GpuLocks } from '../../../agent/model/gpu-locks.ts';

const never = new AbortController().signal;

test('one at a time per GPU, in the order of asking', async () => {
  const locks = new GpuLocks();
  const order: string[] = [];
  const hold = async (name: string, gpus: readonly string[]): Promise<void> => {
    using _lock = await locks.acquire(gpus, never);
    order.push(`${name} in`);
    await setImmediate();
    order.push(`${name} out`);
  };
  await Promise.all([hold('a', ['A']), hold('b', ['A']), hold('c', ['A'])]);
  expect(order).toEqual(['a in', 'a out', 'b in', 'b out', 'c in', 'c out']);
  expect(locks.isHeld('A')).toBe(false);
});

test('two that want the same GPUs in another order do not wait for each other', async () => {
  const locks = new GpuLocks();
  const both = async (gpus: readonly string[]): Promise<void> => {
    using _lock = await locks.acquire(gpus, never);
    await setImmediate();
  };
  await Promise.all([both(['A', 'B']), both(['B', 'A']), both(['B'])]);
  expect([locks.isHeld('A'), locks.isHeld('B')]).toEqual([false, false]);
});

test('who leaves while waiting leaves nothing locked, and lets nobody in before their turn', async () => {
  const locks = new GpuLocks();
  const first = await locks.acquire(['A', 'B'], never);
  const leaving = new AbortController();
  const left = locks.acquire(['A', 'B'], leaving.signal);
  leaving.abort(new Error('left'));
  await expect(left).rejects.toThrow('left');
  const order: string[] = [];
  const last = locks.acquire(['A', 'B'], never).then((lock) => {
    order.push('last in');
    lock[Symbol.dispose]();
  });
  await setImmediate();
  order.push('first out');
  first[Symbol.dispose]();
  await last;
  expect(order).toEqual(['first out', 'last in']);
  await setImmediate();
  expect([locks.isHeld('A'), locks.isHeld('B')]).toEqual([false, false]);
});

test('no GPU needs no lock', async () => {
  using _lock = await new GpuLocks().acquire([], never);
});
