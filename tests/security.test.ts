import { once } from 'node:events';
import { request } from 'node:http';
import { readdir, readFile, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { WebSocket } from 'ws';
import { Agent } from '../agent/agent.ts';
import { HostClient } from '../agent/cli/host-client.ts';
import { loadAgentConfig } from '../agent/config.ts';
import { ROUTES } from '../agent/http/routes.ts';
import { cleaned, errorFrame } from '../agent/rpc/frames.ts';
import { TokenStore } from '../agent/tokens.ts';
import { AppError } from '../shared/errors.ts';
import { fetchBody } from '../shared/http-client.ts';
import { createLog } from '../shared/log.ts';
import type { Method } from '../shared/protocol.ts';
import { CLOSE_CODES, HOST_REQUESTS, REQUESTS, SUBPROTOCOL } from '../shared/protocol.ts';
import { WsPeer } from './agent/rpc/ws-peer.ts';

// Rules of docs/security.md that belong to no single file, and rows of its table of known holes elsewhere.

const log = createLog({ name: 'test', to: 'stderr', level: 'silent' });
const never = new AbortController().signal;
const ID = '11111111-1111-4111-8111-111111111111';
const SHA256 = '0'.repeat(64);

/** Every message of a bridge behind its hello, as it may look. A new one has to be added here. */
const MESSAGES: Record<Exclude<Method, 'hello'>, object> = {
  'job.offer': { lines: [] },
  'job.take': {
    grantId: ID,
    job: {
      ...{ jobId: ID, attempt: 1, class: 'batch' },
      request: {
        ...{ kind: 'edit', model: 'm', prompt: 'p', inputs: [SHA256], steps: 4, seed: 7, format: 'png' },
        guidance: { field: 'guidance_scale', value: 1 },
      },
    },
  },
  'slot.decline': { grantId: ID },
  'job.cancel': { jobId: ID },
  'job.get': { jobId: ID },
  'job.ack': { jobId: ID, attempt: 1 },
  'model.load': { model: 'm' },
  'model.offload': { model: 'm' },
  'model.release': { model: 'm' },
  'host.drain': {},
  'host.resume': {},
};

describe('one agent, seen by strangers and by those it knows', () => {
  let dir: string;
  let agent: Agent;
  let tokens: TokenStore;
  let operator: string;
  let other: string;

  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), 'gantry-security-'));
    const config = join(dir, 'agent.yaml');
    await writeFile(config, `listen: 127.0.0.1:0\nstate_dir: state\ngpu: { nvidia_smi: ${dir}/absent }\n`);
    agent = await Agent.start(await loadAgentConfig({ config }, {}), { log, signal: never });
    tokens = new TokenStore({ stateDir: join(dir, 'state') });
    operator = await tokens.add({ name: 'operator', role: 'operator' });
    other = await tokens.add({ name: 'other', role: 'operator' });
  });
  afterAll(async () => {
    await agent[Symbol.asyncDispose]();
    await rm(dir, { recursive: true, force: true });
  });

  test('S2, PYSEC-2026-291, CVE-2025-63389: without a token nothing but /healthz and a pairing is answered', async () => {
    const paths = ROUTES.map(({ path }) =>
      path.source
        .replace(/\\\//g, '/')
        .replace(/\([^)]*\)/g, ID)
        .replace(/[\^$]/g, ''),
    );
    expect(paths.length).toBeGreaterThan(3);
    for (const path of [...paths, '/', '/metrics', '/v1/pair', '/v1/ws']) {
      for (const method of ['GET', 'PUT', 'DELETE'] as const)
        expect((await ask(path, { method })).status, `${method} ${path}`).toBe(401);
    }
    expect((await ask('/healthz')).body).toBe('ok\n');
    expect(
      (await ask('/v1/pair', { method: 'POST', headers: JSON_TYPE, body: '{"code":"x","name":"x"}' })).status,
    ).toBe(401);
  });

  test('S14: the sixth wrong token of an address is not told what is wrong with it, and a right one passes', async () => {
    const wrong = async () => await ask('/readyz', { token: `gantry_${'x'.repeat(43)}` });
    const answers = [];
    for (let count = 0; count < 8; count += 1) answers.push(await wrong());
    expect(answers.map(({ status }) => status).slice(-3)).toEqual([429, 429, 429]);
    expect(Number(answers.at(-1)?.headers['retry-after'])).toBeGreaterThan(0);
    expect((await ask('/readyz', { token: operator })).status).toBe(503);
  });

  test('S17: the switches of the engines are not reachable through the agent', async () => {
    for (const path of [
      '/sleep',
      '/wake_up',
      '/collective_rpc',
      '/v1/models',
      '/api/gpu/offload',
      '/v1/images/generations',
    ]) {
      for (const method of ['GET', 'POST'] as const) {
        expect((await ask(path, { method, token: operator })).status, `${method} ${path}`).toBe(404);
      }
    }
  });

  test('S21, llama-swap: no CORS header on anything, and no GET that acts', async () => {
    for (const path of ['/healthz', '/readyz', `/v1/results/${ID}`, '/v1/pair']) {
      const { headers } = await ask(path, {
        method: 'OPTIONS' as 'GET',
        token: operator,
        headers: { 'access-control-request-method': 'GET' },
      });
      expect(
        Object.keys(headers).filter((name) => name.startsWith('access-control')),
        path,
      ).toEqual([]);
    }
    for (const { methods, path } of ROUTES)
      if (methods.includes('GET')) expect(methods, path.source).toEqual(['GET', 'HEAD']);
  });

  test('S21, ComfyUI: a form of a web page pairs nobody', async () => {
    const form = { 'content-type': 'text/plain' };
    const answer = await ask('/v1/pair', { method: 'POST', headers: form, body: '{"code":"x","name":"x"}' });
    expect(answer).toMatchObject({ status: 415 });
    const crossing = await ask('/v1/pair', {
      method: 'POST',
      headers: { ...JSON_TYPE, origin: 'http://evil.example' },
      body: '{}',
    });
    expect(crossing.status).toBe(403);
  });

  test('S25, CVE-2026-45671: what another token made is as unknown as what nobody made', async () => {
    await using peer = await WsPeer.hello(agent.address, operator);
    await using stranger = await WsPeer.hello(agent.address, other);
    for (const method of ['job.get', 'job.cancel']) {
      const [mine, theirs] = [await peer.ask(method, { jobId: ID }), await stranger.ask(method, { jobId: ID })];
      expect(mine.error).toEqual(theirs.error);
      expect(mine.error?.data.code).toBe('JOB_NOT_FOUND');
    }
  });

  test('S7, GHSA-rqpp-rjj8-7wv8: a viewer is refused every message but hello, whatever it calls itself', async () => {
    const viewer = await tokens.add({ name: 'viewer', role: 'viewer' });
    await using peer = await WsPeer.hello(agent.address, viewer);
    for (const [method, params] of Object.entries(MESSAGES)) {
      const { error } = await peer.ask(method, { ...params, role: 'operator', scopes: ['operator.admin'] });
      expect(error?.data, method).toMatchObject({ code: 'AUTH_FAILED' });
      expect(error?.message, method).toContain('needs a token of role operator');
    }
    const upload = { method: 'PUT', token: viewer, body: 'x' } as const;
    expect((await ask(`/v1/inputs/${SHA256}`, upload)).status).toBe(403);
    expect(agent.snapshot().isDraining).toBe(false);
  });

  test('S8, CVE-2026-44553: from the answer to a revocation on, no message of that token is answered', async () => {
    const text = await tokens.add({ name: 'doomed', role: 'operator' });
    await using peer = await WsPeer.hello(agent.address, text);
    await using neighbour = await WsPeer.hello(agent.address, other);
    using host = await HostClient.connect(join(dir, 'state', 'agent.sock'));
    await host.ask('token.revoke', { name: 'doomed' });
    for (const [index, [method, params]] of Object.entries(MESSAGES).entries())
      peer.send({ jsonrpc: '2.0', id: 1_000 + index, method, params });
    expect((await peer.closed()).code).toBe(CLOSE_CODES.AUTH_REVOKED.code);
    expect(peer.frames.filter((frame) => 'id' in frame && frame.id >= 1_000)).toEqual([]);
    expect(agent.snapshot().isDraining).toBe(false);
    expect(await neighbour.ask('job.offer', { lines: [] })).toMatchObject({ result: {} });
  });

  test('S11, CVE-2026-48779: the 1,025th fragment of a message ends its link', async () => {
    const headers = { authorization: `Bearer ${other}` };
    const socket = new WebSocket(`ws://127.0.0.1:${agent.address.port}/v1/ws`, SUBPROTOCOL, { headers });
    socket.on('error', () => undefined); // its close is what counts
    await once(socket, 'open');
    const closed = once(socket, 'close');
    for (let count = 0; count < 1_025; count += 1) socket.send('x', { fin: false });
    const [code] = (await closed) as [number]; // documented arguments of this event
    expect([1006, 1008, 1009]).toContain(code);
  });

  test('CVE-2024-37890: an upgrade with headers without end is refused, and the agent lives', async () => {
    const many = Object.fromEntries(Array.from({ length: 2_100 }, (_, index) => [`x${index}`, '1']));
    const upgrade = { connection: 'Upgrade', upgrade: 'websocket', 'sec-websocket-version': '13' };
    const asked = request({
      host: '127.0.0.1',
      port: agent.address.port,
      path: '/v1/ws',
      headers: { ...many, ...upgrade, authorization: `Bearer ${operator}` },
    });
    const end = Promise.race([
      once(asked, 'response').then(([answer]) => String((answer as { statusCode?: number }).statusCode)),
      once(asked, 'upgrade').then(() => 'upgraded'),
      once(asked, 'close').then(() => 'closed'),
    ]).catch(() => 'closed');
    asked.end();
    expect(await end).toMatch(/^(4\d\d|closed)$/);
    asked.destroy();
    expect((await ask('/healthz')).body.trim()).toBe('ok');
  });

  test('S13: a token over its requests is told so, in a typed error, and another one does not feel it', async () => {
    await using peer = await WsPeer.hello(agent.address, operator);
    await using neighbour = await WsPeer.hello(agent.address, other);
    let refused: string | undefined;
    for (let round = 0; round < 100 && refused === undefined; round += 1) {
      const replies = await Promise.all(Array.from({ length: 60 }, () => peer.ask('job.get', { jobId: ID })));
      refused = replies.map(({ error }) => error?.data.code).find((code) => code === 'RATE_LIMITED');
    }
    expect(refused).toBe('RATE_LIMITED');
    expect((await neighbour.ask('job.get', { jobId: ID })).error?.data.code).toBe('JOB_NOT_FOUND');
  }, 30_000);

  type Ask = {
    method?: 'GET' | 'PUT' | 'POST' | 'DELETE';
    token?: string;
    headers?: Record<string, string>;
    body?: string;
  };

  async function ask(path: string, { method = 'GET', token, headers = {}, body }: Ask = {}) {
    const authorization = token === undefined ? {} : { authorization: `Bearer ${token}` };
    const options = {
      method,
      headers: { ...authorization, ...headers },
      signal: never,
      deadlineMs: 10_000,
      maxBytes: 100_000,
    };
    const answer = await fetchBody(`http://127.0.0.1:${agent.address.port}${path}`, {
      ...options,
      ...(body !== undefined && { body }),
    });
    return { ...answer, body: answer.body.toString() };
  }
});

