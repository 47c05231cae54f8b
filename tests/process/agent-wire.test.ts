import { createHash, randomUUID } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { SimulatedHost } from '../../scripts/lib/simulated-host.ts';
import { fetchBody } from '../../shared/http-client.ts';
import type { EditRequest, GenerateRequest } from '../../shared/job.ts';
import { ModelMove, NOTIFICATIONS, REQUESTS } from '../../shared/protocol.ts';
import { eventually, isAlive } from '../helpers/fleet.ts';
import { WsPeer } from '../agent/rpc/ws-peer.ts';

const PATIENCE = 120_000;
const KLEIN = 'black-forest-labs/FLUX.2-klein-4B';
const STEP1X = 'stepfun-ai/Step1X-Edit';
const FAST = ['--load-ms', '100', '--step-ms', '5', '--weights-mib', '8000', '--peak-mib', '10000'];

// The real program with simulated engines, seen from the wire: what a bridge would have to deal with.
describe('one host from hello to release', { timeout: PATIENCE }, () => {
  let dir: string;
  let host: SimulatedHost;
  let peer: WsPeer;
  let address: { port: number };

  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), 'gantry-wire-'));
    host = await SimulatedHost.start({
      name: 'wire',
      directory: dir,
      gpus: [{ name: 'Simulated RTX 4090', totalMiB: 24_564 }],
      models: {
        klein: { engine: 'vllm-omni', model: KLEIN, args: [...FAST] },
        step1x: { engine: 'step1x-edit', model: STEP1X, args: FAST, profile: { weightsMiB: 8_000, peakMiB: 10_000 } },
      },
      config: { gpu: { sample_interval: '100ms' }, times: { health_poll: '50ms', grant: '2s', stop_grace: '2s' } },
    });
    address = { port: Number(new URL(host.url).port) };
    peer = await WsPeer.hello(address, host.token);
  }, PATIENCE);
  afterAll(async () => {
    await peer[Symbol.asyncDispose]();
    await host[Symbol.asyncDispose]();
    await rm(dir, { recursive: true, force: true });
  }, PATIENCE);

  test('the snapshot says that it is simulated, and what is there', async () => {
    const first = await peer.until(() => peer.notifications('snapshot')[0]);
    const { snapshot } = NOTIFICATIONS.snapshot.params.parse(first);
    expect(snapshot.models.map(({ alias, model, state }) => [alias, model, state])).toEqual([
      ['klein', KLEIN, 'released'],
      ['step1x', STEP1X, 'released'],
    ]);
    const phases = () => currentState(peer).models?.map(({ slots }) => slots[0]?.phase);
    await peer.until(() => (phases()?.every((phase) => phase === 'idle') ? true : undefined));
    await peer.until(() => (currentState(peer).isSimulated === true ? true : undefined));
    await peer.until(() => currentState(peer).gpus?.find(({ totalMiB }) => totalMiB === 24_564));
    await eventually('it is ready', async () => (await readyz()).ready || undefined);
  });

  test('offer, grant, take, done, fetch, acknowledge', async () => {
    const jobId = randomUUID();
    await offer(KLEIN);
    const grant = await nextGrant(peer, KLEIN);
    const job = { jobId, attempt: 1, class: 'interactive', request: generateRequest() };
    const taken = REQUESTS['job.take'].result.parse(
      (await peer.ask('job.take', { grantId: grant.grantId, job })).result,
    );
    expect(taken).toMatchObject({ job: { jobId, attempt: 1, state: 'accepted' }, missingInputs: [] });
    const { result } = await ended(peer, jobId);
    expect(result).toMatchObject({
      width: 256,
      height: 256,
      format: 'png',
      gpu: expect.stringContaining('4090') as string,
    });

    const image = await get(`/v1/results/${jobId}`);
    expect(createHash('sha256').update(image.body).digest('hex')).toBe(result.sha256);
    expect(image.headers.etag).toBe(`"${result.sha256}"`);
    expect(await sharp(image.body).metadata()).toMatchObject({ width: 256, height: 256 });
    expect(image.body.toString('latin1')).toContain('"simulated":true');
    expect((await sharp((await get(`/v1/results/${jobId}/preview`)).body).metadata()).format).toBe('jpeg');

    expect(await peer.ask('job.ack', { jobId, attempt: 1, sha256: result.sha256 })).toMatchObject({ result: {} });
    expect((await get(`/v1/results/${jobId}`)).status).toBe(404);
    await using next = await WsPeer.hello(address, host.token);
    expect(next.frames[0]).toMatchObject({ result: { jobs: [] } });
  });

  test('an edit waits for its input, which is sent by HTTP', async () => {
    const jobId = randomUUID();
    const input = await sharp({ create: { width: 64, height: 48, channels: 3, background: '#08f' } })
      .jpeg()
      .toBuffer();
    const sha256 = createHash('sha256').update(input).digest('hex');
    await offer(STEP1X);
    const grant = await nextGrant(peer, STEP1X);
    const job = { jobId, attempt: 1, class: 'interactive', request: editRequest(sha256) };
    const taken = await peer.ask('job.take', { grantId: grant.grantId, job });
    expect(taken.result).toMatchObject({ missingInputs: [sha256] });
    expect((await put(`/v1/inputs/${sha256}`, input)).status).toBe(201);
    const { result } = await ended(peer, jobId);
    expect(result.bytes).toBeGreaterThan(0);
    expect(await peer.ask('job.ack', { jobId, attempt: 1 })).toMatchObject({ result: {} });
  });

  test('release gives the VRAM back, as nvidia-smi shows it', async () => {
    await peer.ask('job.offer', { lines: [] });
    await peer.ask('model.load', { model: KLEIN });
    const held = await usedMiB(host);
    expect(held).toBeGreaterThanOrEqual(8_000);
    const { result } = await peer.ask('model.release', { model: KLEIN });
    expect(ModelMove.parse(result)).toMatchObject({ model: KLEIN, state: 'released', done: 'release' });
    expect(held - (await usedMiB(host))).toBeGreaterThan(0.8 * 8_000);
  });

  test('SIGTERM lets the running job end, tells its bridge, and the next start still has its result', async () => {
    const jobId = randomUUID();
    await offer(KLEIN);
    const grant = await nextGrant(peer, KLEIN, 2);
    const slow = { ...generateRequest(), steps: 200 };
    await peer.ask('job.take', {
      grantId: grant.grantId,
      job: { jobId, attempt: 1, class: 'interactive', request: slow },
    });
    await peer.until(() => peer.notifications('job.progress').find((each) => isRunning(each, jobId)));
    expect(await host.stopAgent()).toBe(0);
    const { result } = await ended(peer, jobId);
    expect((await peer.closed()).code).toBe(1001);
    expect(await host.computePids()).toEqual([]);
    await host.startAgent();
    await using next = await WsPeer.hello(address, host.token);
    expect(next.frames[0]).toMatchObject({ result: { jobs: [{ jobId, state: 'done', result }] } });
    expect((await get(`/v1/results/${jobId}`)).body.length).toBe(result.bytes);
  });

  test('a revoked token loses its results with its link', async () => {
    const config = ['--config', join(dir, 'agent.yaml')];
    const { execa } = await import('execa');
    const { stdout: token } = await execa('node', ['dist/gantry-agent.mjs', 'tokens', 'add', 'guest', ...config]);
    await using guest = await WsPeer.hello(address, token);
    const jobId = randomUUID();
    await guest.ask('job.offer', { lines: [line(KLEIN)] });
    const grant = await nextGrant(guest, KLEIN);
    const job = { jobId, attempt: 1, class: 'interactive', request: generateRequest() };
    await guest.ask('job.take', { grantId: grant.grantId, job });
    await ended(guest, jobId);
    expect((await get(`/v1/results/${jobId}`, token)).status).toBe(200);
    expect((await get(`/v1/results/${jobId}`)).status).toBe(404); // the other token's eyes
    await execa('node', ['dist/gantry-agent.mjs', 'tokens', 'revoke', 'guest', ...config]);
    expect((await guest.closed()).code).toBe(4401);
    expect((await get(`/v1/results/${jobId}`, token)).status).toBe(401);
    await eventually('the log says so', () =>
      Promise.resolve(host.log.some((text) => text.includes('"token-revoked"'))),
    );
  });

  async function offer(model: string): Promise<void> {
    expect(await peer.ask('job.offer', { lines: [line(model)] })).toMatchObject({ result: {} });
  }

  async function get(path: string, token = host.token) {
    return await send(path, { headers: { authorization: `Bearer ${token}` } });
  }

  async function put(path: string, body: Buffer) {
    return await send(path, { method: 'PUT', body, headers: { authorization: `Bearer ${host.token}` } });
  }

  async function readyz(): Promise<{ ready: boolean }> {
    return z.object({ ready: z.boolean() }).parse(JSON.parse((await get('/readyz')).body.toString()));
  }

  async function send(path: string, options: Partial<Parameters<typeof fetchBody>[1]>) {
    const url = `${host.url.replace('ws', 'http')}${path}`;
    return await fetchBody(url, { signal: AbortSignal.timeout(10_000), deadlineMs: 10_000, maxBytes: 1e7, ...options });
  }
});

