import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Agent } from '../../../agent/agent.ts';
import { loadAgentConfig } from '../../../agent/config.ts';
import { TokenStore } from '../../../agent/tokens.ts';
import { fetchBody } from '../../../shared/http-client.ts';
import { createLog } from '../../../shared/log.ts';
import { CLOSE_CODES, NOTIFICATIONS, PROTOCOL_VERSION } from '../../../shared/protocol.ts';
import { WebSocket } from 'ws';
import { WsPeer } from './ws-peer.ts';

const log = createLog({ name: 'test', to: 'stderr', level: 'silent' });
const hello = () => ({ version: PROTOCOL_VERSION, bridgeId: randomUUID(), name: 'test' });

let dir: string;
let agent: Agent;
let tokens: TokenStore;
let operator: string;
let viewer: string;

// One host without models and without nvidia-smi: what is tested here does not depend on either.
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-rpc-'));
  const config = join(dir, 'agent.yaml');
  await writeFile(
    config,
    `listen: 127.0.0.1:0\nstate_dir: state\nnames: [gpubox.lan]\ngpu: { nvidia_smi: ${dir}/absent }\ntimes: { ping_every: 100ms, silence: 1s }\n`,
  );
  agent = await Agent.start(await loadAgentConfig({ config }, {}), { log, signal: new AbortController().signal });
  tokens = new TokenStore({ stateDir: join(dir, 'state') });
  operator = await tokens.add({ name: 'operator', role: 'operator' });
  viewer = await tokens.add({ name: 'viewer', role: 'viewer' });
});
afterAll(async () => {
  await agent[Symbol.asyncDispose]();
  await rm(dir, { recursive: true, force: true });
});

describe('before the upgrade', () => {
  test.each([
    ['another path', { path: '/v1/wss' }, 404],
    ['the token in the path', { path: '/v1/ws?token=x' }, 404],
    ['a name rebound to this machine', { headers: { host: 'evil.example' } }, 421],
    ['a web page', { headers: { origin: 'http://evil.example' } }, 403],
    ['a sandboxed web page', { headers: { origin: 'null' } }, 403],
    ['another sub-protocol', { protocols: ['gantry.v999'] }, 426],
    ['no sub-protocol', { protocols: [] }, 426],
  ])('%s is refused', async (_, options, status) => {
    expect(await WsPeer.connect(agent.address, { token: operator, ...options })).toMatchObject({ status });
  });

  test('the checks have an order: path, Host, Origin, token, sub-protocol', async () => {
    const everything = { path: '/x', headers: { host: 'evil.example', origin: 'http://evil.example' }, protocols: [] };
    const status = async (options: object) => {
      const refused = await WsPeer.connect(agent.address, options);
      return 'status' in refused ? refused.status : 101;
    };
    expect(await status(everything)).toBe(404);
    expect(await status({ ...everything, path: '/v1/ws' })).toBe(421);
    expect(await status({ ...everything, path: '/v1/ws', headers: { origin: 'http://evil.example' } })).toBe(403);
    expect(await status({ protocols: [] })).toBe(401);
    expect(await status({ protocols: [], token: operator })).toBe(426);
  });

  test('no, wrong and revoked token are refused with the same bytes', async () => {
    const revoked = await tokens.add({ name: 'revoked', role: 'operator' });
    await tokens.revoke('revoked');
    const answers = await Promise.all([
      WsPeer.connect(agent.address),
      WsPeer.connect(agent.address, { token: `gantry_${'A'.repeat(43)}` }),
      WsPeer.connect(agent.address, { token: revoked }),
      WsPeer.connect(agent.address, { token: 'x'.repeat(4_000) }),
    ]);
    expect(answers.map((answer) => 'status' in answer && answer.status)).toEqual([401, 401, 401, 401]);
    expect(new Set(answers.map((answer) => 'text' in answer && answer.text)).size).toBe(1);
  });

  test('a configured name of the host is fine', async () => {
    await using peer = connected(
      await WsPeer.connect(agent.address, { token: operator, headers: { host: 'gpubox.lan:80' } }),
    );
    expect(await peer.ask('hello', hello())).toHaveProperty('result');
  });
});

