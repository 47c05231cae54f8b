import { randomUUID } from 'node:crypto';
import { lstat, mkdir, mkdtemp, readdir, readFile, readlink, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import { SimulatedHost } from '../../scripts/lib/simulated-host.ts';
import { fetchBody } from '../../shared/http-client.ts';
import { AgentJob, NOTIFICATIONS } from '../../shared/protocol.ts';
import { WsPeer } from '../agent/rpc/ws-peer.ts';
import { eventually, processTree } from '../helpers/fleet.ts';

const PATIENCE = 120_000;
const MODEL = 'black-forest-labs/FLUX.2-klein-4B';
const PROMPT = 'a crane nobody else may know of';
const FAST = ['--load-ms', '100', '--step-ms', '20', '--weights-mib', '8000', '--peak-mib', '10000'];
/** What a message would carry that wants something else executed, or somewhere else. */
const EVIL = {
  ...{ cmd: ['sh', '-c', 'evil'], command: ['evil'], args: ['--evil'], argv: ['evil'], cliPath: '/evil', cwd: '/evil' },
  ...{ env: { EVIL: '1' }, path: '/evil', url: 'http://evil.example', host: '0.0.0.0', port: 1, attach: 'http://evil' },
};

// Rules of docs/security.md that only show where a real agent starts a real server.
describe('a host with an engine, and two who may use it', { timeout: PATIENCE }, () => {
  let dir: string;
  let host: SimulatedHost;
  let address: { port: number };
  let owner: WsPeer;
  let strangerToken: string;

  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), 'gantry-security-'));
    host = await SimulatedHost.start({
      name: 'sec',
      directory: dir,
      gpus: [{ name: 'Simulated GPU', totalMiB: 24_564 }],
      models: { klein: { engine: 'vllm-omni', model: MODEL, args: FAST, vram: '10000MiB' } },
      config: { gpu: { sample_interval: '100ms' }, times: { health_poll: '50ms', stop_grace: '2s' } },
    });
    address = { port: Number(new URL(host.url).port) };
    strangerToken = await host.addToken('stranger');
    owner = await WsPeer.hello(address, host.token);
    await eventually('it has started', () => Promise.resolve(host.events('started')[0]));
  }, PATIENCE);
  afterAll(async () => {
    await owner[Symbol.asyncDispose]();
    await host[Symbol.asyncDispose]();
    await rm(dir, { recursive: true, force: true });
  }, PATIENCE);

  test('S9, CVE-2026-25593: whatever a message carries, what is spawned is what agent.yaml says', async () => {
    const started = async (more: object): Promise<{ argv: string[]; env: string }> => {
      await owner.ask('model.load', { model: MODEL, ...more });
      const [pid = 0] = await host.computePids();
      const argv = (await readFile(`/proc/${pid}/cmdline`, 'utf8')).split('\0');
      const env = await readFile(`/proc/${pid}/environ`, 'utf8');
      await owner.ask('model.release', { model: MODEL, ...more });
      return { argv: argv.map((each) => (/^\d{4,5}$/.test(each) ? 'PORT' : each)), env };
    };
    const before = await started({});
    const after = await started(EVIL);
    expect(before.argv).toContain(MODEL);
    expect(after.argv).toEqual(before.argv);
    expect(after.env.toLowerCase()).not.toContain('evil');
  });

  test('S17, ShadowMQ: the agent and all it started listen on loopback only', async () => {
    await owner.ask('model.load', { model: MODEL });
    const listening = await listenersOf(await processTree(host.pid));
    expect(listening.length).toBeGreaterThan(1); // the agent's own port, and the engine's
    expect(listening.filter((each) => !isLoopback(each))).toEqual([]);
  });

  test('S13: a job larger than the model makes is refused before it holds the GPU, and the grant goes back', async () => {
    const grantId = await granted(owner);
    const { error } = await owner.ask('job.take', { grantId, job: jobOf({ width: 8_192, height: 8_192 }) });
    expect(error?.data).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(
        /makes at most [\d.]+ megapixels\. The grant went back; the job was not accepted/,
      ) as string,
    });
    const again = await owner.ask('job.take', { grantId, job: jobOf() });
    expect(again.error?.data.code).toBe('GRANT_EXPIRED');
    // More steps than any model wants are no valid message at all.
    await using greedy = await WsPeer.hello(address, host.token);
    greedy.send({ jsonrpc: '2.0', id: 99, method: 'job.take', params: { grantId, job: jobOf({ steps: 201 }) } });
    expect((await greedy.closed()).code).toBe(4400);
  });

  test('S13: while a job runs a token has no more than one after it, however many it offers', async () => {
    await using peer = await WsPeer.hello(address, host.token);
    const taken: string[] = [];
    const firstIsDone = () => JSON.stringify(peer.notifications('job.done')).includes(taken[0] ?? 'none');
    await peer.ask('job.offer', { lines: [line(10)] });
    for (;;) {
      const next = await peer.until(() => (firstIsDone() ? 'done' : grantsOf(peer)[taken.length]));
      if (next === 'done') break;
      const job = jobOf({ steps: 200 }); // longer than a picture takes to be stored
      taken.push(job.jobId);
      await peer.ask('job.take', { grantId: next.grantId, job });
      await peer.ask('job.offer', { lines: [line(10)] });
    }
    await peer.ask('job.offer', { lines: [] });
    for (const jobId of taken) await peer.ask('job.cancel', { jobId });
    // It, the next, and the one after that where the first is still being stored.
    expect(taken.length).toBeLessThanOrEqual(3);
  });

  test('S25, CVE-2026-45671: on every route and in every message, what another token made is what nobody made', async () => {
    await using stranger = await WsPeer.hello(address, strangerToken);
    await using maker = await WsPeer.hello(address, host.token);
    const job = jobOf();
    const taken = await maker.ask('job.take', { grantId: await granted(maker), job });
    expect(taken).toMatchObject({ result: { job: { state: 'accepted' } } });
    await maker.until(() => maker.notifications('job.done').find((each) => JSON.stringify(each).includes(job.jobId)));

    for (const part of ['', '/preview']) {
      const own = await get(`/v1/results/${job.jobId}${part}`, host.token);
      expect(own.status).toBe(200);
      const [theirs, nobodys] = [
        await get(`/v1/results/${job.jobId}${part}`, strangerToken),
        await get(`/v1/results/${randomUUID()}${part}`, strangerToken),
      ];
      expect([theirs.status, theirs.body.toString()]).toEqual([404, nobodys.body.toString()]);
    }
    for (const method of ['job.get', 'job.cancel', 'job.ack']) {
      const ask = async (jobId: string) => (await stranger.ask(method, { jobId, attempt: 1 })).error;
      expect(await ask(job.jobId), method).toEqual(await ask(randomUUID()));
      expect((await ask(job.jobId))?.data.code, method).toBe('JOB_NOT_FOUND');
    }
    // Under its own token the same key is another job: no conflict tells that there is one.
    const other = { ...job, request: { ...job.request, prompt: 'another' } };
    expect(await stranger.ask('job.take', { grantId: await granted(stranger), job: other })).toMatchObject({
      result: { job: { state: 'accepted' } },
    });
    expect((await get(`/v1/results/${job.jobId}`, host.token)).status).toBe(200);
    const seen = JSON.stringify(stranger.frames.filter((frame) => !JSON.stringify(frame).includes(job.jobId)));
    expect(seen).toContain('"models"');
    expect(JSON.stringify(stranger.frames)).not.toContain(PROMPT);
    expect(JSON.stringify([...stranger.notifications('snapshot'), ...stranger.notifications('delta')])).not.toContain(
      job.jobId,
    );
  });

  test('S25: also while it runs, and nobody else can end it', async () => {
    await using stranger = await WsPeer.hello(address, strangerToken);
    await using maker = await WsPeer.hello(address, host.token);
    const job = jobOf({ steps: 200 });
    await maker.ask('job.take', { grantId: await granted(maker), job });
    for (const method of ['job.get', 'job.cancel', 'job.ack']) {
      const ask = async (jobId: string) => (await stranger.ask(method, { jobId, attempt: 1 })).error;
      expect(await ask(job.jobId), method).toEqual(await ask(randomUUID()));
    }
    expect(['accepted', 'running', 'done']).toContain(stateOf(await maker.ask('job.get', { jobId: job.jobId })));
    await maker.until(() => maker.notifications('job.done').find((each) => JSON.stringify(each).includes(job.jobId)));
    expect(JSON.stringify(stranger.frames)).not.toContain(job.jobId);
  });

  test('S23, CVE-2025-49596: a bridge at work has no port, nor has anything it started', async () => {
    const file = join(dir, 'bridge.yaml');
    const hosts = [{ name: 'sec', url: host.url, token: host.token }];
    await writeFile(file, JSON.stringify({ hosts, output_dir: join(dir, 'out'), roots: [dir] }), { mode: 0o600 });
    await using bridge = await BridgeClient.start({ config: file, home: dir, stderr: 'ignore' });
    const made = await bridge.ask('generate_image', { prompt: 'a fox', width: 256, height: 256 });
    expect(made['status']).toBe('success');
    expect(await listenersOf(await processTree(bridge.transport.pid ?? 0))).toEqual([]);
  });

  test('tokens, prompts and pictures that host and bridge keep are for their owners alone', async () => {
    const file = join(dir, 'kept.yaml');
    const hosts = [{ name: 'sec', url: host.url, token: host.token }];
    const home = join(dir, 'kept');
    await mkdir(home);
    const settings = { hosts, output_dir: join(home, 'out'), roots: [home] };
    await writeFile(file, JSON.stringify(settings), { mode: 0o600 });
    await using bridge = await BridgeClient.start({ config: file, home, stderr: 'ignore' });
    expect(await bridge.ask('generate_image', { prompt: PROMPT, width: 256, height: 256 })).toMatchObject({
      status: 'success',
    });
    await bridge.ask('list_images', {}); // which puts the image into the index
    await bridge.ask('save_style', { name: 'night', body: PROMPT });
    const kept = await Promise.all([join(host.directory, 'state'), join(home, '.local')].map(openTo));
    expect(kept.flatMap(({ names }) => names).join('\n')).toMatch(/tokens\.json[^]*images\.jsonl/);
    expect(kept.flatMap(({ open }) => open)).toEqual([]);
  });

  async function get(path: string, token: string) {
    const headers = { authorization: `Bearer ${token}` };
    const signal = new AbortController().signal;
    const url = `http://127.0.0.1:${address.port}${path}`;
    return await fetchBody(url, { headers, signal, deadlineMs: 30_000, maxBytes: 1e7 });
  }
});

