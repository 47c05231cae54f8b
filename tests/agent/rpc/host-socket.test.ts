import { once } from 'node:events';
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Agent } from '../../../agent/agent.ts';
import { HostClient, NoAgent } from '../../../agent/cli/host-client.ts';
import { loadAgentConfig } from '../../../agent/config.ts';
import { SingleInstance } from '../../../agent/single-instance.ts';
import { createLog } from '../../../shared/log.ts';

const log = createLog({ name: 'test', to: 'stderr', level: 'silent' });
const never = new AbortController().signal;

let dir: string;
let path: string;
let agent: Agent;

// One host without models and without nvidia-smi: what is tested here depends on neither.
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-socket-'));
  path = join(dir, 'state', 'agent.sock');
  const config = join(dir, 'agent.yaml');
  await writeFile(config, `listen: 127.0.0.1:0\nstate_dir: state\ngpu: { nvidia_smi: ${dir}/absent }\n`);
  agent = await Agent.start(await loadAgentConfig({ config }, {}), { log, signal: never });
  using client = await HostClient.connect(path);
  const problems = async () => (await client.ask('host.snapshot', {})).snapshot.problems;
  await expect.poll(problems).toEqual(['No model is configured.']); // what is left to clear up is cleared up
});
afterEach(async () => {
  await agent[Symbol.asyncDispose]();
  await rm(dir, { recursive: true, force: true });
});

describe('the socket', () => {
  test('is for its owner alone, and says first whose it is', async () => {
    expect((await stat(path)).mode & 0o777).toBe(0o600);
    using peer = await Peer.connect(path);
    expect(await peer.line()).toBe(`pid ${process.pid}`);
    await expect(SingleInstance.acquire(join(dir, 'state'))).rejects.toThrow(`(pid ${process.pid})`);
  });

  test('answers by the same methods as the port, and not those that need a bridge', async () => {
    using client = await HostClient.connect(path);
    const { snapshot } = await client.ask('host.snapshot', {});
    expect(snapshot).toMatchObject({ models: [], isDraining: false, problems: ['No model is configured.'] });
    expect(await client.ask('host.drain', {})).toEqual({ isDraining: true, running: 0 });
    expect((await client.ask('host.snapshot', {})).snapshot).toMatchObject({
      isDraining: true,
      problems: [
        'No model is configured.',
        'The host is draining: `gantry-agent resume` there, or `gantry resume HOST` on a laptop, ends that.',
      ],
    });
    expect(await client.ask('host.resume', {})).toEqual({ isDraining: false, running: 0 });
    await expect(client.ask('model.load', { model: 'x' })).rejects.toMatchObject({ code: 'MODEL_UNKNOWN' });
    expect(await client.ask('host.reload', {})).toEqual({ problems: [], changes: [], warnings: [] });
    using peer = await Peer.connect(path);
    await peer.line();
    for (const method of ['hello', 'job.offer', 'job.get', 'toString']) {
      peer.send({ jsonrpc: '2.0', id: 1, method, params: {} });
      expect(JSON.parse((await peer.line()) ?? ''), method).toMatchObject({ id: 1, error: { code: -32_601 } });
    }
  });

  test('reads frames however they are cut', async () => {
    using peer = await Peer.connect(path);
    await peer.line();
    const frame = (id: number) => JSON.stringify({ jsonrpc: '2.0', id, method: 'host.snapshot', params: {} });
    peer.socket.write(`${frame(1)}\r\n${frame(2)}\n${frame(3).slice(0, 20)}`);
    expect(await peer.ids(2)).toEqual([1, 2]);
    peer.socket.write(`${frame(3).slice(20)}\n`);
    expect(await peer.ids(1)).toEqual([3]);
  });

  test.each([
    ['no JSON', 'hello?\n'],
    ['no request', '{"jsonrpc":"2.0","method":"host.drain","params":{}}\n'],
    ['parameters that are none', '{"jsonrpc":"2.0","id":1,"method":"model.load","params":{"model":7}}\n'],
    ['an endless line', 'x'.repeat(1024 * 1024 + 1)],
    ['a line that is too long', `${'x'.repeat(1024 * 1024 + 1)}\n`],
  ])('hangs up on %s, and serves others', async (_, bytes) => {
    using other = await HostClient.connect(path);
    using peer = await Peer.connect(path);
    await peer.line();
    peer.socket.write(bytes);
    expect(JSON.parse((await peer.line()) ?? '')).toMatchObject({ error: { data: { code: 'INVALID_ARGUMENT' } } });
    expect(await peer.line()).toBeUndefined();
    expect((await other.ask('host.snapshot', {})).snapshot.isDraining).toBe(false);
  });

  test('cuts a client that asks and never reads', async () => {
    const deaf = connect(path);
    await once(deaf, 'connect');
    deaf.pause();
    deaf.on('error', () => undefined); // it is cut in the middle of a write
    const closed = new Promise((resolve) => deaf.once('close', resolve));
    const ask = JSON.stringify({ jsonrpc: '2.0', id: 1, method: `none ${'x'.repeat(60)}`, params: {} });
    for (let at = 0; at < 60_000 && !deaf.destroyed; at += 1) deaf.write(`${ask}\n`);
    await closed;
    using other = await HostClient.connect(path);
    expect((await other.ask('host.snapshot', {})).snapshot.isDraining).toBe(false);
  });

  test('does not keep the agent from ending', async () => {
    using idle = await Peer.connect(path);
    await idle.line();
    using halfway = await Peer.connect(path);
    halfway.socket.write('{"jsonrpc"');
    await agent[Symbol.asyncDispose]();
    expect(await idle.line()).toBeUndefined();
    await expect(HostClient.connect(path)).rejects.toThrow(NoAgent);
    await expect(stat(path)).rejects.toMatchObject({ code: 'ENOENT' });
  });

  test('turns the thirty-third client away, and serves again when one has left', async () => {
    const crowd = await Promise.all(Array.from({ length: 32 }, () => HostClient.connect(path)));
    const late = await HostClient.connect(path);
    await expect(late.ask('host.snapshot', {})).rejects.toThrow(NoAgent);
    late[Symbol.dispose]();
    for (const client of crowd) client[Symbol.dispose]();
    await expect
      .poll(async () => {
        using client = await HostClient.connect(path);
        return await client.ask('host.snapshot', {}).then(
          () => 'served',
          () => 'sent away',
        );
      })
      .toBe('served');
  });
});

