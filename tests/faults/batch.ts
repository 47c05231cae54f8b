import { readFile } from 'node:fs/promises';
import type { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import type { SimulatedHost } from '../../scripts/lib/simulated-host.ts';
import type { HostPlan } from '../helpers/fleet.ts';
import { eventually, TestFleet, vllm } from '../helpers/fleet.ts';
import { modelOf } from '../helpers/host-status.ts';
import { agentConfig } from './scale.ts';

export const MODEL = 'black-forest-labs/FLUX.2-klein-4B';
/** What single calls and batches ask for. */
export const SMALL = { model: MODEL, width: 256, height: 256 };
/** Four steps of this long: an image takes 0.6 s, so that a fault hits one in the middle. */
const STEP_MS = 150;

type Flags = Record<string, number | string | boolean>;

/** A model that is loaded at the start of its agent; `flags` are the simulator's. */
export function loaded(flags: Flags = {}, keys: Record<string, unknown> = {}) {
  return { ...vllm(MODEL, { 'step-ms': STEP_MS, fork: true, ...flags }), preload: true, ...keys };
}

/** Hosts with the shipped settings times the factor, each with one model called klein. */
export function startFleet(hosts: Record<string, Flags | HostPlan['models']>): Promise<TestFleet> {
  return TestFleet.start(
    Object.entries(hosts).map(([name, models]) => ({
      name,
      models: isModels(models) ? models : { klein: loaded(models) },
      config: agentConfig(),
    })),
  );
}

function isModels(models: Flags | HostPlan['models']): models is HostPlan['models'] {
  return Object.values(models).some((value) => typeof value === 'object');
}

/** What comes before the fault has no bound of its own: a busy machine may take its time. */
const PATIENCE_MS = 60_000;

export async function untilReady(fleet: TestFleet, alias = 'klein'): Promise<void> {
  for (const host of fleet.hosts) {
    const isReady = async (): Promise<boolean> => (await modelOf(host, alias)).state === 'ready';
    await eventually(`${alias} is ready on ${host.name}`, isReady, PATIENCE_MS);
  }
}

/** A job is in its engine at this moment, and a little while longer: an image takes 0.6 s. */
export async function untilRunning(host: SimulatedHost, alias = 'klein'): Promise<void> {
  await eventually(`a job runs on ${host.name}`, async () => {
    return (await modelOf(host, alias)).slots.some(({ phase, freeInMs }) => phase === 'running' && freeInMs > 200);
  });
}

/** So many prompts, 20 at most, each of them `images_per_prompt` times. */
export async function startBatch(
  bridge: BridgeClient,
  images = 10,
  more: Record<string, unknown> = {},
): Promise<string> {
  const prompts = Array.from({ length: images }, (_, index) => `picture ${index}`);
  const answer = await bridge.ask('batch_generate', { ...SMALL, prompts, wait_seconds: 0, ...more });
  return String(answer['batch_id']);
}

export async function progressOf(bridge: BridgeClient, id: string): Promise<{ state: string; completed: number }> {
  const answer = await bridge.ask('get_job', { id, wait_seconds: 0 });
  const { completed } = answer['progress'] as { completed: number }; // shape of the tool's schema
  return { state: String(answer['state']), completed };
}

export async function untilDone(bridge: BridgeClient, id: string, atLeast: number): Promise<void> {
  const isSo = async (): Promise<boolean> => (await progressOf(bridge, id)).completed >= atLeast;
  await eventually(`${atLeast} images done`, isSo, PATIENCE_MS);
}

/** Waits for the end of a batch; its state then. */
export async function untilEnded(bridge: BridgeClient, id: string): Promise<string> {
  return await eventually(
    'the batch ends',
    async () => {
      const { state } = await progressOf(bridge, id);
      return state === 'running' ? undefined : state;
    },
    90_000,
  );
}

/** The server of a host's model: its worker, which holds the VRAM, and its leader, which answers. */
export async function serverOf(host: {
  computePids: () => Promise<number[]>;
}): Promise<{ leader: number; worker: number }> {
  const worker = await eventually('a server holds VRAM', async () => (await host.computePids())[0]);
  const leader = Number(/\) \S (\d+)/.exec(await readFile(`/proc/${worker}/stat`, 'utf8'))?.[1]);
  return { leader, worker };
}
