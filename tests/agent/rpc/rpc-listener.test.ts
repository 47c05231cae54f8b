import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
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
import { writeFile } from 'node:fs/promises';
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

async function get(path: string, headers: Record<string, string>) {
  const url = `http://127.0.0.1:${agent.address.port}${path}`;
  return await fetchBody(url, { headers, signal: AbortSignal.timeout(5_000), deadlineMs: 5_000, maxBytes: 1e6 });
}

function connected(peer: WsPeer | { status: number }): WsPeer {
  if (peer instanceof WsPeer) return peer;
  throw new Error(`refused with ${peer.status}`);
}