describe('the client', () => {
  test('says what to do where nobody listens', async () => {
    const error: unknown = await HostClient.connect(join(dir, 'none.sock')).catch((reason: unknown) => reason);
    expect(error).toMatchObject({ name: 'NoAgent', isDenied: false });
    expect(String(error)).toContain('gantry-agent run');
  });

  test('understands an agent of the release before, which only says its pid', async () => {
    const old = createServer((socket) => void socket.end('pid 7\n', () => socket.destroy()));
    await once(old.listen(join(dir, 'old.sock')), 'listening');
    using client = await HostClient.connect(join(dir, 'old.sock'));
    await expect(client.ask('host.drain', {})).rejects.toThrow(/of an older release/);
    old.close();
    await once(old, 'close');
  });
});

class Peer implements Disposable {
  readonly socket: Socket;
  readonly #lines: AsyncIterator<string>;

  private constructor(socket: Socket) {
    this.socket = socket;
    this.#lines = createInterface({ input: socket })[Symbol.asyncIterator]();
    socket.on('error', () => undefined); // its end shows as the end of the lines
  }

  static async connect(where: string): Promise<Peer> {
    const socket = connect(where);
    await once(socket, 'connect');
    return new Peer(socket);
  }

  async line(): Promise<string | undefined> {
    const next = await this.#lines.next();
    return next.done === true ? undefined : next.value;
  }

  async ids(count: number): Promise<number[]> {
    const ids: number[] = [];
    while (ids.length < count) ids.push((JSON.parse((await this.line()) ?? '') as { id: number }).id);
    return ids;
  }

  send(frame: object): void {
    this.socket.write(`${JSON.stringify(frame)}\n`);
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }
}
