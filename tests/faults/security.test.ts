import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { connect } from 'node:net';
import { join } from 'node:path';
import { describe, expect } from 'vitest';
import { WebSocket } from 'ws';
import { CONNECTION_LIMITS } from '../../agent/rpc/connection-budget.ts';
import type { SimulatedHost } from '../../scripts/lib/simulated-host.ts';
import { pause } from '../../shared/abort.ts';
import { fetchBody } from '../../shared/http-client.ts';
import { SUBPROTOCOL } from '../../shared/protocol.ts';
import { WsPeer } from '../agent/rpc/ws-peer.ts';
import { TestFleet, vllm } from '../helpers/fleet.ts';
import { agent, inviteFrom } from '../helpers/pairing.ts';
import { fault } from './fault.ts';
import { FACTOR } from './scale.ts';

const MODEL = 'black-forest-labs/FLUX.2-klein-4B';
const IDLE = 2_000;
const WAVE = 100;
const LORIS = 50;
const GIGABYTE = 1_000_000_000n;
/** Room for one large frame, what V8 puts off collecting, and the sockets that were there for a moment. */
const MORE_MIB = 150;
const never = new AbortController().signal;

describe('those who should not get in', () => {
  fault('F40', 'evil peers of every kind, beside one that means it', async (row) => {
    await using fleet = await TestFleet.start([{ name: 'a', models: { klein: vllm(MODEL) } }]);
    const host = fleet.host('a');
    const port = Number(new URL(host.url).port);
    const config = ['--config', join(host.directory, 'agent.yaml')];
    const revoked = await host.addToken('revoked');
    await using link = await WsPeer.hello({ port }, host.token);
    const rssBefore = await rssMiB(host.pid);

    // One that means it, from the same address as all the others.
    const stop = new AbortController();
    const served = visits(port, { token: host.token, signal: stop.signal });
    let rssMost = 0;
    const watched = (async () => {
      for (; !stop.signal.aborted; await pause(200, stop.signal)) rssMost = Math.max(rssMost, await rssMiB(host.pid));
    })();

    // However this ends: nobody asks an agent that is gone.
    await using _asking = {
      [Symbol.asyncDispose]: async () => {
        stop.abort();
        await Promise.allSettled([served, watched]);
      },
    };

    const status = async (options: Parameters<typeof WsPeer.connect>[1]) => {
      const answer = await WsPeer.connect({ port }, options);
      return 'status' in answer ? answer.status : 101;
    };
    const { token } = host;
    expect(await status({ token, headers: { origin: 'http://evil.example' } })).toBe(403);
    expect(await status({ token, headers: { origin: 'null' } })).toBe(403);
    expect(await status({ token, headers: { host: 'evil.example' } })).toBe(421);
    expect(await status({})).toBe(401);
    expect(await status({ path: `/v1/ws?token=${token}` })).toBe(404);
    expect(await status({ token: `gantry_${randomBytes(32).toString('base64url')}` })).toBe(401);
    row.holds('refused before the upgrade, each with its own status');

    await using doomed = await WsPeer.hello({ port }, revoked);
    row.injected();
    await agent(['tokens', 'revoke', 'revoked', ...config]);
    const closed = await row.sees('the link of a revoked token is closed', 1_000 / FACTOR, () => doomed.closed());
    expect(closed.code).toBe(4401);
    expect(await status({ token: revoked })).toBe(401);

    const looker = (await agent(['tokens', 'add', 'looker', '--role', 'viewer', ...config])).stdout.trim();
    await using self = await WsPeer.connect({ port }, { token: looker }).then(opened);
    await self.ask('hello', {
      version: 1,
      bridgeId: crypto.randomUUID(),
      name: 'x',
      role: 'operator',
      scopes: ['admin'],
    });
    const asked = await self.ask('model.load', { model: MODEL, role: 'operator' });
    expect(asked.error?.data).toMatchObject({
      code: 'AUTH_FAILED',
      message: expect.stringContaining('role operator') as string,
    });
    row.holds('a role is what the host says, whatever the peer says');

    const idle: ReturnType<typeof raw>[] = [];
    // In waves that the queue of the listening socket holds: what overflows there exists at this end only.
    for (let count = 0; count < IDLE; count += WAVE) {
      const wave = Array.from({ length: WAVE }, () => raw(port));
      await Promise.all(wave.map(({ connected }) => connected));
      idle.push(...wave);
    }
    const loris = Array.from({ length: LORIS }, () => raw(port, 'GET /readyz HTTP/1.1\r\nHost: localhost\r\nX-A: '));
    const drip = (async () => {
      for (; loris.some(({ isOpen }) => isOpen()); await pause(300, stop.signal))
        for (const each of loris) each.send('b');
    })();
    row.injected();
    await row.sees(
      `${IDLE} silent and ${LORIS} slow connections are ended`,
      (CONNECTION_LIMITS.showTokenMs + 5_000) / FACTOR, // that limit follows no factor; 5 s to end two thousand of them
      async () => ![...idle, ...loris].some(({ isOpen }) => isOpen()) || undefined,
    );
    await drip;

    const fragmented = await endOf(port, token, (socket) => {
      for (let count = 0; count < 100_000 && socket.readyState === WebSocket.OPEN; count += 1)
        socket.send('x', { fin: false });
    });
    expect([1006, 1008, 1009]).toContain(fragmented);
    const announced = await endOf(port, token, (_, connection) => {
      const head = Buffer.alloc(14);
      head.writeUInt8(0x81, 0); // a text frame, whole
      head.writeUInt8(0x80 | 127, 1); // masked, with a length of 64 bits
      head.writeBigUInt64BE(GIGABYTE, 2);
      connection.write(head);
    });
    expect([1006, 1009]).toContain(announced);
    row.holds('100,000 fragments and a frame of 1 GB end their link');

    expect(await link.ask('job.offer', { lines: [] })).toMatchObject({ result: {} });
    stop.abort();
    await watched;
    const took = (await served).sort((a, b) => a - b);
    const p99 = took[Math.floor(took.length * 0.99)] ?? 0;
    expect(took.length).toBeGreaterThan(20);
    // 1 s is the promise of a machine of its own; this one may run eight test suites.
    expect(p99, `p99 of ${took.length} requests in ms`).toBeLessThan(10_000);
    row.holds(`one that means it was answered ${took.length} times meanwhile, p99 ${Math.round(p99)} ms`);
    expect(rssMost - rssBefore, 'MiB more').toBeLessThan(MORE_MIB);
    row.holds(`at most ${Math.round(rssMost - rssBefore)} MiB more`);
  });

  fault('F42', 'invite code replayed or guessed', async (row) => {
    await using fleet = await TestFleet.start([{ name: 'a', models: {} }]);
    const host = fleet.host('a');
    const code = async () => /code=(.*)$/.exec(await inviteFrom(host))?.[1] ?? '';
    const used = await code();
    expect(await pair(host, used)).toMatchObject({ status: 200 });
    const replayed = await pair(host, used);
    expect(replayed.status).toBe(401);
    row.holds('a code works once');
    const open = await code();
    const guesses = [];
    // With the replay these are the four before the fifth.
    for (const wrong of ['AAAA-AAAA', '', used.toLowerCase()]) guesses.push(await pair(host, wrong));
    expect(new Set([replayed, ...guesses].map(({ status, body }) => `${status} ${body}`)).size).toBe(1);
    expect(replayed.body).toContain('AUTH_FAILED');
    row.holds('unknown, used and empty codes: byte-equal');
    expect((await pair(host, 'BBBB-BBBB')).status).toBe(401);
    expect(await pair(host, open)).toMatchObject({ status: 429 });
    row.holds('after five failures the address is not heard, not even with the right code');
    const audit = await readFile(join(host.directory, 'state', 'audit.jsonl'), 'utf8');
    for (const secret of [used, open]) expect(audit).not.toContain(secret);
    expect(audit.match(/"action":"pair","outcome":"ok"/g)).toHaveLength(1);
    row.holds('the audit log has each, and no code');
  });
});

