import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import { AppError } from '../../../shared/errors.ts';
import { generate, ModelHost, never, omni, until } from './model-host.ts';

// Real processes: how long they take to start is up to the machine.
vi.setConfig({ testTimeout: 60_000 });

describe('an eviction', () => {
  test('falls back to release when the offload freed too little', async () => {
    await using host = await ModelHost.start([omni('a', ['--free-only-mib', '500']), omni('b')], { gpusMiB: [12_000] });
    (await host.admit('a'))[Symbol.dispose]();
    using lease = await host.admit('b');
    expect(lease.gpuNames).toHaveLength(1);
    expect(host.residency.slotFacts('a').state).toBe('released');
  });

  test('falls back to release when the engine refuses', async () => {
    await using host = await ModelHost.start([omni('a', ['--sleep-ack-error']), omni('b')], { gpusMiB: [12_000] });
    (await host.admit('a'))[Symbol.dispose]();
    using lease = await host.admit('b');
    expect(lease.gpuNames).toHaveLength(1);
    expect(host.residency.slotFacts('a').state).toBe('released');
  });

  test('never takes a pinned model', async () => {
    await using host = await ModelHost.start([omni('a', [], { pin: true }), omni('b')], { gpusMiB: [12_000] });
    await until(() => host.residency.slotFacts('a').isReady);
    await expect(host.admit('b')).rejects.toMatchObject({ code: 'GPU_OUT_OF_MEMORY' });
    expect(host.residency.slotFacts('a').state).toBe('ready');
  });
});

describe('a release', () => {
  test('kills a server that ignores SIGTERM, and its children, and its VRAM is back', async () => {
    await using host = await ModelHost.start([omni('a', ['--ignore-sigterm', '--orphan', '--setsid'])]);
    (await host.admit('a'))[Symbol.dispose]();
    const pids = host.pids();
    expect(pids.length).toBeGreaterThan(0);
    const gone = await host.residency.move('a', 'release', never);
    expect(gone).toMatchObject({ state: 'released', done: 'release' });
    expect(gone.vram).toMatchObject({ freeAfterMiB: 24_576, heldAfterMiB: 0 });
    expect(host.pids()).toEqual([]);
    expect(host.usedMiB()).toBe(0);
    expect(await readFile(join(host.directory, 'servers.json'), 'utf8')).not.toContain('"a"');
  });

  test('marks the GPU degraded while memory of a dead server does not come back', async () => {
    const slow = omni('a', ['--vram-linger-ms', '2500']);
    await using host = await ModelHost.start([slow], { times: { vramBackMs: 500 } });
    (await host.admit('a'))[Symbol.dispose]();
    await host.residency.move('a', 'release', never);
    expect(host.residency.gpuStatus()[0]).toMatchObject({ isDegraded: true });
    await expect(host.admit('a')).rejects.toMatchObject({ code: 'GPU_OUT_OF_MEMORY' });
    await until(() => host.residency.gpuStatus()[0]?.isDegraded === false);
    (await host.admit('a'))[Symbol.dispose]();
  });
});

describe('a server that dies', () => {
  test('in a job fails it with its last log lines, and comes back at the next admit', async () => {
    await using host = await ModelHost.start([omni('a', ['--crash-on', 'poison'])]);
    {
      using lease = await host.admit('a');
      const run = lease.run(generate({ prompt: 'poison' }), [], { signal: never, onStep: () => undefined });
      const error: unknown = await run.catch((failure: unknown) => failure);
      expect(error).toMatchObject({ code: 'MODEL_FAILED' });
      expect(String(error)).toMatch(/exited with code 1 while it worked on a job[^]*Segmentation fault/);
    }
    await until(() => host.residency.slotFacts('a').state === 'failed');
    expect(host.usedMiB()).toBe(0);
    expect(host.residency.slotFacts('a').error?.message).toContain('Segmentation fault');
    await until(() => host.residency.slotFacts('a').retryInMs === 0);
    using lease = await host.admit('a');
    await lease.run(generate(), [], { signal: never, onStep: () => undefined });
  });

  test('comes back by itself when it is preloaded', async () => {
    await using host = await ModelHost.start([omni('a', [], { preload: true })]);
    await until(() => host.residency.slotFacts('a').isReady);
    const [first] = host.pids();
    process.kill(first ?? 0, 'SIGKILL');
    await until(() => host.residency.modelStatus()[0]?.loads === 2);
    expect(host.pids()).toHaveLength(1);
    expect(host.pids()).not.toContain(first);
  });

  test('at start for a bad flag is not started again, and says which', async () => {
    await using host = await ModelHost.start([omni('a', ['--no-such-flag'])]);
    const error: unknown = await host.admit('a').catch((failure: unknown) => failure);
    expect(error).toBeInstanceOf(AppError);
    expect(String(error)).toMatch(/exited with code 2 before it was ready[^]*--no-such-flag/);
    expect(host.residency.slotFacts('a')).toMatchObject({ state: 'failed', isReady: false });
    expect(host.residency.slotFacts('a').retryInMs).toBeUndefined();
    await expect(host.admit('a')).rejects.toThrow('not started again by itself');
  });

  test('at start for want of memory is not started again', async () => {
    await using host = await ModelHost.start([omni('a', ['--oom-at-load'])]);
    await expect(host.admit('a')).rejects.toThrow(/out of memory/);
    expect(host.residency.slotFacts('a').retryInMs).toBeUndefined();
  });

  test('whose command is not there fails at once', async () => {
    const model = omni('a');
    const launch = { kind: 'owned' as const, command: ['/no/such/program'], args: [], env: {} };
    await using host = await ModelHost.start([{ ...model, launch }]);
    await expect(host.admit('a')).rejects.toThrow(/Cannot start \/no\/such\/program/);
    expect(host.residency.slotFacts('a').state).toBe('failed');
  });

  test('after a failed wake is ended', async () => {
    await using host = await ModelHost.start([omni('a', ['--wake-oom'])]);
    await host.residency.move('a', 'load', never);
    await host.residency.move('a', 'offload', never);
    await expect(host.residency.move('a', 'load', never)).rejects.toThrow(/Waking a failed/);
    expect(host.residency.slotFacts('a').state).toBe('failed');
    expect(host.usedMiB()).toBe(0);
  });
});
