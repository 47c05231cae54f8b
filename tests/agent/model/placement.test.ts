import { rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { ModelHost, omni, until } from './model-host.ts';

// Real processes: how long they take to start is up to the machine.
vi.setConfig({ testTimeout: 120_000 });

async function reshape(host: ModelHost, gpus: readonly unknown[]): Promise<void> {
  const file = join(host.directory, 'ledger/gpus.json');
  await writeFile(`${file}.new`, JSON.stringify(gpus));
  await rename(`${file}.new`, file);
}

test('a job that its own GPU can never give enough moves its idle server to one that can', async () => {
  await using host = await ModelHost.start([omni('a')], { gpusMiB: [12_000, 24_000] });
  host.plant(20_000, 1);
  await until(() => host.sampler.readings()[1]?.freeMiB === 4_000);
  (await host.admit('a'))[Symbol.dispose]();
  expect(host.residency.slotFacts('a').gpus).toEqual(['GPU-0']);
  host.plant(0, 1);
  // A size whose peak is more than the first card, and less than the second.
  const megapixels = [1, 2, 4, 8, 16, 32].find((each) => needOf(host, each) > 12_000) ?? 0;
  expect(needOf(host, megapixels)).toBeLessThan(23_000);
  (await host.admit('a', megapixels))[Symbol.dispose]();
  expect(host.residency.slotFacts('a')).toMatchObject({ state: 'ready', gpus: ['GPU-1'] });
  expect(host.usedMiB(0)).toBe(0);
  expect(host.pids()).toHaveLength(1);
});

/** The whole peak: what it needs on top, and what it holds. */
function needOf(host: ModelHost, megapixels: number): number {
  const { needMiB, elsewhereMiB } = host.residency.wantFor('a', { megapixels });
  return elsewhereMiB ?? needMiB;
}

test('a server of two GPUs is not put on the instances of a MIG GPU, and the refusal says so', async () => {
  const mig = ['a', 'b'].map((letter, index) => {
    const numbers = { index, gpuInstance: index + 3, computeInstance: 0 };
    return { uuid: `MIG-${letter}`, ...numbers, profile: '3g.20gb', totalMiB: 20_000 };
  });
  const double = omni('double', [], { gpuCount: 2, replicas: 'auto' });
  await using host = await ModelHost.start([double]);
  await reshape(host, [{ uuid: 'GPU-0', index: 0, name: 'Simulated H100', totalMiB: 40_000, mig }]);
  await until(() => host.sampler.readings().length === 2);
  const refusal: unknown = await host.admit('double').catch((error: unknown) => error);
  expect(refusal).toMatchObject({ code: 'GPU_OUT_OF_MEMORY' });
  expect(String(refusal)).toContain('A server cannot span several MIG instances.');
  expect(host.residency.slots).toHaveLength(1);
  expect(host.pids()).toEqual([]);
});

test('where host RAM and VRAM are one, an offload is a release, and what the host must keep is kept', async () => {
  const small = omni('a', ['--weights-mib', '300'], { vramMiB: 300 });
  await using host = await ModelHost.start([small], { ramReserveMiB: 1_000 });
  await reshape(host, [{ uuid: 'GPU-0', index: 0, name: 'Simulated GB10', totalMiB: 131_072, isUnified: true }]);
  await until(() => host.sampler.readings()[0]?.isUnified === true);
  await host.run('a');
  expect(host.residency.vramView(new Set())).toMatchObject({
    gpus: [{ reserveMiB: 1_000 }], // more than that of the GPU
    residents: [{ canOffload: false }],
  });
  const moved = await host.move('a', 'offload');
  expect(moved).toMatchObject({ done: 'release', state: 'released' });
  expect(moved.message).toContain('its GPU has no memory of its own');
  expect(host.pids()).toEqual([]);
});

test('a refusal names what nobody is listed for', async () => {
  const large = omni('a', [], { vramMiB: 20_000 });
  await using host = await ModelHost.start([large], { hidesProcesses: true });
  host.plant(9_000);
  await until(() => host.sampler.readings()[0]?.freeMiB === 15_576);
  const refusal: unknown = await host.admit('a').catch((error: unknown) => error);
  expect(String(refusal)).toMatch(/On GPU 0 9000 MiB are in use by nothing that nvidia-smi lists here/);
});

test('a victim that dies before its turn keeps its failures: an eviction forgives nothing', async () => {
  const models = ['x', 'y'].map((alias) => omni(alias, ['--sleep-ms', '1500', '--exit-delay-ms', '1500'])); // time to kill the other one
  const large = omni('z', ['--weights-mib', '16000'], { vramMiB: 16_000 });
  const times = { retryFirstMs: 60_000 };
  await using host = await ModelHost.start([...models, large], { times });
  const pids: Record<string, number | undefined> = {};
  for (const alias of ['x', 'y']) {
    (await host.admit(alias))[Symbol.dispose]();
    pids[alias] = host.pids().find((pid) => !Object.values(pids).includes(pid));
  }
  const admitted = host.admit('z');
  const isUp = (alias: string): boolean => host.state(alias) === 'ready';
  await until(() => !isUp('x') || !isUp('y'));
  const second = isUp('x') ? 'x' : 'y';
  process.kill(pids[second] ?? NaN, 'SIGKILL');
  (await admitted)[Symbol.dispose]();
  expect(host.state(second)).toBe('failed');
  expect(host.residency.slotFacts(second).retryInMs).toBeGreaterThan(10_000);
  await host.move(second, 'release'); // a person's does
  expect(host.state(second)).toBe('released');
});

test('what is offloaded beside a server that ran out of memory, and keeps its own, is released', async () => {
  const models = [omni('a', ['--oom', 'exception', '--oom-at', '1']), omni('b', ['--free-only-mib', '100'])];
  await using host = await ModelHost.start(models);
  (await host.admit('b'))[Symbol.dispose]();
  await host.run('a');
  expect(host.state('b')).toBe('released');
});
