import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { stringify } from 'yaml';
import { pause } from '../../../shared/abort.ts';
import { BridgeClient } from '../../lib/bridge-client.ts';
import type { SimulatedModel } from '../../lib/simulated-host.ts';
import { SimulatedHost } from '../../lib/simulated-host.ts';
import type { LoggedRequest } from '../../sim/lib/request-log.ts';
import { nowMs } from '../../sim/lib/request-log.ts';
import type { Span } from './engine-log.ts';
import { readImages, within } from './engine-log.ts';
import type { BenchJob } from './fixture.ts';
import { SPEEDS, stepMs } from './fixture.ts';

/** What is asked for: a usual size, because estimates reckon with it. */
export const SIDE = 1024;
/** What is drawn: drawing is the simulator's work and not what is measured. */
const DRAWN = '64x64';
const READY_WITHIN_MS = 30_000;
/** A call of the tool waits no longer. */
const CALL_SECONDS = 45;

/** A model of every host; its memory figures decide whether two of them fit on one GPU of 24 GiB. */
export type FleetModel = {
  alias: string;
  model: string;
  weightsMiB: number;
  loadMs: number;
  isPreloaded: boolean;
  offload?: 'none';
};
export type FleetJob = BenchJob & { model?: string };

export const ONE_MODEL: readonly FleetModel[] = [
  { alias: 'klein', model: 'black-forest-labs/FLUX.2-klein-4B', weightsMiB: 8_000, loadMs: 200, isPreloaded: true },
];

/** What a batch came to, by this process' clock: from the first call to the last answer, when all files are saved. */
export type BatchRun = Span & { makespanMs: number; answers: Record<string, unknown>[] };

/** The four hosts of the fixture: real agents with simulated engines, each of which logs its requests. */
export class BenchFleet implements AsyncDisposable {
  readonly hosts: readonly SimulatedHost[];
  readonly #directory: string;
  readonly #models: readonly FleetModel[];
  readonly #bridges: BridgeClient[] = [];
  #batches = 0;

  private constructor(directory: string, o: { hosts: readonly SimulatedHost[]; models: readonly FleetModel[] }) {
    this.#directory = directory;
    this.hosts = o.hosts;
    this.#models = o.models;
  }

  static async start(directory: string, models: readonly FleetModel[] = ONE_MODEL): Promise<BenchFleet> {
    await mkdir(directory, { recursive: true });
    const starts = await Promise.allSettled(
      SPEEDS.map((speed, index) => {
        const name = `host-${index}`;
        const home = join(directory, name);
        return SimulatedHost.start({
          name,
          directory: home,
          gpus: [{ name: `Simulated GPU of speed ${speed}`, totalMiB: 24_564 }],
          models: Object.fromEntries(models.map((each) => [each.alias, configOf(each, { speed, home })])),
        });
      }),
    );
    const hosts = starts.flatMap((start) => (start.status === 'fulfilled' ? [start.value] : []));
    const fleet = new BenchFleet(directory, { hosts, models });
    const failed = starts.find((start) => start.status === 'rejected');
    if (failed === undefined) return fleet;
    await fleet[Symbol.asyncDispose]();
    throw failed.reason;
  }

