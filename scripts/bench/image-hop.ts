import { execa } from 'execa';
import { once } from 'node:events';
import { join } from 'node:path';
import { z } from 'zod';
import { fetchBody } from '../../shared/http-client.ts';
import { BareEngine } from './image-engine.ts';
import type { Picture } from './image-fixture.ts';
import { absoluteRow, figure } from './row.ts';
import type { BenchRow, BenchStage } from './row.ts';

const NODE = ['--import', 'tsx'];
const Way = z.object({ lastByteMs: z.number(), inHandMs: z.number() });
const Ways = z.object({ direct: Way, agent: Way, naive: Way });
const Usage = z.object({ user: z.number(), system: z.number() });

/** H1 and H3: what the way through the agent's code adds to asking the engine directly. */
export async function imageHop(
  stage: BenchStage,
  { small, large }: { small: Picture; large: Picture },
): Promise<BenchRow[]> {
  const of15 = await measure(stage, { picture: small, rounds: 60, most: 3 });
  const of12 = await measure(stage, { picture: large, rounds: 20, most: 15 });
  const note =
    "the agent's own decoder, text and hash in a process of its own, sent on as they come; without disk and preview";
  const cpu = absoluteRow({
    id: 'H3',
    name: 'CPU of the way of the bytes, 12 MB',
    value: of12.agentCpuMs,
    unit: 'ms',
    reference: `naive relay: ${figure(of12.naiveCpuMs)} ms`,
    most: 20,
    note,
  });
  return [...of15.rows, ...of12.rows, cpu];
}

type Hop = { rows: BenchRow[]; agentCpuMs: number; naiveCpuMs: number };

async function measure(
  { directory, say, signal }: BenchStage,
  { picture, rounds, most }: { picture: Picture; rounds: number; most: number },
): Promise<Hop> {
  const size = `${figure(picture.megabytes)} MB`;
  say(`image hop, ${size}`);
  await using engine = await BareEngine.start({ directory: join(directory, `engine-${rounds}`), picture, signal });
  await using agent = await Relay.start(engine.url);
  await using naive = await Relay.start(engine.url, '--naive');
  const ways = [`direct=POST:${engine.url}`, `agent=GET:${agent.url}`, `naive=GET:${naive.url}`];
  const before = [await agent.cpuMs(), await naive.cpuMs()] as const;
  const client = await execa('node', [...NODE, 'scripts/bench/image-client.ts', String(rounds), ...ways], {
    cancelSignal: signal,
  });
  const { direct, agent: through, naive: naively } = Ways.parse(JSON.parse(client.stdout));
  const times = rounds + WARM_UP;
  const row = absoluteRow({
    id: 'H1',
    name: `image hop, added to the last byte, p50, ${size}`,
    value: through.lastByteMs - direct.lastByteMs,
    unit: 'ms',
    reference: `direct: ${figure(direct.lastByteMs)} ms; naive relay adds ${figure(naively.lastByteMs - direct.lastByteMs)} ms`,
    most,
  });
  const inHand = absoluteRow({
    id: 'H1 in hand',
    name: `the same to the decoded picture in hand, ${size}`,
    value: through.inHandMs - direct.inHandMs,
    unit: 'ms',
    reference: `direct, parsed and decoded: ${figure(direct.inHandMs)} ms`,
    most: null,
  });
  return {
    rows: [row, inHand],
    agentCpuMs: ((await agent.cpuMs()) - before[0]) / times,
    naiveCpuMs: ((await naive.cpuMs()) - before[1]) / times,
  };
}

/** As many as the client throws away; their CPU counts all the same. */
const WARM_UP = 5;

export class Relay implements AsyncDisposable {
  readonly url: string;
  readonly #process: ReturnType<typeof spawnRelay>;

  private constructor(url: string, process: ReturnType<typeof spawnRelay>) {
    this.url = url;
    this.#process = process;
  }

  static async start(engineUrl: string, ...flags: string[]): Promise<Relay> {
    const relay = spawnRelay(engineUrl, flags);
    const [line] = (await once(relay.stdout, 'data')) as [Buffer];
    return new Relay(`http://127.0.0.1:${String(line).trim()}`, relay);
  }

  get pid(): number {
    return this.#process.pid ?? 0;
  }

  async cpuMs(): Promise<number> {
    const signal = new AbortController().signal;
    const { body } = await fetchBody(`${this.url}/usage`, { signal, deadlineMs: 5_000, maxBytes: 1_000 });
    const { user, system } = Usage.parse(JSON.parse(body.toString()));
    return (user + system) / 1_000;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill('SIGKILL');
    await this.#process;
  }
}

function spawnRelay(engineUrl: string, flags: readonly string[]) {
  return execa('node', [...NODE, 'scripts/bench/image-relay.ts', engineUrl, ...flags], {
    stdin: 'ignore',
    stderr: 'inherit',
    buffer: false,
    reject: false,
  });
}
