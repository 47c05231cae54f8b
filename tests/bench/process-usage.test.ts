import { execFile } from 'node:child_process';
import { expect, test } from 'vitest';
import { memoryMbIn, runMsIn, usageOf } from '../../scripts/bench/process-usage.ts';

test('a schedstat is nanoseconds on a CPU first', () => {
  expect(runMsIn('1500000 99 7\n')).toBe(1.5);
  expect(runMsIn('0 0 0\n')).toBe(0);
  expect(() => runMsIn('')).toThrow('not a schedstat');
  expect(() => runMsIn('1 2\n')).toThrow('not a schedstat');
});

test('resident memory is counted in KiB and told in MB', () => {
  expect(memoryMbIn('VmPeak:\t  900 kB\nVmRSS:\t   50000 kB\nRssAnon:\t 1 kB\n', 'VmRSS')).toBeCloseTo(51.2, 6);
  expect(() => memoryMbIn('Name:\tnode\nState:\tZ (zombie)\n', 'VmRSS')).toThrow('it has ended');
});

test('of two processes the one that works is told from the one that waits', async () => {
  const works = execFile(process.execPath, ['-e', 'console.log(1); for (;;) Math.sqrt(2)']);
  const waits = execFile(process.execPath, ['-e', 'console.log(1); setInterval(() => undefined, 1e6)']);
  try {
    // Their starts are over.
    await Promise.all([works, waits].map((child) => new Promise((resolve) => child.stdout?.once('data', resolve))));
    const pids = { works: works.pid ?? 0, waits: waits.pid ?? 0 };
    const used = await usageOf(pids, { windowMs: 1_500, signal: new AbortController().signal });
    expect(used.works.cpuPercent).toBeGreaterThan(3 * used.waits.cpuPercent);
    expect(used.waits.rssMb).toBeGreaterThan(10);
  } finally {
    const ended = [works, waits].map((child) => new Promise((resolve) => child.once('exit', resolve)));
    for (const child of [works, waits]) child.kill('SIGKILL');
    await Promise.all(ended);
  }
});