test('after a crash it answers at once; what the crash left is gone before anything is loaded', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'gantry-crash-'));
  await using host = await SimulatedHost.start({
    name: 'crash',
    directory,
    gpus: [{ name: 'Simulated RTX 4090', totalMiB: 24_564 }],
    models: { klein: { engine: 'vllm-omni', model: KLEIN, args: [...FAST, '--fork', '--ignore-sigterm'] } },
    config: { gpu: { sample_interval: '100ms' }, times: { health_poll: '50ms', stop_grace: '2s' } },
  });
  const address = { port: Number(new URL(host.url).port) };
  {
    await using peer = await WsPeer.hello(address, host.token);
    await eventually('it has started', () => Promise.resolve(host.log.some((text) => text.includes('"started"'))));
    await peer.ask('model.load', { model: KLEIN });
  }
  const orphans = await host.computePids();
  expect(orphans.length).toBeGreaterThan(0);
  await host.stopAgent('SIGKILL');
  host.log.length = 0;
  await host.startAgent();
  expect(host.log.some((text) => text.includes('"started"'))).toBe(false); // the orphans ignore SIGTERM for 2 s
  await using peer = await WsPeer.hello(address, host.token);
  expect((await peer.ask('model.load', { model: KLEIN })).error?.data).toMatchObject({ code: 'GPU_BUSY' });
  await peer.ask('job.offer', { lines: [line(KLEIN)] });
  await nextGrant(peer, KLEIN);
  expect((await Promise.all(orphans.map(isAlive))).some(Boolean)).toBe(false);
  await host[Symbol.asyncDispose]();
  await rm(directory, { recursive: true, force: true });
}, 120_000);

