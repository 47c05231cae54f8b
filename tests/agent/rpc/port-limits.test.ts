import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { once } from 'node:events';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { connect as connectTls } from 'node:tls';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Agent } from '../../../agent/agent.ts';
import { HostClient } from '../../../agent/cli/host-client.ts';
import { loadAgentConfig } from '../../../agent/config.ts';
import { TokenStore } from '../../../agent/tokens.ts';
import { parseInvite } from '../../../shared/invite.ts';
import { createLog } from '../../../shared/log.ts';

// What the port itself is told, as a peer meets it: each of these would be another one with Node's own settings.

const log = createLog({ name: 'test', to: 'stderr', level: 'silent' });

let dir: string;
let agent: Agent;
let token: string;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-port-'));
  agent = await agentAt('plain', 'tls: off');
  await using tokens = new TokenStore({ stateDir: join(dir, 'plain') });
  token = await tokens.add({ name: 'laptop', role: 'viewer' });
});
afterAll(async () => {
  await agent[Symbol.asyncDispose]();
  await rm(dir, { recursive: true, force: true });
});

test('S12: headers that do not end are answered 408, also on a connection that has shown its token', async () => {
  const socket = connect(agent.address.port, '127.0.0.1');
  const answers = text(socket);
  await ask(socket, `GET /readyz HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer ${token}\r\n\r\n`);
  // From here on only Node's limit for headers ends it in words: the port's own for silence cuts it after 30 s without any.
  socket.write('GET /readyz HTTP/1.1\r\nhost: localhost\r\n');
  expect(await answers).toMatch(/^HTTP\/1.1 503 [^]*HTTP\/1.1 408 /);
});

test('S12: headers of more than 8 KiB are refused', async () => {
  const socket = connect(agent.address.port, '127.0.0.1');
  const answers = text(socket);
  socket.end(`GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: ${'y'.repeat(10_000)}\r\n\r\n`);
  expect(await answers).toMatch(/^HTTP\/1.1 431 /);
});

test('S12: a body that comes steadily may take as long as it takes', async () => {
  const servers: unknown[] = [];
  const onStart = (message: unknown): void => void servers.push((message as { server: unknown }).server); // as documented
  subscribe('http.server.request.start', onStart);
  const socket = connect(agent.address.port, '127.0.0.1');
  socket.end('GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n');
  expect(await text(socket)).toMatch(/^HTTP\/1.1 200 /);
  unsubscribe('http.server.request.start', onStart);
  expect(servers).toMatchObject([{ requestTimeout: 0 }]);
});

test.each([
  ['two lengths', 'content-length: 5\r\ncontent-length: 44\r\n'],
  ['a length and chunks', 'content-length: 5\r\ntransfer-encoding: chunked\r\n'],
  ['chunks by another name', 'transfer-encoding: xchunked\r\n'],
  ['a header in a line of its own', 'x: y\n z: content-length: 44\r\ncontent-length : 5\r\n'],
])('no second request is smuggled in behind %s', async (_, headers) => {
  const socket = connect(agent.address.port, '127.0.0.1');
  const answers = text(socket);
  const smuggled = `GET /readyz HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer ${token}\r\n\r\n`;
  socket.end(`POST /v1/pair HTTP/1.1\r\nhost: localhost\r\n${headers}\r\n0\r\n\r\n${smuggled}`);
  const answered = await answers;
  expect(answered).toMatch(/^HTTP\/1.1 4\d\d /);
  expect(answered.match(/^HTTP\//gm)).toHaveLength(1);
});

test('S14: an address that guessed tokens is not heard with the code of an invite either', async () => {
  using host = await HostClient.connect(join(dir, 'plain', 'agent.sock'));
  for (let count = 0; count < 5; count += 1) {
    const socket = connect(agent.address.port, '127.0.0.1');
    const guess = `authorization: Bearer gantry_${'x'.repeat(43)}\r\nconnection: close\r\n`;
    socket.write(`GET /readyz HTTP/1.1\r\nhost: localhost\r\n${guess}\r\n`);
    expect(await text(socket)).toMatch(/^HTTP\/1.1 401 /);
  }
  const { code } = parseInvite((await host.ask('invite.create', { role: 'operator' })).line);
  const body = JSON.stringify({ code, name: 'guesser' });
  const type = `content-type: application/json\r\ncontent-length: ${body.length}\r\nconnection: close\r\n`;
  const socket = connect(agent.address.port, '127.0.0.1');
  socket.write(`POST /v1/pair HTTP/1.1\r\nhost: localhost\r\n${type}\r\n${body}`);
  expect(await text(socket)).toMatch(/^HTTP\/1.1 429 /);
  expect((await host.ask('token.list', {})).tokens.map(({ name }) => name)).toEqual(['laptop']);
});

test('a pairing is heard up to 4 KiB, whoever sends it', async () => {
  const body = JSON.stringify({ code: 'AAAA-AAAA', name: 'x', more: 'y'.repeat(8_000) });
  const type = `content-type: application/json\r\ncontent-length: ${body.length}\r\nconnection: close\r\n`;
  const socket = connect(agent.address.port, '127.0.0.1');
  socket.write(`POST /v1/pair HTTP/1.1\r\nhost: localhost\r\n${type}\r\n${body}`);
  expect(await text(socket)).toMatch(/^HTTP\/1.1 400 [^]*has at most 4096 bytes/);
});

test('S20: of a defect a peer hears that there is one, and neither where nor why', async () => {
  await using broken = await agentAt('broken', 'tls: off');
  await mkdir(join(dir, 'broken', 'tokens.json')); // so that it can neither be read nor be mended
  for (const upgrade of ['', 'connection: upgrade\r\nupgrade: websocket\r\n']) {
    const socket = connect(broken.address.port, '127.0.0.1');
    const close = upgrade === '' ? 'connection: close\r\n' : '';
    const head = `host: localhost\r\n${upgrade}${close}authorization: Bearer ${token}\r\n`;
    socket.write(`GET /v1/ws HTTP/1.1\r\n${head}\r\n`);
    const answer = await text(socket);
    expect(answer).toMatch(/^HTTP\/1.1 500 [^]*"INTERNAL"/);
    expect(answer).not.toMatch(/EISDIR|tokens|broken|\.ts|\n? {4}at /);
  }
});

test('S1: with TLS nobody is let down to a version before 1.3', async () => {
  await using encrypted = await agentAt('encrypted', 'tls: on');
  const tls = { port: encrypted.address.port, host: '127.0.0.1', rejectUnauthorized: false };
  const newer = connectTls(tls);
  await once(newer, 'secureConnect');
  expect(newer.getProtocol()).toBe('TLSv1.3');
  newer.destroy();
  const older = connectTls({ ...tls, maxVersion: 'TLSv1.2' });
  const outcome = Promise.race([once(older, 'secureConnect'), once(older, 'close')]);
  await expect(outcome).rejects.toThrow();
  older.destroy();
});

async function agentAt(name: string, line: string): Promise<Agent> {
  const config = join(dir, `${name}.yaml`);
  await writeFile(config, `listen: 127.0.0.1:0\n${line}\nstate_dir: ${name}\ngpu: { nvidia_smi: ${dir}/absent }\n`);
  return await Agent.start(await loadAgentConfig({ config }, {}), { log, signal: new AbortController().signal });
}

/** Resolves when the first bytes of the answer are there. */
async function ask(socket: Socket, request: string): Promise<void> {
  const answered = once(socket, 'data');
  socket.write(request);
  await answered;
}