const JSON_TYPE = { 'content-type': 'application/json' };

test('S9, CVE-2026-25593, CVE-2024-37032: no message carries what is executed, nor a path', () => {
  const evil = {
    cmd: ['sh'],
    command: ['sh'],
    args: ['-c'],
    env: { A: 'b' },
    cwd: '/',
    path: '/etc/passwd',
    url: 'http://evil',
  };
  for (const [method, { params }] of Object.entries({ ...REQUESTS, ...HOST_REQUESTS })) {
    expect(
      Object.keys(params.shape).filter((key) => key in evil),
      method,
    ).toEqual([]);
  }
  expect(REQUESTS['model.load'].params.parse({ model: 'm', ...evil })).toEqual({ model: 'm' });
});

test('S20: an error carries no control characters, and no more than it may', () => {
  const hostile = `\u001b[31mred\u0000\u009b0m ${'x'.repeat(5_000)}`;
  const frame = JSON.stringify(errorFrame(1, new AppError('ENGINE_FAILED', hostile)));
  expect(frame).not.toMatch(/\\u00(1b|00|9b)/i);
  expect(frame.length).toBeLessThan(5_000);
  expect(cleaned('a\u001b]0;title\u0007b', 100)).toBe('a ]0;title b');
});

describe('S24: what is installed', () => {
  test('has the versions that are needed, and no native build at its installation', async () => {
    const { packages } = JSON.parse(await readFile('package-lock.json', 'utf8')) as {
      packages: Record<string, { version: string; dev?: boolean; hasInstallScript?: boolean }>;
    };
    const version = (name: string) => packages[`node_modules/${name}`]?.version ?? '0';
    const isAtLeast = (name: string, floor: string) => version(name).localeCompare(floor, 'en', { numeric: true }) >= 0;
    expect(isAtLeast('ws', '8.21.3'), 'CVE-2026-48779, GHSA-58qx-3vcg-4xpx').toBe(true);
    expect(isAtLeast('@modelcontextprotocol/sdk', '1.26.0'), 'S23: CVE-2025-66414, CVE-2026-0621, CVE-2026-25536').toBe(
      true,
    );
    expect(isAtLeast('sharp', '0.35.0'), 'CVE-2023-4863').toBe(true);
    const building = Object.entries(packages).filter(
      ([name, { dev, hasInstallScript }]) => name !== '' && !dev && hasInstallScript,
    );
    expect(building.map(([name]) => name)).toEqual([]);
  });

  test('every package that runs has an entry in docs/decisions.md', async () => {
    const { dependencies } = JSON.parse(await readFile('package.json', 'utf8')) as {
      dependencies: Record<string, string>;
    };
    const decisions = await readFile('docs/decisions.md', 'utf8');
    expect(Object.keys(dependencies).filter((name) => !decisions.includes(name))).toEqual([]);
  });
});

