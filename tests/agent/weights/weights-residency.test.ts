import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import type { ConfiguredModel } from '../../../agent/configured-model.ts';
import { ModelHost, omni, until } from '../model/model-host.ts';

// Real processes: how long they take to start is up to the machine.
vi.setConfig({ testTimeout: 120_000 });

let cache: string;
beforeAll(async () => void (cache = await mkdtemp(join(tmpdir(), 'gantry-hub-'))));
afterAll(() => rm(cache, { recursive: true, force: true, maxRetries: 3 }));

function absent(alias: string, sim: Record<string, string>, more: Partial<ConfiguredModel> = {}): ConfiguredModel {
  const model = omni(alias, [], more);
  if (model.launch.kind !== 'owned') throw new Error('it is owned');
  const download = [resolve('dist/sim/hf'), 'download'];
  return { ...model, launch: { ...model.launch, download, env: { HF_HOME: cache, ...sim } } };
}

test('a preload downloads first, holds no GPU meanwhile, and has its whole start deadline afterwards', async () => {
  const slow = absent('slow', { GANTRY_SIM_HF_MIB: '36', GANTRY_SIM_HF_MIB_PER_S: '6' }, { preload: true });
  await using host = await ModelHost.start([slow, omni('b')], { times: { startDeadlineMs: 4_000 } });
  await until(() => host.residency.modelStatus().some(({ download }) => (download?.doneMiB ?? 0) > 0));
  expect(host.residency.modelStatus()[0]).toMatchObject({ alias: 'slow', state: 'loading', heldMiB: 0 });
  expect(host.residency.slotFacts('slow').download?.text).toMatch(/^downloading \d+ of 36 MiB/);
  await host.run('b');
  expect(host.state('slow')).toBe('released');
  await until(() => host.state('slow') === 'ready');
  expect(host.residency.slotFacts('slow').download).toBeUndefined();
});

test('what keeps weights away is what a job for them is told', async () => {
  const gated = absent('gated', { GANTRY_SIM_HF_FAULT: 'gated' });
  await using host = await ModelHost.start([gated]);
  await expect(host.admit('gated')).rejects.toThrow(/test\/gated is gated/);
  expect(host.residency.slotFacts('gated').download).toMatchObject({ isFailed: true });
  expect(host.residency.modelStatus()[0]).toMatchObject({
    state: 'failed',
    detail: expect.stringContaining('gated') as string,
  });
});
