import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { JSONRPCMessageSchema } from '@modelcontextprotocol/sdk/types.js';
import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import type { AddressInfo, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { toolList } from '../../../bridge/mcp/tool-list.ts';

const PROGRAM = resolve('dist/gantry.cjs');
let home: string;

beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'gantry-stdio-'));
});
afterEach(() => rm(home, { recursive: true, force: true }));

const INITIALIZE = request(1, 'initialize', {
  protocolVersion: '2025-11-25',
  capabilities: {},
  clientInfo: { name: 'test', version: '1' },
});
const INITIALIZED = `${JSON.stringify({ jsonrpc: '2.0', method: 'notifications/initialized' })}\n`;

function request(id: number, method: string, params: Record<string, unknown> = {}): string {
  return `${JSON.stringify({ jsonrpc: '2.0', id, method, params })}\n`;
}

/** The built bridge as a client starts it, speaking raw lines. */
class RawBridge {
  readonly child: ChildProcessWithoutNullStreams;
  readonly lines: string[] = [];
  readonly #exit: Promise<unknown[]>;

  constructor(args: readonly string[] = []) {
    this.child = spawn(process.execPath, [PROGRAM, 'bridge', ...args], {
      cwd: home,
      env: { PATH: process.env['PATH'], HOME: home },
    });
    this.child.stdin.on('error', () => undefined); // a bridge that ended closes its input
    this.child.stderr.resume();
    this.#exit = once(this.child, 'exit');
  }

  /** The answer to a request; every line is kept. */
  async ask(id: number, line: string): Promise<unknown> {
    const reader = createInterface({ input: this.child.stdout });
    this.child.stdin.write(line);
    for await (const answer of reader) {
      this.lines.push(answer);
      const message: unknown = JSON.parse(answer);
      if (typeof message === 'object' && message !== null && 'id' in message && message.id === id) return message;
    }
    throw new Error('the bridge ended without an answer');
  }

  async initialize(): Promise<void> {
    await this.ask(1, INITIALIZE);
    this.child.stdin.write(INITIALIZED);
  }

  /** Exit code or signal, and how long it took. */
  async ended(): Promise<{ end: unknown; tookMs: number }> {
    const startedMs = performance.now();
    const [code, signal] = await this.#exit;
    return { end: code ?? signal, tookMs: performance.now() - startedMs };
  }
}

async function expectExit(bridge: RawBridge): Promise<void> {
  const { end, tookMs } = await bridge.ended();
  expect(end).toBe(0);
  expect(tookMs).toBeLessThan(60_000); // 2 s on a machine that does nothing else; whoever waits for something waits for ever
}

/** A host that accepts the connection and then says nothing: the call hangs with a socket open. */
class SilentHost implements AsyncDisposable {
  readonly #server = createServer((socket) => {
    this.#sockets.push(socket);
    socket.on('error', () => undefined); // the bridge ends without a farewell
  });
  readonly #sockets: Socket[] = [];

  /** Path of a bridge.yaml that names it. */
  async start(): Promise<string> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    const { port } = this.#server.address() as AddressInfo; // it listens on a port, not a pipe
    const config = join(home, 'bridge.yaml');
    const host = `{ name: silent, url: "ws://127.0.0.1:${port}", token: gantry_x }`;
    await writeFile(config, `hosts: [${host}]\n`, { mode: 0o600 });
    return config;
  }

  async called(): Promise<void> {
    if (this.#sockets.length === 0) await once(this.#server, 'connection');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
    await once(this.#server, 'close');
  }
}

describe('the bridge ends with 0 within 2 s', () => {
  test('at the end of input, idle', async () => {
    const bridge = new RawBridge();
    await bridge.initialize();
    bridge.child.stdin.end();
    await expectExit(bridge);
  });

  test('at the end of input, before anything was said', async () => {
    const bridge = new RawBridge();
    bridge.child.stdin.end('{"jsonrpc":"2.0",');
    await expectExit(bridge);
  });

  test.each(['SIGTERM', 'SIGINT', 'SIGHUP'] as const)('at %s', async (signal) => {
    const bridge = new RawBridge();
    await bridge.initialize();
    bridge.child.kill(signal);
    await expectExit(bridge);
  });

  test.each(['end of input', 'closed output', 'SIGTERM'])('during a call with a socket open, at %s', async (how) => {
    await using host = new SilentHost();
    const bridge = new RawBridge(['--config', await host.start()]);
    await bridge.initialize();
    bridge.child.stdin.write(
      request(2, 'tools/call', { name: 'list_hosts', arguments: {}, _meta: { progressToken: 1 } }),
    );
    await host.called();
    if (how === 'end of input') bridge.child.stdin.end();
    if (how === 'closed output') bridge.child.stdout.destroy(); // shows when the next progress note is written
    if (how === 'SIGTERM') bridge.child.kill('SIGTERM');
    await expectExit(bridge);
  });

  test('at a line of 11 MB', async () => {
    const bridge = new RawBridge();
    await bridge.initialize();
    bridge.child.stdin.write('x'.repeat(11 * 1024 * 1024));
    await expectExit(bridge);
  });
});

test('a client that writes and closes at once still gets its answers', async () => {
  const bridge = new RawBridge();
  bridge.child.stdin.end(`${INITIALIZE}${INITIALIZED}${request(2, 'tools/list')}`);
  const lines: string[] = [];
  for await (const line of createInterface({ input: bridge.child.stdout })) lines.push(line);
  expect(lines).toHaveLength(2);
  await expectExit(bridge);
});

test('stdout carries nothing but JSON-RPC, whatever arrives', async () => {
  const bridge = new RawBridge();
  await bridge.initialize();
  const odd = [
    '\n',
    'no json\n',
    '[]\n',
    '{"jsonrpc":"2.0","id":null,"method":"x"}\n',
    '{"jsonrpc":"2.0","id":1.5,"method":"ping"}\r\n',
  ];
  for (const line of [...odd, Buffer.from([0xff, 0xfe, 0x0a])]) bridge.child.stdin.write(line);
  const answer = await bridge.ask(9, request(9, 'tools/call', { name: 'gpu_status', arguments: {} }));
  expect(JSON.stringify(answer)).toContain('NO_HOST');
  for (const line of bridge.lines) JSONRPCMessageSchema.parse(JSON.parse(line));
  bridge.child.stdin.end();
  await expectExit(bridge);
});

test("the SDK's own client gets the list; nothing is written at start", async () => {
  const transport = new StdioClientTransport({
    command: process.execPath,
    args: [PROGRAM, 'bridge'],
    env: { PATH: process.env['PATH'] ?? '', HOME: home },
    cwd: home,
    stderr: 'ignore',
  });
  const client = new Client({ name: 'test', version: '1' });
  await client.connect(transport);
  const { tools } = await client.listTools();
  expect(tools, 'the list that the build finished').toEqual(await toolList());
  expect(await readdir(home)).toEqual([]);
  await client.close();
});
