import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { stringify } from 'yaml';
import { fetchBody } from '../../shared/http-client.ts';
import { BridgeClient } from '../lib/bridge-client.ts';
import type { SimulatedModel } from '../lib/simulated-host.ts';
import { SimulatedHost } from '../lib/simulated-host.ts';
import { BareEngine, answering } from './image-engine.ts';
import type { Picture } from './image-fixture.ts';
import { Relay } from './image-hop.ts';
import { median } from './median.ts';
import { PeakMemory, decoderOf } from './process-facts.ts';
import { cpuMsOf, memoryMb } from './process-usage.ts';
import { absoluteRow, figure, ratioRow } from './row.ts';
import type { BenchRow, BenchStage } from './row.ts';

const WORK_MS = 1_000;
const MODEL = 'black-forest-labs/FLUX.2-klein-4B';
const GPUS = 4;

/** H2: one image through the real agent and the real bridge, as an assistant asks for it, against the engine itself. */
export async function endToEnd(
  stage: BenchStage,
  { small, large }: { small: Picture; large: Picture },
): Promise<BenchRow[]> {
  const gated = await oneJob(stage, { picture: small, rounds: 10, most: 1.02 });
  return [gated, await oneJob(stage, { picture: large, rounds: 5, most: null })];
}

async function oneJob(
  { directory, say, signal }: BenchStage,
  { picture, rounds, most }: { picture: Picture; rounds: number; most: number | null },
): Promise<BenchRow> {
  const size = `${figure(picture.megabytes)} MB`;
  say(`end to end, ${size}`);
  const own = join(directory, `end-${rounds}`);
  const engine = { directory: join(own, 'engine'), picture, generateMs: WORK_MS, signal };
  await using bare = await BareEngine.start(engine);
  await using fleet = await Chain.start({ directory: own, picture, generateMs: WORK_MS, gpus: 1 });
  await fleet.client.ask('generate_image', { prompt: 'warm up', model: MODEL });
  const direct: number[] = [];
  const whole: number[] = [];
  for (let round = 0; round < rounds; round += 1) {
    signal.throwIfAborted();
    direct.push(await timed(() => ask(bare.url, signal)));
    whole.push(await timed(() => fleet.client.ask('generate_image', { prompt: `fox ${round}`, model: MODEL })));
  }
  return ratioRow({
    id: most === null ? 'H2 12 MB' : 'H2',
    name: `end to end, a job of 1 s, ${size}: asked by MCP, saved on the disk, p50`,
    value: median(whole),
    unit: 'ms',
    reference: { name: 'direct request, parsed and decoded', value: median(direct) },
    most,
  });
}

/** H4, and what the whole chain costs the agent: four pictures of 12 MB at once, then a hundred. */
export async function memory(
  { directory, say, signal }: BenchStage,
  { large }: { large: Picture },
): Promise<BenchRow[]> {
  say('memory of the agent');
  const naiveMb = await naivePeakMb(join(directory, 'naive'), { picture: large, signal });
  await using fleet = await Chain.start({
    directory: join(directory, 'memory'),
    picture: large,
    generateMs: 300,
    gpus: GPUS,
  });
  await fleet.make(GPUS * 2); // every server is up, and what is loaded at the first job is
  const idleMb = await memoryMb(fleet.pid);
  await using four = await PeakMemory.watch(fleet.pid, { also: () => decoderOf(fleet.pid) });
  await fleet.make(GPUS);
  const atFour = { peakMb: await four.peakMb(), decoderMb: four.otherPeakMb };
  const cpuBefore = await cpuMsOf(fleet.pid);
  for (let made = 0; made < 100; made += 20) await fleet.make(20);
  const afterMb = await memoryMb(fleet.pid);
  const cpuMs = ((await cpuMsOf(fleet.pid)) - cpuBefore) / 100;
  const idle = `the same agent, 8 images before: ${figure(idleMb)} MB`;
  const decoder = `beside it, while there are jobs, the process that decodes: ${figure(four.otherPeakMb)} MB at most`;
  return [
    absoluteRow({
      id: 'H4',
      name: 'peak memory of the agent, 4 images of 12 MB at once',
      value: atFour.peakMb,
      unit: 'MB',
      reference: `${idle}; naive relay: ${figure(naiveMb)} MB`,
      most: 100,
      note: decoder,
    }),
    absoluteRow({
      id: 'H4 after 100',
      name: 'memory of the agent after 100 images of 12 MB',
      value: afterMb,
      unit: 'MB',
      reference: `${idle}; its peak: ${figure(await four.peakMb())} MB`,
      most: 110,
    }),
    absoluteRow({
      id: 'H3 chain',
      name: 'CPU of the agent for one image of 12 MB, the whole chain: stored, told, sent',
      value: cpuMs,
      unit: 'ms',
      reference: '',
      most: null,
    }),
  ];
}

