import { expect, test } from 'vitest';
import { Ledger } from '../../scripts/sim/lib/ledger.ts';
import type { SimulatedHost } from '../../scripts/lib/simulated-host.ts';
import { eventually, TestFleet, vllm } from '../helpers/fleet.ts';
import { modelOf, statusOf } from '../helpers/host-status.ts';

const FIRST = 'black-forest-labs/FLUX.2-klein-4B';
const SECOND = 'Tongyi-MAI/Z-Image-Turbo';
const SMALL = { width: 256, height: 256 };
const TWO = { gpuMiB: [24_564, 24_564] };
const LARGE = { 'weights-mib': 15_000, 'peak-mib': 16_000 };

test('two models that do not fit on one GPU have one each, and work at the same time', async () => {
  const models = { klein: vllm(FIRST, { ...LARGE, 'step-ms': 300 }), z: vllm(SECOND, { ...LARGE, 'step-ms': 150 }) };
  await using fleet = await TestFleet.start([{ name: 'a', ...TWO, models }]);
  const bridge = await fleet.bridge();
  const host = fleet.host('a');
  const calls = [FIRST, SECOND].map((model) =>
    bridge.ask('batch_generate', { model, prompts: ['a', 'b', 'c', 'd', 'e', 'f'], ...SMALL, wait_seconds: 0 }),
  );
  await Promise.all(calls);
  await eventually(
    'both run at the same moment',
    async () => {
      const { snapshot } = await statusOf(host);
      return snapshot.models.every(({ slots }) => slots.some(({ phase }) => phase === 'running'));
    },
    30_000,
  );
  expect(gpusInUse(host)).toEqual(['GPU-a-0', 'GPU-a-1']);
  await eventually('all pictures', async () => (await pictures(fleet)) === 12, 60_000);
  const { snapshot } = await statusOf(host);
  expect(snapshot.models.map(({ gpus }) => gpus.length)).toEqual([1, 1]);
  expect(host.events('model-released'), 'nobody had to go').toEqual([]);
});

test('replicas: auto gives a model a server on each GPU, and a batch uses both', async () => {
  const klein = { ...vllm(FIRST, { ...LARGE, 'step-ms': 200 }), replicas: 'auto' };
  await using fleet = await TestFleet.start([{ name: 'a', ...TWO, models: { klein } }]);
  const bridge = await fleet.bridge();
  const host = fleet.host('a');
  const prompts = Array.from({ length: 12 }, (_, index) => `picture ${index}`);
  await bridge.ask('batch_generate', { prompts, ...SMALL, wait_seconds: 0 });
  await eventually(
    'both slots run at the same moment',
    async () => {
      const { slots } = await modelOf(host, 'klein');
      return slots.length === 2 && slots.every(({ phase }) => phase === 'running');
    },
    30_000,
  );
  expect(gpusInUse(host)).toEqual(['GPU-a-0', 'GPU-a-1']);
  await eventually('all pictures', async () => (await pictures(fleet)) === 12, 60_000);
});

test('a server over two GPUs holds its share of each, and needs both to be free', async () => {
  const models = {
    wide: { ...vllm(FIRST, { 'weights-mib': 30_000, 'peak-mib': 32_000 }), gpus: 2 },
    z: vllm(SECOND, { ...LARGE }),
  };
  await using fleet = await TestFleet.start([{ name: 'a', ...TWO, models }]);
  const bridge = await fleet.bridge();
  const host = fleet.host('a');
  await bridge.ask('generate_image', { prompt: 'a', model: SECOND, ...SMALL });
  expect(gpusInUse(host)).toHaveLength(1);
  await bridge.ask('generate_image', { prompt: 'b', model: FIRST, ...SMALL, wait_seconds: 45 });
  expect((await modelOf(host, 'wide')).gpus).toHaveLength(2);
  for (const uuid of ['GPU-a-0', 'GPU-a-1'])
    expect(new Ledger(host.ledger).usedMiB(uuid)).toBeGreaterThanOrEqual(15_000);
  expect(
    host
      .events('model-offloaded')
      .concat(host.events('model-released'))
      .map(({ slotId }) => slotId),
  ).toContain('z');
});

test('on a GPU that is cut into instances a model gets one that it fits on, and status and release follow it', async () => {
  const instance = { computeInstance: 0, profile: '1g.10gb', totalMiB: 9_856 };
  const mig = [
    { uuid: 'MIG-small', index: 0, gpuInstance: 1, ...instance, totalMiB: 4_864 },
    { uuid: 'MIG-large', index: 1, gpuInstance: 2, ...instance },
  ];
  await using fleet = await TestFleet.start([
    {
      name: 'a',
      gpus: [{ name: 'Simulated H100', totalMiB: 81_559, mig }],
      models: { klein: vllm(FIRST, { 'weights-mib': 5_500, 'peak-mib': 7_000 }) },
    },
  ]);
  const bridge = await fleet.bridge();
  const host = fleet.host('a');
  const made = await bridge.ask('generate_image', { prompt: 'a fox', ...SMALL, wait_seconds: 45 });
  expect(made['status']).toBe('success');
  expect(gpusInUse(host)).toEqual(['MIG-large']);
  const model = await modelOf(host, 'klein');
  expect(model).toMatchObject({ gpus: ['MIG-large'], heldMiB: 5_500 });
  const { snapshot } = await statusOf(host);
  expect(snapshot.gpus.find(({ uuid }) => uuid === 'MIG-large')).toMatchObject({ oursMiB: 5_500, health: 'ok' });
  await bridge.ask('release_gpu', { model: FIRST, wait_seconds: 45 });
  expect(gpusInUse(host)).toEqual([]);
  expect((await statusOf(host)).snapshot.gpus.every(({ isDegraded }) => !isDegraded)).toBe(true);
});

/** GPUs, or instances of one, on which some process holds memory now. */
function gpusInUse(host: SimulatedHost): string[] {
  const held = new Ledger(host.ledger).entries().filter(({ usedMiB }) => usedMiB > 0);
  return [...new Set(held.map(({ gpuUuid }) => gpuUuid))].sort();
}

async function pictures(fleet: TestFleet): Promise<number> {
  return (await fleet.outputFiles()).filter((name) => name.endsWith('.png')).length;
}