describe('hello', () => {
  test('is answered, and the whole state follows', async () => {
    await using peer = connected(await WsPeer.connect(agent.address, { token: viewer }));
    expect(await peer.ask('hello', hello())).toMatchObject({
      result: { agentId: expect.any(String) as string, jobs: [] },
    });
    const params = await peer.until(() => peer.notifications('snapshot')[0]);
    const { snapshot } = NOTIFICATIONS.snapshot.params.parse(params);
    expect(snapshot).toMatchObject({ isSimulated: false, isDraining: false, models: [], offered: [] });
    expect(snapshot.memory.totalMiB).toBeGreaterThan(0);
  });

  test('of another protocol version is refused by name and closed', async () => {
    await using peer = connected(await WsPeer.connect(agent.address, { token: operator }));
    const reply = await peer.ask('hello', { version: PROTOCOL_VERSION + 1, entirely: 'different' });
    expect(reply.error?.data.code).toBe('VERSION_MISMATCH');
    expect((await peer.closed()).code).toBe(CLOSE_CODES.VERSION_MISMATCH.code);
  });

  test.each([
    ['another method first', { jsonrpc: '2.0', id: 1, method: 'job.offer', params: { lines: [] } }],
    ['a bridge id that is none', { jsonrpc: '2.0', id: 1, method: 'hello', params: { ...hello(), bridgeId: 'me' } }],
    ['no JSON', 'hello?'],
    ['no JSON-RPC', { hello: true }],
    ['a batch', [{ jsonrpc: '2.0', id: 1, method: 'hello', params: hello() }]],
    ['a reply to nothing', { jsonrpc: '2.0', id: 1, result: {} }],
    ['an id that no reply could carry', { jsonrpc: '2.0', id: 1.5, method: 'hello', params: hello() }],
    ['no id at all but null', { jsonrpc: '2.0', id: null, method: 'hello', params: hello() }],
  ])('%s closes the link', async (_, frame) => {
    await using peer = connected(await WsPeer.connect(agent.address, { token: operator }));
    peer.send(frame);
    expect((await peer.closed()).code).toBe(CLOSE_CODES.INVALID_FRAME.code);
  });

  test('a newer session of the same bridge ends the older one', async () => {
    const bridgeId = randomUUID();
    await using older = await WsPeer.hello(agent.address, operator, bridgeId);
    await using newer = await WsPeer.hello(agent.address, operator, bridgeId);
    expect((await older.closed()).code).toBe(CLOSE_CODES.REPLACED.code);
    expect(await newer.ask('job.offer', { lines: [] })).toMatchObject({ result: {} });
  });
});

describe('requests', () => {
  test('an unknown method is answered, the link stays', async () => {
    await using peer = await WsPeer.hello(agent.address, operator);
    expect(await peer.ask('job.teleport', {})).toMatchObject({ error: { code: -32_601 } });
    expect(await peer.ask('toString', {})).toMatchObject({ error: { code: -32_601 } });
    expect(await peer.ask('job.offer', { lines: [], aFieldOfTomorrow: 1 })).toMatchObject({ result: {} });
  });

  test('parameters that break the schema close the link, with their path', async () => {
    await using peer = await WsPeer.hello(agent.address, operator);
    peer.send({ jsonrpc: '2.0', id: 9, method: 'job.cancel', params: { jobId: 'x' } });
    expect(await peer.closed()).toMatchObject({
      code: 4400,
      reason: expect.stringContaining('job.cancel.jobId') as string,
    });
  });

  test('an error has a code, a sentence and no stack', async () => {
    await using peer = await WsPeer.hello(agent.address, operator);
    const { error } = await peer.ask('job.get', { jobId: randomUUID() });
    expect(error).toMatchObject({ code: -32_000, data: { code: 'JOB_NOT_FOUND', retryable: false } });
    expect(JSON.stringify(error)).not.toMatch(/\.ts|node:|at /);
    const unknown = await peer.ask('model.load', { model: 'no/such' });
    expect(unknown.error?.data.code).toBe('MODEL_UNKNOWN');
  });

  test('a viewer may look and nothing else, whatever it claims', async () => {
    await using peer = connected(await WsPeer.connect(agent.address, { token: viewer }));
    await peer.ask('hello', { ...hello(), role: 'operator' });
    for (const [method, params] of [
      ['job.offer', { lines: [] }],
      ['job.get', { jobId: randomUUID() }],
      ['model.release', { model: 'x' }],
    ] as const) {
      expect((await peer.ask(method, params)).error?.data.code, method).toBe('AUTH_FAILED');
    }
  });

  test('a frame above 1 MiB ends the link, others are served', async () => {
    await using other = await WsPeer.hello(agent.address, operator);
    await using peer = await WsPeer.hello(agent.address, operator);
    peer.send('x'.repeat(1024 * 1024 + 1));
    expect((await peer.closed()).code).toBe(1009);
    expect(await other.ask('job.offer', { lines: [] })).toMatchObject({ result: {} });
  });
});