/** Asks again and again, and how long each answer took in ms. */
async function visits(port: number, { token, signal }: { token: string; signal: AbortSignal }): Promise<number[]> {
  const took: number[] = [];
  while (!signal.aborted) {
    const atMs = performance.now();
    const headers = { authorization: `Bearer ${token}` };
    const url = `http://127.0.0.1:${port}/v1/results/${crypto.randomUUID()}`;
    const { status } = await fetchBody(url, { headers, signal: never, deadlineMs: 30_000, maxBytes: 10_000 });
    expect(status).toBe(404); // known as a peer, and no such result
    took.push(performance.now() - atMs);
    await pause(50, signal);
  }
  return took;
}

type Raw = { connected: Promise<unknown>; isOpen: () => boolean; send: (text: string) => void };

function raw(port: number, first?: string): Raw {
  const socket = connect(port, '127.0.0.1');
  socket.on('error', () => socket.destroy());
  socket.on('end', () => socket.destroy());
  socket.resume();
  if (first !== undefined) socket.once('connect', () => socket.write(first));
  const connected = new Promise((resolve) => socket.once('connect', resolve).once('close', resolve));
  const send = (text: string): void => void (socket.writable && socket.write(text));
  return { connected, isOpen: () => !socket.destroyed, send };
}

/** The code with which a link ends that does this. */
async function endOf(
  port: number,
  token: string,
  does: (socket: WebSocket, connection: Socket) => void,
): Promise<number> {
  const headers = { authorization: `Bearer ${token}` };
  const socket = new WebSocket(`ws://127.0.0.1:${port}/v1/ws`, SUBPROTOCOL, { headers });
  let connection: Socket | undefined;
  socket.on('upgrade', (response) => (connection = response.socket));
  socket.on('error', () => undefined); // its close is what counts
  await once(socket, 'open');
  const closed = once(socket, 'close');
  if (connection === undefined) throw new Error('a link without a connection');
  does(socket, connection);
  const [code] = (await closed) as [number]; // documented arguments of this event
  return code;
}

async function pair(host: SimulatedHost, code: string): Promise<{ status: number; body: string }> {
  const { status, body } = await fetchBody(`${host.url.replace('ws', 'http')}/v1/pair`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ code, name: 'test' }),
    signal: never,
    deadlineMs: 30_000,
    maxBytes: 10_000,
  });
  return { status, body: body.toString() };
}

function opened(answer: WsPeer | { status: number }): WsPeer {
  if (answer instanceof WsPeer) return answer;
  throw new Error(`refused with ${answer.status}`);
}

async function rssMiB(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(text)?.[1] ?? 0) / 1024;
}
