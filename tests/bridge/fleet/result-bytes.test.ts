import { randomBytes, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import type { Server } from 'node:http';
import { createServer } from 'node:http';
import type { Socket } from 'node:net';
import { connect, createServer as createTcpServer } from 'node:net';
import { mkdtemp, readFile, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { sendResult } from '../../../agent/http/results.ts';
import { PictureProcess } from '../../../agent/job/picture-process.ts';
import { ResultStore } from '../../../agent/job/result-store.ts';
import { AgentTransfers } from '../../../bridge/fleet/agent-transfers.ts';
import { resultBytes } from '../../../bridge/fleet/result-bytes.ts';
import { saveImage } from '../../../bridge/output/image-file.ts';
import { pause } from '../../../shared/abort.ts';
import { AppError } from '../../../shared/errors.ts';

const never = new AbortController().signal;
const PNG = Buffer.concat([Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'), randomBytes(3_000_000)]);

let dir: string;
let results: ResultStore;
let agent: Server;
let network: FaultyNetwork;
let jobId: string;
let sha256: string;

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-bytes-'));
  const options = { quotaBytes: 1e9, keptMs: 1e9, pictures: new PictureProcess(), log: pino({ level: 'silent' }) };
  results = await ResultStore.open({ dir: join(dir, 'results'), ...options });
  jobId = randomUUID();
  ({ sha256 } = await results.put('t', jobId, 1, PNG, Buffer.alloc(10)));
  // The agent's own answers; the listener around them is tested with the whole agent.
  agent = createServer((request, response) => {
    const id = request.url?.split('/').at(-1) ?? '';
    sendResult({ request, response, results }, { tokenId: 't', jobId: id, part: 'image' }).catch((error: unknown) => {
      if (response.headersSent) return response.destroy();
      return response.writeHead(error instanceof AppError && error.code === 'JOB_NOT_FOUND' ? 404 : 500).end();
    });
  });
  await once(agent.listen(0, '127.0.0.1'), 'listening');
  network = await FaultyNetwork.before(agent);
});
afterEach(async () => {
  await network[Symbol.asyncDispose]();
  agent.closeAllConnections();
  agent.close();
  await once(agent, 'close');
  await rm(dir, { recursive: true, force: true });
});

function body(o: { signal?: AbortSignal; silenceMs?: number } = {}): AsyncGenerator<Buffer> {
  const transfers = new AgentTransfers(() => ({ name: 'box', url: network.url, token: 'secret' }));
  return resultBytes(transfers, { jobId, sha256, bytes: PNG.length, signal: never, ...o });
}

async function save(o: { signal?: AbortSignal; silenceMs?: number } = {}): Promise<Buffer> {
  const directory = join(dir, 'out');
  const { path } = await saveImage({
    body: body(o),
    expected: { sha256, bytes: PNG.length },
    directory,
    name: 'fox.png',
    onSaving: async () => undefined,
    signal: o.signal ?? never,
  });
  expect(await readdir(directory)).toEqual(['fox.png']);
  return await readFile(path);
}

describe('a result that is fetched', () => {
  test('comes in one transfer where nothing happens', async () => {
    expect((await save()).equals(PNG)).toBe(true);
    expect(network.connections).toBe(1);
  });

  test.each([1, 2, 3, 4, 5])('is whole after resets at random bytes, round %i', async () => {
    const cuts = Array.from({ length: 5 }, () => 500 + Math.floor(Math.random() * 700_000));
    network.faults = cuts.map((after) => ({ kind: 'reset', after }));
    expect((await save()).equals(PNG), `cut after ${cuts.join(', ')}`).toBe(true);
    expect(network.connections).toBe(6);
    // What the kernel had in flight at a reset is lost, and comes again.
    expect(network.bytes, `cut after ${cuts.join(', ')}`).toBeLessThan(2 * PNG.length);
  });

  test('goes on after silence', async () => {
    network.faults = [{ kind: 'silence', after: 1_000_000 }];
    expect((await save({ silenceMs: 300 })).equals(PNG)).toBe(true);
    expect(network.connections).toBe(2);
    expect(network.bytes).toBeLessThan(1.5 * PNG.length);
  });

  test('goes on when the agent was away for a moment', async () => {
    network.faults = [
      { kind: 'reset', after: 1_000_000 },
      { kind: 'reset', after: 0 },
      { kind: 'reset', after: 0 },
    ];
    expect((await save()).equals(PNG)).toBe(true);
    expect(network.connections).toBe(4);
  });

  test('is given up where nothing more comes, and nothing is left of it', { timeout: 30_000 }, async () => {
    network.faults = [{ kind: 'reset', after: 1_000_000 }, ...Array<Fault>(50).fill({ kind: 'reset', after: 0 })];
    await expect(save()).rejects.toMatchObject({ code: 'AGENT_UNREACHABLE' });
    expect(network.connections).toBeLessThan(12);
    expect(await readdir(join(dir, 'out'))).toEqual([]);
  });

  test('is not tried again where nothing came: the fetcher knows whether the link is up', async () => {
    network.faults = [{ kind: 'reset', after: 0 }];
    await expect(save()).rejects.toMatchObject({ code: 'AGENT_UNREACHABLE' });
    expect(network.connections).toBe(1);
  });

  test('is never put together from two versions', async () => {
    network.faults = [{ kind: 'reset', after: 1_000_000 }];
    const other = Buffer.from(PNG);
    other[PNG.length - 1] = (other[PNG.length - 1] ?? 0) ^ 1;
    network.onFault = () => results.put('t', jobId, 2, other, Buffer.alloc(10));
    const failing = save();
    await expect(failing).rejects.toMatchObject({ code: 'SAVE_FAILED' });
    await expect(failing).rejects.toThrow('another image for this job');
  });

  test('is lost where the host has it no more', async () => {
    network.faults = [{ kind: 'reset', after: 1_000_000 }];
    network.onFault = () => results.delete('t', jobId, 1);
    await expect(save()).rejects.toMatchObject({ code: 'JOB_NOT_FOUND' });
  });

  test('ends at once when it is not wanted any more, also between two transfers', async () => {
    const stop = new AbortController();
    network.faults = [{ kind: 'silence', after: 1_000_000 }];
    network.onFault = async () => stop.abort(new Error('enough'));
    await expect(save({ signal: stop.signal })).rejects.toThrow('enough');
    expect(await readdir(join(dir, 'out'))).toEqual([]);
    expect(network.connections).toBe(1);
  });

  test('waits for a slow disk without taking that for silence', async () => {
    let bytes = 0;
    for await (const chunk of body({ silenceMs: 80 })) {
      if (bytes === 0) await pause(300, never); // the disk
      bytes += chunk.length;
    }
    expect(bytes).toBe(PNG.length);
    expect(network.connections).toBe(1);
  });
});

/** What happens to a connection once so many bytes of the answer have passed. */
type Fault = { kind: 'reset' | 'silence'; after: number };

/** A TCP proxy whose connections break as the list says, one after another; then it only passes on. */
class FaultyNetwork implements AsyncDisposable {
  faults: Fault[] = [];
  onFault: () => Promise<unknown> = async () => undefined;
  connections = 0;
  /** Passed on to the bridge. */
  bytes = 0;
  readonly #server = createTcpServer();
  readonly #sockets = new Set<Socket>();

  static async before(target: Server): Promise<FaultyNetwork> {
    const network = new FaultyNetwork();
    network.#server.on('connection', (client) => network.#connected(client, portOf(target)));
    await once(network.#server.listen(0, '127.0.0.1'), 'listening');
    return network;
  }

  get url(): string {
    return `ws://127.0.0.1:${portOf(this.#server)}`;
  }

  #connected(client: Socket, port: number): void {
    this.connections += 1;
    const fault = this.faults.shift();
    const upstream = connect(port, '127.0.0.1');
    for (const socket of [client, upstream]) {
      this.#sockets.add(socket);
      socket.on('error', () => undefined).on('close', () => this.#sockets.delete(socket));
    }
    client.pipe(upstream);
    client.on('close', () => upstream.destroy());
    let passed = 0;
    upstream.on('data', (chunk: Buffer) => {
      const piece = chunk.subarray(0, fault === undefined ? chunk.length : Math.max(0, fault.after - passed));
      passed += piece.length;
      this.bytes += piece.length;
      if (piece.length > 0 && !client.write(piece)) {
        upstream.pause();
        client.once('drain', () => upstream.resume());
      }
      if (fault === undefined || passed < fault.after) return;
      upstream.pause();
      void this.onFault().then(() => (fault.kind === 'reset' ? client.resetAndDestroy() : undefined)); // tests' own
    });
    upstream.on('end', () => client.end());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
    await once(this.#server, 'close');
  }
}

function portOf(server: { address: Server['address'] }): number {
  const address = server.address();
  return typeof address === 'object' && address !== null ? address.port : 0;
}
