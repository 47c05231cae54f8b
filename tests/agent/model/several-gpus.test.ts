import { expect, test, vi } from 'vitest';
import type { ConfiguredModel } from '../../../agent/configured-model.ts';
import { AppError } from '../../../shared/errors.ts';
import type { GenerateRequest } from '../../../shared/job.ts';
import { generate, ModelHost, never, omni, QUIET, until } from './model-host.ts';

// Real processes: how long they take to start is up to the machine.
vi.setConfig({ testTimeout: 120_000 });

const CARD_MIB = 24_000;

function gpusOf(host: ModelHost, slotId: string): readonly string[] {
  return host.residency.slotFacts(slotId).gpus;
}

test('a host with four GPUs uses four, a replica on each, and no replica makes room for another', async () => {
  const models = [omni('a', ['--weights-mib', '16000'], { replicas: 'auto', vramMiB: 16_000 })];
  await using host = await ModelHost.start(models, { gpusMiB: Array.from({ length: 4 }, () => CARD_MIB) });
  const slotIds = host.residency.slots.map(({ slotId }) => slotId);
  expect(slotIds).toEqual(['a', 'a#2', 'a#3', 'a#4']);
  const leases = await Promise.all(slotIds.map((slotId) => host.admit(slotId)));
  const made = await Promise.all(leases.map((lease) => lease.run(generate(), [], QUIET)));
  expect(made).toHaveLength(4);
  expect([0, 1, 2, 3].map((gpu) => host.usedMiB(gpu))).toEqual([16_000, 16_000, 16_000, 16_000]);
  for (const lease of leases) lease[Symbol.dispose]();
  expect(host.residency.modelStatus()[0]).toMatchObject({ loads: 4, offloads: 0, releases: 0 });
});

test('more replicas than there is room for: the last one waits for nobody and evicts nobody', async () => {
  const models = [omni('a', ['--weights-mib', '16000'], { replicas: 2, vramMiB: 16_000 })];
  await using host = await ModelHost.start(models, { gpusMiB: [CARD_MIB] });
  (await host.admit('a'))[Symbol.dispose]();
  await expect(host.admit('a#2')).rejects.toMatchObject({ code: 'GPU_OUT_OF_MEMORY' });
  expect(host.state('a')).toBe('ready');
});

test('a server over two GPUs takes its share of each, and four GPUs have two of them', async () => {
  const double = omni('double', ['--weights-mib', '32000'], { gpuCount: 2, replicas: 'auto', vramMiB: 32_000 });
  await using host = await ModelHost.start([double], { gpusMiB: Array.from({ length: 4 }, () => CARD_MIB) });
  expect(host.residency.slots.map(({ slotId }) => slotId)).toEqual(['double', 'double#2']);
  const leases = await Promise.all([host.admit('double'), host.admit('double#2')]);
  expect([0, 1, 2, 3].map((gpu) => host.usedMiB(gpu))).toEqual([16_000, 16_000, 16_000, 16_000]);
  expect(new Set([...gpusOf(host, 'double'), ...gpusOf(host, 'double#2')]).size).toBe(4);
  expect(host.residency.slotFacts('double').heldMiB).toBe(32_000);
  for (const lease of leases) lease[Symbol.dispose]();
});

test('a server over two GPUs evicts what is idle on both, and its own offload gives both back', async () => {
  const models = [
    omni('a', ['--weights-mib', '14000'], { vramMiB: 14_000 }),
    omni('b', ['--weights-mib', '14000'], { vramMiB: 14_000 }),
    omni('double', ['--weights-mib', '36000', '--residual-mib', '1000'], { gpuCount: 2, vramMiB: 36_000 }),
  ];
  await using host = await ModelHost.start(models, { gpusMiB: [CARD_MIB, CARD_MIB] });
  for (const alias of ['a', 'b']) (await host.admit(alias))[Symbol.dispose]();
  expect(gpusOf(host, 'a')).not.toEqual(gpusOf(host, 'b'));
  (await host.admit('double'))[Symbol.dispose]();
  expect(['a', 'b'].map((alias) => host.state(alias))).not.toContain('ready');
  expect([0, 1].map((gpu) => host.usedMiB(gpu) <= CARD_MIB)).toEqual([true, true]);
  const leases = await Promise.all([host.admit('a'), host.admit('b')]);
  expect(host.state('double')).not.toBe('ready');
  expect([0, 1].map((gpu) => host.usedMiB(gpu) <= CARD_MIB)).toEqual([true, true]);
  for (const lease of leases) lease[Symbol.dispose]();
});

test('random jobs of five models on two GPUs: all end, nobody waits for ever, no card is ever over-full', async () => {
  const sized = (alias: string, sizeMiB: number, more: Partial<ConfiguredModel> = {}): ConfiguredModel => {
    const args = ['--weights-mib', `${sizeMiB}`, '--peak-mib', `${sizeMiB + 1_500}`, '--generate-ms', '20'];
    return omni(alias, args, { vramMiB: sizeMiB, ...more });
  };
  const models = [
    sized('a', 10_000),
    sized('b', 12_000, { offload: 'none' }),
    sized('c', 16_000),
    sized('d', 18_000),
    sized('both', 36_000, { gpuCount: 2 }),
  ];
  await using host = await ModelHost.start(models, { gpusMiB: [CARD_MIB, CARD_MIB] });
  const over: string[] = [];
  let isOver = false;
  const watching = until(() => {
    for (const gpu of [0, 1]) {
      if (host.usedMiB(gpu) > CARD_MIB) over.push(`GPU ${gpu} held ${host.usedMiB(gpu)} MiB`);
    }
    return isOver;
  }, 110_000);

  let seed = 7;
  const random = (below: number): number => {
    seed = (seed * 1_103_515_245 + 12_345) % 2 ** 31;
    return Math.floor((seed / 2 ** 31) * below);
  };
  const aliases = Array.from({ length: 24 }, () => models[random(models.length)]?.alias ?? 'a');
  let done = 0;
  // Four at a time, as the slots of several bridges would: each asks again where another model was in use.
  const worker = async (): Promise<void> => {
    for (let alias = aliases.pop(); alias !== undefined; alias = aliases.pop()) {
      await asOften(host, { alias, request: generate({ model: `test/${alias}` }) });
      done += 1;
    }
  };
  await Promise.all(Array.from({ length: 4 }, worker));
  isOver = true;
  await watching;
  expect(done).toBe(24);
  expect(over).toEqual([]);
});

/** One job; where running jobs are in the way it comes back after a moment, as the exchange would grant it then. */
async function asOften(
  host: ModelHost,
  { alias, request }: { alias: string; request: GenerateRequest },
): Promise<void> {
  for (;;) {
    try {
      using lease = await host.residency.admit(alias, { megapixels: 0.25, signal: never, onDetail: () => undefined });
      await lease.run(request, [], QUIET);
      return;
    } catch (error) {
      if (!(error instanceof AppError) || error.code !== 'GPU_BUSY') throw error;
    }
    const startMs = performance.now();
    await until(() => performance.now() - startMs > 50);
  }
}