describe('a link', () => {
  test('of a revoked token is closed within a second or so', async () => {
    const text = await tokens.add({ name: 'soon gone', role: 'operator' });
    await using peer = await WsPeer.hello(agent.address, text);
    await tokens.revoke('soon gone');
    expect((await peer.closed()).code).toBe(CLOSE_CODES.AUTH_REVOKED.code);
  });

  test('whose peer asks on and on but never reads is cut', async () => {
    const url = `ws://127.0.0.1:${agent.address.port}/v1/ws`;
    const deaf = new WebSocket(url, ['gantry.v1'], { headers: { authorization: `Bearer ${operator}` } });
    await once(deaf, 'open');
    const closed = once(deaf, 'close', { signal: AbortSignal.timeout(8_000) });
    deaf.pause();
    deaf.send(JSON.stringify({ jsonrpc: '2.0', id: 0, method: 'hello', params: hello() }));
    const question = (id: number) =>
      JSON.stringify({ jsonrpc: '2.0', id, method: `no such method ${'x'.repeat(60)}`, params: {} });
    for (let id = 1; id <= 40_000; id += 1) deaf.send(question(id));
    let isCut = false;
    const isRefused = (error?: Error): void => void (isCut ||= error !== undefined);
    await expect.poll(() => (deaf.send(question(1), isRefused), isCut), { timeout: 60_000 }).toBe(true);
    deaf.resume();
    await closed;
    await using other = await WsPeer.hello(agent.address, operator);
    expect(await other.ask('job.offer', { lines: [] })).toMatchObject({ result: {} });
  });

  test('that answers pings stays; one that is silent is cut', async () => {
    await using awake = await WsPeer.hello(agent.address, operator);
    const silent = connect(agent.address.port, '127.0.0.1');
    silent.write(
      `GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n` +
        `Sec-WebSocket-Key: ${randomUUID().slice(0, 22)}==\r\nSec-WebSocket-Protocol: gantry.v1\r\nAuthorization: Bearer ${operator}\r\n\r\n`,
    );
    silent.resume();
    await once(silent, 'close', { signal: AbortSignal.timeout(5_000) });
    expect(await awake.ask('job.offer', { lines: [] })).toMatchObject({ result: {} });
  });
});

describe('plain HTTP on the same port', () => {
  test.each([
    ['/healthz', undefined, 200],
    ['/readyz', undefined, 401],
    ['/v1/ws', undefined, 401],
    ['/v1/results/x', undefined, 401],
    ['/?token=x', undefined, 401],
    ['/readyz', 'operator', 503],
    ['/v1/ws', 'operator', 404],
  ])('%s as %s is %i', async (path, as, status) => {
    expect((await get(path, as === undefined ? {} : { authorization: `Bearer ${operator}` })).status).toBe(status);
  });

  test('a foreign Host or Origin is refused also where no token is needed', async () => {
    expect((await get('/healthz', { host: 'evil.example' })).status).toBe(421);
    expect((await get('/healthz', { origin: 'http://evil.example' })).status).toBe(403);
  });

  test('readyz tells what is missing', async () => {
    const { body } = await get('/readyz', { authorization: `Bearer ${viewer}` });
    expect(JSON.parse(body.toString())).toEqual({ ready: false, reasons: ['No model is configured.'] });
  });
});

test('a body that is refused unread does not cost the peer the answer', async () => {
  const body = Buffer.alloc(20 * 1024 ** 2);
  const path = `/v1/inputs/${'0'.repeat(64)}`;
  for (let round = 0; round < 5; round += 1) {
    const url = `http://127.0.0.1:${agent.address.port}${path}`;
    const limits = { signal: AbortSignal.timeout(5_000), deadlineMs: 5_000, maxBytes: 1e6 };
    const headers = { authorization: `Bearer ${round % 2 === 0 ? viewer : 'nobody'}` };
    const { status } = await fetchBody(url, { method: 'PUT', headers, body, ...limits });
    expect(status).toBe(round % 2 === 0 ? 403 : 401);
  }
});

test('two hundred bridges that come and go leave nothing behind', async () => {
  const warnings: string[] = [];
  const onWarning = (warning: Error): void => void warnings.push(warning.name);
  process.on('warning', onWarning);
  const visit = async (): Promise<void> => {
    await using peer = await WsPeer.hello(agent.address, operator);
    const line = { model: 'm', class: 'batch', count: 1, workMs: 1, longestMs: 1, maxMegapixels: 1, inFlight: 0 };
    await peer.ask('job.offer', { lines: [line] });
  };
  for (let round = 0; round < 10; round += 1) await Promise.all(Array.from({ length: 20 }, visit));
  await using last = await WsPeer.hello(agent.address, operator);
  const { snapshot } = NOTIFICATIONS.snapshot.params.parse(await last.until(() => last.notifications('snapshot')[0]));
  expect(snapshot.offered).toEqual([]);
  process.off('warning', onWarning);
  expect(warnings).toEqual([]);
});

test('what a token left that was revoked while no agent ran is gone at the next start', async () => {
  const stateDir = join(dir, 'other');
  const config = join(dir, 'other.yaml');
  await writeFile(config, `listen: 127.0.0.1:0\nstate_dir: other\ngpu: { nvidia_smi: ${dir}/absent }\n`);
  const gone = join(stateDir, 'inputs', 'a-token-that-is-gone');
  await mkdir(gone, { recursive: true });
  await writeFile(join(gone, `${'a'.repeat(64)}.png`), 'picture');
  const settings = await loadAgentConfig({ config }, {});
  await using _other = await Agent.start(settings, { log, signal: new AbortController().signal });
  expect(await readdir(join(stateDir, 'inputs'))).toEqual([]);
});

async function get(path: string, headers: Record<string, string>) {
  const url = `http://127.0.0.1:${agent.address.port}${path}`;
  return await fetchBody(url, { headers, signal: AbortSignal.timeout(5_000), deadlineMs: 5_000, maxBytes: 1e6 });
}

function connected(peer: WsPeer | { status: number }): WsPeer {
  if (peer instanceof WsPeer) return peer;
  throw new Error(`refused with ${peer.status}`);
}
