import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { expect } from 'vitest';
import { ModelMove } from '../../shared/protocol.ts';
import { SimulatedHost } from '../../scripts/lib/simulated-host.ts';
import { eventually } from '../helpers/fleet.ts';
import { askAgent, modelOf, statusOf } from '../helpers/host-status.ts';
import { firstGpu, gpuTest, HOLDER } from './machine.ts';

const MODEL = 'black-forest-labs/FLUX.2-klein-4B';
const HELD_MIB = 3_072;

/**
 * The real agent on the real GPU. Its engine is the simulated one, which speaks vLLM-Omni's words but has no memory of a
 * GPU, below a process that has: so the engine claims that sleeping freed it all, and nvidia-smi shows that it did not.
 */
gpuTest('load, offload and release of a model report what the real nvidia-smi shows', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'gantry-gpu-'));
  const { uuid, nvidiaSmi } = firstGpu();
  await using host = await SimulatedHost.start({
    ...{ name: 'real', directory, config: { gpu: { nvidia_smi: nvidiaSmi } } },
    gpus: [{ name: 'as the engine sees it', totalMiB: 65_536, uuid }],
    models: {
      klein: {
        engine: 'vllm-omni',
        model: MODEL,
        command: ['python3', HOLDER, String(HELD_MIB), '--', resolve('dist/sim/vllm-omni'), 'serve'],
        args: ['--load-ms', '100', '--step-ms', '20'],
        env: { LD_LIBRARY_PATH: process.env['LD_LIBRARY_PATH'] ?? '' },
        vram: `${HELD_MIB}MiB`,
      },
    },
  });
  try {
    await eventually('the GPU is read', async () => (await statusOf(host)).snapshot.gpus[0]?.health === 'ok');
    const before = await freeMiB(host);
    const loaded = await move(host, 'model.load');
    expect(loaded.state, loaded.message).toBe('ready');
    const fellMiB = before - (await freeMiB(host));
    expect(fellMiB).toBeGreaterThanOrEqual(HELD_MIB);
    const { heldMiB } = await modelOf(host, 'klein');
    expect(Math.abs(heldMiB - fellMiB)).toBeLessThan(512);
    expect(loaded.vram?.heldAfterMiB).toBe(heldMiB);
    const offloaded = await move(host, 'model.offload');
    // The engine said that it sleeps and has freed everything.
    expect(Math.abs((offloaded.vram?.heldAfterMiB ?? 0) - heldMiB), offloaded.message).toBeLessThan(64);
    expect((await modelOf(host, 'klein')).heldMiB).toBe(heldMiB);
    await move(host, 'model.release');
    expect((await modelOf(host, 'klein')).state).toBe('released');
    await eventually('the memory is back', async () => Math.abs((await freeMiB(host)) - before) < 512);
    expect((await statusOf(host)).snapshot.gpus[0]?.isDegraded).toBe(false);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
});

async function move(host: SimulatedHost, method: string): Promise<ModelMove> {
  return ModelMove.parse(await askAgent(host, method, { model: MODEL }));
}

async function freeMiB(host: SimulatedHost): Promise<number> {
  const { snapshot } = await statusOf(host);
  return snapshot.gpus[0]?.freeMiB ?? 0;
}