function line(model: string): object {
  return { model, class: 'interactive', count: 1, workMs: 500, longestMs: 500, maxMegapixels: 0.07, inFlight: 0 };
}

async function nextGrant(peer: WsPeer, model: string, nth = 1) {
  const grants = () =>
    peer.notifications('slot.grant').map((params) => NOTIFICATIONS['slot.grant'].params.parse(params));
  return await peer.until(() => grants().filter((grant) => grant.model === model)[nth - 1]);
}

function isRunning(progress: unknown, jobId: string): boolean {
  const { state, ...about } = NOTIFICATIONS['job.progress'].params.parse(progress);
  return state === 'running' && about.jobId === jobId;
}

async function ended(peer: WsPeer, jobId: string) {
  const { result } = await peer.until(() => {
    const failed = peer.notifications('job.failed').find((params) => JSON.stringify(params).includes(jobId));
    if (failed !== undefined) throw new Error(JSON.stringify(failed));
    const done = peer.notifications('job.done').map((params) => NOTIFICATIONS['job.done'].params.parse(params));
    return done.find((params) => params.jobId === jobId);
  });
  return { result };
}

/** The snapshot with all deltas laid over it; a missing revision would be a defect. */
function currentState(peer: WsPeer) {
  const snapshots = peer.notifications('snapshot').map((params) => NOTIFICATIONS.snapshot.params.parse(params));
  const deltas = peer.notifications('delta').map((params) => NOTIFICATIONS.delta.params.parse(params));
  let revision = snapshots[0]?.revision ?? 0;
  let state: Partial<(typeof snapshots)[number]['snapshot']> = snapshots[0]?.snapshot ?? {};
  for (const delta of deltas) {
    revision += 1;
    expect(delta.revision).toBe(revision);
    state = { ...state, ...delta.changed } as typeof state; // a partial's absent fields are absent, not undefined
  }
  return state;
}

async function usedMiB(host: SimulatedHost): Promise<number> {
  return Number(await host.nvidiaSmi('--query-gpu=memory.used', '--format=csv,noheader,nounits'));
}

function generateRequest(): GenerateRequest {
  const guidance = { field: 'guidance_scale', value: 1 } as const;
  const size = { width: 256, height: 256 };
  return { kind: 'generate', model: KLEIN, prompt: 'a crane', steps: 4, guidance, seed: 7, format: 'png', ...size };
}

function editRequest(input: string): EditRequest {
  const guidance = { field: 'guidance_scale', value: 6 } as const;
  const rest = { steps: 10, guidance, seed: 7, format: 'png', inputs: [input], sizeLevel: 512 } as const;
  return { kind: 'edit', model: STEP1X, prompt: 'make it red', ...rest, inputs: [input] };
}