test('S22, CVE-2025-6514, CVE-2025-53967: no shell anywhere in the programs', async () => {
  await expectNowhere(
    /\bshell:\s*(?!\s|false)|\bexecSync\b|\bexecaCommand|\bimport [^;]*\bexec\b[^;]*child_process|\bchild_process'\);|\beval\(|new Function\(/,
  );
});

test('CVE-2026-21637, -21710: what makes Node crash on a hostile hand-shake or header is not used', async () => {
  await expectNowhere(/\b(SNICallback|ALPNCallback|pskCallback|headersDistinct|trailersDistinct)\b/);
});

async function expectNowhere(pattern: RegExp): Promise<void> {
  const folders = ['agent', 'bridge', 'shared'].map(async (folder) =>
    (await readdir(folder, { recursive: true })).map((name) => join(folder, name)),
  );
  const files = (await Promise.all(folders)).flat().filter((name) => name.endsWith('.ts'));
  for (const file of files) expect(await readFile(file, 'utf8'), file).not.toMatch(pattern);
}

test('S23: the bridge opens no port', async () => {
  const files = (await readdir('bridge/mcp', { recursive: true })).filter((name) => name.endsWith('.ts'));
  for (const file of files)
    expect(await readFile(join('bridge/mcp', file), 'utf8'), file).not.toMatch(
      /createServer\(\(|\.listen\(|streamableHttp|node:http/,
    );
});
