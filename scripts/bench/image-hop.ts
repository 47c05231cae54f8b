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
const Ways = z.object({ direct: Way, decode: Way, agent: Way, naive: Way });
const Usage = z.object({ user: z.number(), system: z.number() });

/** H1 and H3: what the way through the agent's code adds to asking the engine directly. */
export async function imageHop(
  stage: BenchStage,
  { small, large }: { small: Picture; large: Picture },
): Promise<BenchRow[]> {
  const of15 = await measure(stage, { picture: small, rounds: 60, most: 3 });
  const of12 = await measure(stage, { picture: large, rounds: 20, most: 15 });
  const note =
    "the agent's own reader and decoder in a process of its own, sent on as they come; text, hash, disk and preview apart";
  const cpu = absoluteRow({
    id: 'H3',
    name: 'CPU of the way of the bytes (read, decode, send), 12 MB',
    value: of12.cpuMs.decode,
    unit: 'ms',
    reference: `naive relay: ${figure(of12.cpuMs.naive)} ms`,
    most: 20,
    note,
  });
  const hashed = absoluteRow({
    id: 'H3 hashed',
    name: 'the same with the text put in and the SHA-256 taken',
    value: of12.cpuMs.agent,
    unit: 'ms',
    reference: '',
    most: null,
  });
  return [...of15.rows, ...of12.rows, cpu, hashed];
}

type Hop = { rows: BenchRow[]; cpuMs: { decode: number; agent: number; naive: number } };

async function measure(
  { directory, say, signal }: BenchStage,
  { picture, rounds, most }: { picture: Picture; rounds: number; most: number },
): Promise<Hop> {
  const size = `${figure(picture.megabytes)} MB`;
  say(`image hop, ${size}`);
  await using engine = await BareEngine.start({ directory: join(directory, `engine-${rounds}`), picture, signal });
  await using decode = await Relay.start(engine.url, '--decode');
  await using agent = await Relay.start(engine.url);
  await using naive = await Relay.start(engine.url, '--naive');
  const relays = { decode, agent, naive };
  const ways = [`direct=POST:${engine.url}`, ...Object.entries(relays).map(([name, { url }]) => `${name}=GET:${url}`)];
  await client(WARM_UP, { ways, signal }); // what V8 does once in the life of an agent is no part of a picture
  const before = await cpuOf(relays);
  const times = await client(rounds, { ways, signal });
  const after = await cpuOf(relays);
  const perPicture = (name: keyof typeof relays): number => (after[name] - before[name]) / (rounds + WARM_UP);
  const { direct } = times;
  const row = absoluteRow({
    id: 'H1',
    name: `image hop (read, decode, send), added to the last byte, p50, ${size}`,
    value: times.decode.lastByteMs - direct.lastByteMs,
    unit: 'ms',
    reference: `direct: ${figure(direct.lastByteMs)} ms; naive relay adds ${figure(times.naive.lastByteMs - direct.lastByteMs)} ms`,
    most,
  });
  const hashed = absoluteRow({
    id: 'H1 hashed',
    name: `the same with the text put in and the SHA-256 taken, ${size}`,
    value: times.agent.lastByteMs - direct.lastByteMs,
    unit: 'ms',
    reference: '',
    most: null,
  });
  const inHand = absoluteRow({
    id: 'H1 in hand',
    name: `and to the decoded picture in hand, ${size}`,
    value: times.agent.inHandMs - direct.inHandMs,
    unit: 'ms',
    reference: `direct, parsed and decoded: ${figure(direct.inHandMs)} ms`,
    most: null,
  });
  const cpuMs = { decode: perPicture('decode'), agent: perPicture('agent'), naive: perPicture('naive') };
  return { rows: [row, hashed, inHand], cpuMs };
}

async function client(rounds: number, o: { ways: string[]; signal: AbortSignal }): Promise<z.infer<typeof Ways>> {
  const args = [...NODE, 'scripts/bench/image-client.ts', String(rounds), ...o.ways];
  const { stdout } = await execa('node', args, { cancelSignal: o.signal });
  return Ways.parse(JSON.parse(stdout));
}

async function cpuOf(relays: { decode: Relay; agent: Relay; naive: Relay }) {
  const [decode, agent, naive] = [await relays.decode.cpuMs(), await relays.agent.cpuMs(), await relays.naive.cpuMs()];
  return { decode, agent, naive };
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
