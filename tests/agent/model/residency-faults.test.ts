import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { AppError } from '../../../shared/errors.ts';
import { ModelHost, omni, step1x, until } from './model-host.ts';

// Real processes: how long they take to start is up to the machine.
vi.setConfig({ testTimeout: 120_000 });

const failureOf = (promise: Promise<unknown>): Promise<unknown> => promise.catch((error: unknown) => error);

let host: ModelHost;
beforeAll(async () => {
  const launch = (command: string[]) => ({
    kind: 'owned' as const,
    command,
    args: [],
    env: {},
    download: 'none' as const,
  });
  const models = [
    omni('stubborn', ['--ignore-sigterm', '--orphan', '--setsid']),
    omni('frail', ['--crash-on', 'poison', '--sleep-ms', '800']),
    omni('bad', ['--no-such-flag']),
    omni('hungry', ['--oom-at-load']),
    omni('broken', ['--wake-oom']),
    { ...omni('absent'), launch: launch(['/no/such/program']) },
    step1x(['--generate-ms', '3000']),
  ];
  host = await ModelHost.start(models, { gpusMiB: [80_000] });
});
afterAll(() => host[Symbol.asyncDispose]());

describe('a release', () => {
  test('kills a server that ignores SIGTERM, and its children, and its VRAM is back', async () => {
    (await host.admit('stubborn'))[Symbol.dispose]();
    expect(host.pids().length).toBeGreaterThan(0);
    const gone = await host.move('stubborn', 'release');
    expect(gone).toMatchObject({ state: 'released', done: 'release' });
    expect(gone.vram).toMatchObject({ freeAfterMiB: 80_000, heldAfterMiB: 0 });
    expect(host.pids()).toEqual([]);
    expect(host.usedMiB()).toBe(0);
    expect(await readFile(join(host.directory, 'servers.json'), 'utf8')).not.toContain('"stubborn"');
  });

  test('marks the GPU degraded while memory of a dead server does not come back', async () => {
    const slow = omni('a', ['--vram-linger-ms', '600000']);
    await using degraded = await ModelHost.start([slow], { times: { vramBackMs: 300 } });
    (await degraded.admit('a'))[Symbol.dispose]();
    await degraded.move('a', 'release');
    expect(degraded.residency.gpuStatus()[0]).toMatchObject({ isDegraded: true });
    await expect(degraded.admit('a')).rejects.toMatchObject({ code: 'GPU_OUT_OF_MEMORY' });
    degraded.returnMemory();
    await until(() => degraded.residency.gpuStatus()[0]?.isDegraded === false);
    (await degraded.admit('a'))[Symbol.dispose]();
  });
});