  /** A laptop with a token of its own, once every host has the first model ready. */
  async bridge(signal: AbortSignal): Promise<BridgeClient> {
    const name = `laptop-${this.#bridges.length}`;
    const home = join(this.#directory, name);
    await mkdir(home, { recursive: true });
    const hosts = await Promise.all(
      this.hosts.map(async (host) => ({ name: host.name, url: host.url, token: await host.addToken(name) })),
    );
    const config = join(home, 'bridge.yaml');
    await writeFile(config, stringify({ hosts, roots: [this.#directory] }), { mode: 0o600 });
    const bridge = await BridgeClient.start({ config, home, clientName: 'gantry-bench', stderr: 'ignore' });
    this.#bridges.push(bridge);
    await this.#ready(bridge, signal);
    return bridge;
  }

  /** All jobs at once: a call of batch_generate for each model they name, all in the same moment. */
  async run(
    bridge: BridgeClient,
    { jobs, signal }: { jobs: readonly FleetJob[]; signal: AbortSignal },
  ): Promise<BatchRun> {
    const directory = join(this.#directory, `batch-${(this.#batches += 1)}`);
    await mkdir(directory);
    const models = [...new Set(jobs.map(({ model }) => model))];
    const calls = await Promise.all(
      models.map(async (model, index) => {
        const file = join(directory, `prompts-${index}.jsonl`);
        const lines = jobs
          .filter((job) => job.model === model)
          .map(({ prompt, steps }) => `${JSON.stringify({ prompt, num_inference_steps: steps })}\n`);
        await writeFile(file, lines.join(''));
        return {
          ...{ prompts_file: file, width: SIDE, height: SIDE, output_dir: join(directory, String(index)) },
          ...(model !== undefined && { model }),
          ...{ preview: 'none', wait_seconds: CALL_SECONDS },
        };
      }),
    );
    const fromMs = nowMs();
    const answers = await Promise.all(calls.map((call) => bridge.ask('batch_generate', call, { signal })));
    const toMs = nowMs();
    const saved = answers.reduce((sum, answer) => sum + Number(answer['images_generated']), 0);
    if (saved !== jobs.length)
      throw new Error(`${saved} of ${jobs.length} images are saved: ${JSON.stringify(answers)}`);
    return { fromMs, toMs, makespanMs: toMs - fromMs, answers };
  }

  /** What each host's engines did in this time, in order, with the model they did it for. */
  async images(span: Span): Promise<{ host: string; speed: number; images: (LoggedRequest & { model: string })[] }[]> {
    return await Promise.all(
      this.hosts.map(async ({ name, directory }, index) => {
        const logs = await Promise.all(
          this.#models.map(async ({ alias, model }) => {
            const images = within(await readImages(requestLogOf(directory, alias)), span);
            return images.map((image) => ({ ...image, model }));
          }),
        );
        const images = logs.flat().sort((a, b) => a.arrivedMs - b.arrivedMs);
        return { host: name, speed: SPEEDS[index] ?? 1, images };
      }),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.allSettled(this.#bridges.map((bridge) => bridge[Symbol.asyncDispose]()));
    await Promise.all(this.hosts.map((host) => host[Symbol.asyncDispose]()));
  }

  async #ready(bridge: BridgeClient, signal: AbortSignal): Promise<void> {
    const [wanted] = this.#models;
    const untilMs = performance.now() + READY_WITHIN_MS;
    while (performance.now() < untilMs) {
      const { models } = (await bridge.ask('list_models')) as {
        models?: { model: string; hosts: { state: string }[] }[];
      };
      const hosts = models?.find(({ model }) => model === wanted?.model)?.hosts ?? [];
      if (hosts.filter(({ state }) => state === 'ready').length === this.hosts.length) return;
      await pause(100, signal);
      signal.throwIfAborted();
    }
    throw new Error(`not all hosts had ${wanted?.model} ready within ${READY_WITHIN_MS} ms`);
  }
}

/** The flags of an engine of the fixture, the same behind an agent and without one. */
export function engineFlags({ speed, log, model }: { speed: number; log: string; model: FleetModel }): string[] {
  const { weightsMiB, loadMs } = model;
  const flags = {
    ...{ 'step-ms': stepMs(speed), 'load-ms': loadMs, 'weights-mib': weightsMiB, 'peak-mib': weightsMiB + 500 },
    ...{ 'request-log': log, 'force-size': DRAWN },
  };
  return Object.entries(flags).flatMap(([flag, value]) => [`--${flag}`, String(value)]);
}

function configOf(each: FleetModel, { speed, home }: { speed: number; home: string }): SimulatedModel {
  const { alias, model, weightsMiB, offload } = each;
  return {
    engine: 'vllm-omni',
    model,
    vram: `${weightsMiB}MiB`,
    preload: each.isPreloaded,
    ...(offload !== undefined && { offload }),
    args: engineFlags({ speed, model: each, log: requestLogOf(home, alias) }),
  };
}

function requestLogOf(directory: string, alias: string): string {
  return join(directory, `requests-${alias}.jsonl`);
}