function line(count: number): object {
  return { model: MODEL, class: 'batch', count, workMs: 80 * count, longestMs: 80, maxMegapixels: 0.07, inFlight: 0 };
}

function jobOf(more: object = {}) {
  const guidance = { field: 'guidance_scale', value: 1 };
  const request = { kind: 'generate', model: MODEL, prompt: PROMPT, steps: 4, guidance, seed: 7, format: 'png' };
  return { jobId: randomUUID(), attempt: 1, class: 'batch', request: { ...request, width: 256, height: 256, ...more } };
}

function grantsOf(peer: WsPeer) {
  return peer.notifications('slot.grant').map((params) => NOTIFICATIONS['slot.grant'].params.parse(params));
}

function stateOf({ result }: { result?: unknown }): string {
  return AgentJob.parse(result).state;
}

/** The next grant for one more job. */
async function granted(peer: WsPeer): Promise<string> {
  const before = grantsOf(peer).length;
  await peer.ask('job.offer', { lines: [line(1)] });
  return (await peer.until(() => grantsOf(peer)[before])).grantId;
}

/** `address:port`, in the kernel's hexadecimal, of every TCP socket on which one of these processes listens. */
async function listenersOf(pids: readonly number[]): Promise<string[]> {
  const inodes = new Set<string>();
  for (const pid of pids) {
    const names = await readdir(`/proc/${pid}/fd`).catch(() => [] as string[]); // it has ended
    for (const name of names) {
      const inode = /^socket:\[(\d+)\]$/.exec(await readlink(`/proc/${pid}/fd/${name}`).catch(() => ''))?.[1];
      if (inode !== undefined) inodes.add(inode);
    }
  }
  const tables = await Promise.all(['tcp', 'tcp6'].map((name) => readFile(`/proc/self/net/${name}`, 'utf8')));
  const rows = tables.flatMap((text) => text.split('\n').slice(1)).map((row) => row.trim().split(/\s+/));
  return rows.flatMap(([, local = '', , state, , , , , , inode = '']) =>
    state === '0A' && inodes.has(inode) ? [local] : [],
  );
}

/** Below a directory: every name, and the files that others may read or write. */
async function openTo(directory: string): Promise<{ names: string[]; open: string[] }> {
  const [names, open]: [string[], string[]] = [[], []];
  for (const entry of await readdir(directory, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    const found = await lstat(path).catch(() => undefined); // gone since it was listed
    if (found === undefined || !entry.isFile()) continue;
    names.push(entry.name);
    if ((found.mode & 0o077) !== 0) open.push(`${path} ${(found.mode & 0o777).toString(8)}`);
  }
  return { names, open };
}

function isLoopback(local: string): boolean {
  return /^[0-9A-F]{6}7F:/.test(local) || local.startsWith('00000000000000000000000001000000:');
}