/** A relay that reads, parses, decodes and encodes, with as many at once. */
async function naivePeakMb(directory: string, o: { picture: Picture; signal: AbortSignal }): Promise<number> {
  await using engine = await BareEngine.start({ directory, ...o });
  await using relay = await Relay.start(engine.url, '--naive');
  const { signal } = o;
  await using peak = await PeakMemory.watch(relay.pid);
  for (let round = 0; round < 3; round += 1) {
    const four = Array.from({ length: GPUS }, () =>
      fetchBody(relay.url, { signal, deadlineMs: 60_000, maxBytes: 2 ** 28 }),
    );
    await Promise.all(four);
  }
  return await peak.peakMb();
}

/** A simulated host with the real agent, and the real bridge with one assistant. */
class Chain implements AsyncDisposable {
  readonly client: BridgeClient;
  readonly #host: SimulatedHost;

  private constructor(host: SimulatedHost, client: BridgeClient) {
    this.#host = host;
    this.client = client;
  }

  static async start(o: { directory: string; picture: Picture; generateMs: number; gpus: number }): Promise<Chain> {
    const model: SimulatedModel = {
      engine: 'vllm-omni',
      model: MODEL,
      preload: true,
      replicas: o.gpus,
      args: [...answering(o.picture, o.generateMs), '--weights-mib', '8000'],
    };
    const gpus = Array.from({ length: o.gpus }, () => ({ name: 'Simulated GPU', totalMiB: 24_576 }));
    const host = await SimulatedHost.start({
      name: 'box',
      directory: join(o.directory, 'box'),
      gpus,
      models: { klein: model },
    });
    try {
      const home = join(o.directory, 'home');
      await mkdir(home, { recursive: true });
      const config = join(home, 'bridge.yaml');
      const hosts = [{ name: host.name, url: host.url, token: host.token }];
      await writeFile(config, stringify({ hosts, output_dir: join(home, 'images'), log_level: 'warn' }), {
        mode: 0o600,
      });
      const client = await BridgeClient.start({ config, home, clientName: 'gantry-bench' });
      return new Chain(host, client);
    } catch (error) {
      await host[Symbol.asyncDispose]();
      throw error;
    }
  }

  get pid(): number {
    return this.#host.pid;
  }

  /** So many images, on all slots at once. */
  async make(count: number): Promise<void> {
    const prompts = Array.from({ length: count }, (_, index) => `fox ${index}`);
    const answer = await this.client.ask('batch_generate', { prompts, model: MODEL, wait_seconds: 45 });
    const made = answer['images_generated'];
    const left = count - (typeof made === 'number' ? made : 0);
    if (left > 0) throw new Error(`${left} of ${count} images were not made: ${JSON.stringify(answer).slice(0, 500)}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.client[Symbol.asyncDispose]();
    await this.#host[Symbol.asyncDispose]();
  }
}

async function ask(url: string, signal: AbortSignal): Promise<void> {
  const { body } = await fetchBody(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ prompt: 'a red fox', response_format: 'b64_json' }),
    signal,
    deadlineMs: 60_000,
    maxBytes: 2 ** 28,
  });
  const answer = JSON.parse(body.toString('utf8')) as { data: { b64_json: string }[] }; // the simulator's
  Buffer.from(answer.data[0]?.b64_json ?? '', 'base64');
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const startedMs = performance.now();
  await work();
  return performance.now() - startedMs;
}
