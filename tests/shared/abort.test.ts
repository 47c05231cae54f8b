import { getEventListeners } from 'node:events';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Deadline, onAbort, pause, untilAborted } from '../../shared/abort.ts';

let warnings: string[];
const onWarning = (warning: Error): void => void warnings.push(warning.name);
beforeEach(() => {
  warnings = [];
  process.on('warning', onWarning);
});
afterEach(() => void process.off('warning', onWarning));

test('many waits on one signal are no leak: no warning, and each takes its listener away', async () => {
  const { signal } = new AbortController();
  const ends: (() => void)[] = [];
  const waits = Array.from({ length: 50 }, () => untilAborted(new Promise<void>((end) => ends.push(end)), signal));
  const deadlines = Array.from({ length: 50 }, () => new Deadline({ ms: 60_000, signal }));
  const listeners = Array.from({ length: 50 }, () => onAbort(signal, () => undefined));
  expect(getEventListeners(signal, 'abort')).toHaveLength(150);
  for (const end of ends) end();
  for (const each of [...deadlines, ...listeners]) each[Symbol.dispose]();
  await Promise.all(waits);
  await new Promise((turn) => setImmediate(turn)); // warnings come a turn later
  expect(getEventListeners(signal, 'abort')).toEqual([]);
  expect(warnings).toEqual([]);
});

test('nor are many pauses', async () => {
  const stop = new AbortController();
  const pauses = Array.from({ length: 50 }, () => pause(60_000, stop.signal));
  stop.abort();
  await Promise.all(pauses);
  await new Promise((turn) => setImmediate(turn));
  expect(getEventListeners(stop.signal, 'abort')).toEqual([]);
  expect(warnings).toEqual([]);
});

test('a wait ends with its signal, and the work goes on', async () => {
  const stop = new AbortController();
  const work = new Promise<string>((end) => setImmediate(() => end('done')));
  const wait = untilAborted(work, stop.signal);
  stop.abort(new Error('enough'));
  await expect(wait).rejects.toThrow('enough');
  await expect(untilAborted(work, stop.signal)).rejects.toThrow('enough');
  expect(await work).toBe('done');
  await pause(60_000, stop.signal); // returns early, without an error
});

test('a deadline tells its own end from that of its parent', async () => {
  using expired = new Deadline({ ms: 5 });
  await expect(untilAborted(new Promise(() => undefined), expired.signal)).rejects.toThrow('no answer within 5 ms');
  expect(expired.isExpired).toBe(true);
  const parent = new AbortController();
  using ended = new Deadline({ ms: 60_000, signal: parent.signal });
  parent.abort();
  expect([ended.signal.aborted, ended.isExpired]).toEqual([true, false]);
  using late = new Deadline({ ms: 60_000, signal: parent.signal });
  expect(late.signal.aborted).toBe(true);
});

test('a deadline restarts for its own time or another one, always from now, and never after its end', () => {
  vi.useFakeTimers();
  try {
    using deadline = new Deadline({ ms: 100 });
    const isExpiredAfter = (ms: number): boolean => {
      vi.advanceTimersByTime(ms);
      return deadline.isExpired;
    };
    expect(isExpiredAfter(99)).toBe(false);
    deadline.restart();
    expect(isExpiredAfter(99)).toBe(false);
    deadline.restart(300);
    expect(isExpiredAfter(299)).toBe(false);
    deadline.restart();
    expect(isExpiredAfter(99)).toBe(false);
    expect(isExpiredAfter(1)).toBe(true);
    const ended = new Deadline({ ms: 100 });
    ended[Symbol.dispose]();
    ended.restart();
    vi.advanceTimersByTime(1_000);
    expect(ended.isExpired).toBe(false);
  } finally {
    vi.useRealTimers();
  }
});

test('work that fails after its signal aborted fails unseen, also where nobody had waited yet', async () => {
  const seen: unknown[] = [];
  const onUnhandled = (reason: unknown): void => void seen.push(reason);
  process.on('unhandledRejection', onUnhandled);
  const work = new Promise<never>((_, fail) => setImmediate(() => fail(new Error('later'))));
  await expect(untilAborted(work, AbortSignal.abort(new Error('enough')))).rejects.toThrow('enough');
  for (let turn = 0; turn < 3; turn += 1) await new Promise((end) => setImmediate(end));
  process.off('unhandledRejection', onUnhandled);
  expect(seen).toEqual([]);
});
