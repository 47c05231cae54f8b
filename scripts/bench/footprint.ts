import { execa } from 'execa';
import { join } from 'node:path';
import { pause } from '../../shared/abort.ts';
import type { SimulatedHostOptions } from '../lib/simulated-host.ts';
import { SimulatedHost } from '../lib/simulated-host.ts';
import { BusyGpu } from './busy-gpu.ts';
import { PeerProcess } from './peer-process.ts';
import type { Usage } from './process-usage.ts';
import { usageOf } from './process-usage.ts';
import type { BenchPart, BenchRow, BenchStage } from './row.ts';
import { absoluteRow, figure } from './row.ts';

const WINDOW_MS = 40_000;
/** The start is over by then, and with it the garbage it made. */
const SETTLE_MS = 5_000;
const HOUR = { sample_interval: '1h', silence: '3h' };

/** An idle agent, what of it is the sampling of the GPU, and a bare node, all in one window. */
export const FOOTPRINT: BenchPart = {
  ids: ['M1', 'M2'],
  title: `an idle agent for ${WINDOW_MS / 1_000} s, with and without sampling`,
  run: async (stage) => rowsOf(await measure(stage)),
};

type Measured = Record<'agent' | 'quiet' | 'unsampled' | 'node', Usage>;

async function measure({ directory, say, signal }: BenchStage): Promise<Measured> {
  const node = execa('node', ['-e', 'setInterval(() => undefined, 1e9)'], { reject: false });
  try {
    await using agent = await SimulatedHost.start(hostOptions('agent', directory));
    await using quiet = await SimulatedHost.start(hostOptions('quiet', directory));
    await using unsampled = await SimulatedHost.start(hostOptions('unsampled', directory, HOUR));
    await using _busy = new BusyGpu([agent, quiet, unsampled]);
    const { peers } = await PeerProcess.start('subscribers.ts', [agent.url, agent.token, '2'], { signal });
    await using _peers = peers;
    await pause(SETTLE_MS, signal);
    peers.tell('count');
    await peers.next();
    const pids = { agent: agent.pid, quiet: quiet.pid, unsampled: unsampled.pid, node: node.pid ?? 0 };
    const used = await usageOf(pids, { windowMs: WINDOW_MS, signal });
    peers.tell('count');
    const frames = Number(await peers.next());
    say(`each subscriber had ${figure(frames / 2 / (WINDOW_MS / 1_000))} deltas a second`);
    if (frames < WINDOW_MS / 1_000) throw new Error(`2 subscribers had only ${frames} deltas: the GPU was not sampled`);
    return used;
  } finally {
    node.kill('SIGKILL');
    await node;
  }
}

/** Two models, neither loaded. */
function hostOptions(name: string, directory: string, gpu: Record<string, string> = {}): SimulatedHostOptions {
  return {
    name,
    directory: join(directory, name),
    gpus: [{ name: 'Simulated GPU', totalMiB: 81_559 }],
    models: {
      klein: { engine: 'vllm-omni', model: 'black-forest-labs/FLUX.2-klein-4B', vram: '8GiB' },
      step1x: { engine: 'step1x-edit', model: 'stepfun-ai/Step1X-Edit', capabilities: ['edit'] },
    },
    config: { gpu },
  };
}

function rowsOf({ agent, quiet, unsampled, node }: Measured): BenchRow[] {
  return [
    absoluteRow({
      id: 'M1',
      name: 'agent, idle: CPU',
      value: agent.cpuPercent,
      unit: '%',
      reference: `bare node: ${figure(node.cpuPercent)} %`,
      most: 0.5,
      note: `${WINDOW_MS / 1_000} s, nvidia-smi loop at 1 Hz with other values each time, 2 subscribers; of one core, the process alone.`,
    }),
    absoluteRow({
      id: 'M1',
      name: 'agent, idle: memory',
      value: agent.rssMb,
      unit: 'MB',
      reference: `bare node: ${figure(node.rssMb)} MB`,
      most: 60,
    }),
    absoluteRow({
      id: 'M2',
      name: 'sampling at 1 Hz: CPU',
      value: quiet.cpuPercent - unsampled.cpuPercent,
      unit: '%',
      reference: `without sampling: ${figure(unsampled.cpuPercent)} %`,
      most: 0.1,
      note: 'Of one core, in the agent; what nvidia-smi and the driver cost is not in it. Difference of two agents without subscribers in the window of M1.',
    }),
  ];
}