describe('a server that dies', () => {
  test('in a job fails it with its last log lines, and comes back at the next admit', async () => {
    const error = await failureOf(host.run('frail', { prompt: 'poison' }));
    expect(error).toMatchObject({ code: 'MODEL_FAILED' });
    expect(String(error)).toMatch(/exited with code 1 while it worked on a job[^]*Segmentation fault/);
    await until(() => host.state('frail') === 'failed');
    expect(host.usedMiB()).toBe(0);
    expect(host.residency.slotFacts('frail').error?.message).toContain('Segmentation fault');
    await until(() => host.residency.slotFacts('frail').retryInMs === 0);
    await host.run('frail');
  });

  test('in an offload fails that, and is released by who asks', async () => {
    await host.move('frail', 'load');
    const away = failureOf(host.move('frail', 'offload'));
    await until(() => host.state('frail') === 'offloading');
    process.kill(host.pids()[0] ?? NaN, 'SIGKILL');
    expect(String(await away)).toMatch(/AppError: The server of frail was ended by SIGKILL\./);
    expect(host.state('frail')).toBe('failed');
    expect(host.usedMiB()).toBe(0);
    expect(await host.move('frail', 'release')).toMatchObject({ state: 'released' });
  });

  test('while its own release looks at it leaves no GPU degraded', async () => {
    await host.move('frail', 'load');
    const [pid] = host.pids();
    const away = host.move('frail', 'release');
    await until(() => host.state('frail') === 'releasing');
    process.kill(pid ?? NaN, 'SIGKILL');
    expect(await away).toMatchObject({ state: 'released' });
    expect(host.residency.gpuStatus()[0]).toMatchObject({ isDegraded: false });
  });

  test('in the edit that ends its load says how it died, not that a socket hung up', async () => {
    const load = failureOf(host.move('step1x', 'load'));
    await until(() => host.pids().length > 0);
    process.kill(host.pids()[0] ?? NaN, 'SIGKILL');
    expect(String(await load)).toMatch(/The server of step1x was ended by SIGKILL before it was ready\./);
    expect(host.state('step1x')).toBe('failed');
  });

  test('comes back by itself when it is preloaded', async () => {
    await using other = await ModelHost.start([omni('a', [], { preload: true })]);
    await until(() => other.residency.slotFacts('a').isReady);
    const [first] = other.pids();
    process.kill(first ?? NaN, 'SIGKILL');
    await until(() => other.residency.modelStatus()[0]?.loads === 2);
    expect(other.pids()).toHaveLength(1);
    expect(other.pids()).not.toContain(first);
  });

  test('at start for a bad flag is not started again, and says which', async () => {
    const error = await failureOf(host.admit('bad'));
    expect(error).toBeInstanceOf(AppError);
    expect(String(error)).toMatch(/exited with code 2 before it was ready[^]*--no-such-flag/);
    expect(host.residency.slotFacts('bad')).toMatchObject({ state: 'failed', isReady: false });
    expect(host.residency.slotFacts('bad').retryInMs).toBeUndefined();
    await expect(host.admit('bad')).rejects.toThrow('not started again by itself');
  });

  test('at start for want of memory is not started again', async () => {
    await expect(host.admit('hungry')).rejects.toThrow(/out of memory/);
    expect(host.residency.slotFacts('hungry').retryInMs).toBeUndefined();
  });

  test('whose command is not there fails at once', async () => {
    await expect(host.admit('absent')).rejects.toThrow(/\/no\/such\/program was not found/);
    expect(host.state('absent')).toBe('failed');
  });

  test('after a failed wake is ended', async () => {
    await host.move('broken', 'load');
    await host.move('broken', 'offload');
    await expect(host.move('broken', 'load')).rejects.toThrow(/Waking broken failed/);
    expect(host.state('broken')).toBe('failed');
    expect(host.usedMiB()).toBe(0);
  });
});

test('nothing survives a shutdown, whatever the server is doing', async () => {
  const states = ['loading', 'ready', 'busy', 'offloading', 'releasing'] as const;
  const left = await Promise.all(states.map(async (when) => [when, ...(await leftAfterShutdown(when))]));
  expect(left).toEqual(states.map((when) => [when]));
});

/** Pids that live and records that stay when the agent stopped in the middle of this. */
async function leftAfterShutdown(
  when: 'loading' | 'ready' | 'busy' | 'offloading' | 'releasing',
): Promise<(number | string)[]> {
  const slow = ['--load-ms', when === 'loading' ? '9000' : '20', '--generate-ms', '9000', '--sleep-ms', '9000'];
  const model = omni('a', [...slow, '--fork', '--setsid', '--exit-delay-ms', '150']);
  await using other = await ModelHost.start([model]);
  const work = [failureOf(other.move('a', 'load'))];
  if (when !== 'loading') await Promise.all(work);
  if (when === 'busy') work.push(failureOf(other.run('a')));
  if (when === 'offloading') work.push(failureOf(other.move('a', 'offload')));
  if (when === 'releasing') work.push(failureOf(other.move('a', 'release')));
  const isSo = (): boolean => other.state('a') === (when === 'busy' ? 'ready' : when) && other.pids().length > 0;
  await until(
    () => isSo() && (when !== 'busy' || (other.residency.vramView(new Set()).residents[0]?.inFlight ?? 0) > 1),
  );
  await other.residency.shutdown({ graceMs: 1_000 });
  await Promise.all(work);
  const records = await readFile(join(other.directory, 'servers.json'), 'utf8');
  return [...other.pids(), ...(records.includes('"a"') ? [records] : [])];
}
