import { execa } from 'execa';
import { mkdtemp, readdir, readFile, readlink, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import type { SimulatedModel } from '../../scripts/lib/simulated-host.ts';
import { eventually, TestFleet, vllm } from '../helpers/fleet.ts';

const HERE = 'Tongyi-MAI/Z-Image-Turbo';
const SLOW = 'black-forest-labs/FLUX.2-klein-4B';
const SMALL = { width: 256, height: 256 };

let cache: string;
let fleet: TestFleet;
let bridge: BridgeClient;

beforeAll(async () => {
  cache = await mkdtemp(join(tmpdir(), 'gantry-hub '));
  const models = {
    here: vllm(HERE),
    slow: absent(SLOW, { MIB: 30, MIB_PER_S: 5 }),
    asked: absent('acme/asked', { MIB: 30, MIB_PER_S: 6 }),
    gated: absent('acme/gated', { FAULT: 'gated' }),
    pulled: absent('acme/pulled', { MIB_PER_S: 16 }),
    killed: absent('acme/killed', { MIB: 30, MIB_PER_S: 5 }),
  };
  const times = { turn: '1s', move_answer: '2s' };
  fleet = await TestFleet.start([{ name: 'a', models, config: { gpu: { sample_interval: '250ms' }, times } }]);
  bridge = await fleet.bridge();
});
afterAll(async () => {
  await fleet[Symbol.asyncDispose]();
  await rm(cache, { recursive: true, force: true, maxRetries: 3 });
});

/** A model whose weights are not there; `sim` are the settings of the simulated hub. */
function absent(model: string, sim: Record<string, string | number> = {}): SimulatedModel {
  const settings = Object.fromEntries(Object.entries(sim).map(([name, value]) => [`GANTRY_SIM_HF_${name}`, value]));
  return { ...vllm(model), download: [resolve('dist/sim/hf'), 'download'], env: { HF_HOME: cache, ...settings } };
}

describe('a model whose weights are absent', () => {
  test('is downloaded while another one keeps its GPU and works; then it loads', async () => {
    const args = { prompt: 'a red fox', model: HERE, ...SMALL };
    await bridge.ask('generate_image', args);
    const pids = await fleet.host('a').computePids();
    expect(pids).toHaveLength(1);
    expect(await placeOf(SLOW)).toMatchObject({ state: 'released', detail: 'its weights are not downloaded yet' });

    const first = await bridge.ask('load_model', { model: SLOW, wait_seconds: 3 });
    expect(first).toMatchObject({ status: 'running', hosts: [{ state: 'loading' }] });
    expect(first['message']).toMatch(/downloading \d+ of 30 MiB.*call again/);
    const place = await eventually('bytes in the status', async () => {
      const now = await placeOf(SLOW);
      return Number(now['download'] && (now['download'] as { done_gb: number }).done_gb) > 0 ? now : undefined;
    });
    expect(place).toMatchObject({
      state: 'loading',
      model_location: 'Unloaded',
      vram_gb: 0,
      download: { total_gb: 0.03 },
    });
    const gpu = await bridge.ask('gpu_status');
    expect(JSON.stringify(gpu)).toContain('downloading');

    // Nobody was evicted for it, and the GPU works on.
    const job = await bridge.ask('generate_image', args);
    expect(job).toMatchObject({ status: 'success' });
    expect(await fleet.host('a').computePids()).toEqual(pids);
    expect(await placeOf(SLOW)).toMatchObject({ state: 'loading' });

    expect(await bridge.ask('load_model', { model: SLOW, wait_seconds: 45 })).toMatchObject({
      status: 'success',
      hosts: [{ state: 'ready', done: 'load' }],
    });
    expect((await placeOf(SLOW))['download']).toBeUndefined();
    const [mine = 0] = (await fleet.host('a').computePids()).filter((pid) => !pids.includes(pid));
    expect(await environmentOf(mine)).toContain('HF_HUB_OFFLINE=1');
    expect(await environmentOf(pids[0] ?? 0)).not.toContain('HF_HUB_OFFLINE=1');
  });

  test('is downloaded for a picture that waits', async () => {
    const asked = { prompt: 'a red fox', model: 'acme/asked', ...SMALL };
    const waiting = await bridge.ask('generate_image', { ...asked, wait_seconds: 3 });
    // No host has taken it: it could still run elsewhere.
    expect(waiting).toMatchObject({ status: 'running' });
    expect(JSON.stringify(waiting)).toMatch(/waiting for a: (downloading|looking)/);
    const done = await bridge.ask('get_job', { id: waiting['job_id'], wait_seconds: 45 });
    expect(JSON.stringify(done)).toContain('"status":"success"');
  });

  test('that a person must unlock says so, and a picture waits with that reason', async () => {
    const load = await bridge.call('load_model', { model: 'acme/gated', wait_seconds: 20 });
    expect(load.isError).toBe(true);
    expect(load.text).toMatch(/gated. Accept its licence at https:\/\/huggingface.co\/acme\/gated and set HF_TOKEN/);
    const place = await eventually('its state', async () => {
      const now = await placeOf('acme/gated');
      return now['state'] === 'failed' ? now : undefined;
    });
    expect(place).toMatchObject({
      state: 'failed',
      detail: expect.stringContaining('is gated') as string,
    });
  });
});

describe('gantry-agent pull', () => {
  test('downloads beside the daemon, with progress on stderr and the result on stdout; the daemon sees it', async () => {
    const pulled = await pull('pulled', '--json');
    expect(pulled.exitCode, pulled.stderr).toBe(0);
    expect(JSON.parse(pulled.stdout)).toMatchObject({
      schema: 1,
      ok: true,
      model: 'pulled',
      repository: 'acme/pulled',
    });
    expect(pulled.stderr).toMatch(/looking for its weights|downloading/);
    const again = await pull('acme/pulled');
    expect([again.exitCode, again.stdout]).toEqual([0, 'The weights of acme/pulled were there already.']);
    await eventually('the daemon sees it', async () => (await placeOf('acme/pulled'))['detail'] === undefined);
  });

  test.each([
    ['gated', 77, /is gated/],
    ['nothing-like-it', 78, /No model nothing-like-it is in agent.yaml. Configured: here, slow/],
  ])('%s ends with %i', async (name, exitCode, words) => {
    const pulled = await pull(name);
    expect(pulled.exitCode).toBe(exitCode);
    expect(pulled.stderr).toMatch(words);
    expect(pulled.stdout).toBe('');
  });

  test('says why there is nothing to download', async () => {
    const { exitCode, stdout } = await pull('here');
    expect([exitCode, stdout]).toEqual([
      0,
      expect.stringMatching(/^gantry downloads nothing for here: .*`download: none`/),
    ]);
  });

  test('Ctrl-C ends it with 130, and its downloader with it', async () => {
    const pulling = pull('killed');
    await eventually('a downloader', async () => (await downloaders('acme/killed')).length > 0);
    pulling.kill('SIGINT');
    const ended = await pulling;
    expect(ended.exitCode).toBe(130);
    expect(ended.stderr).toContain('is kept');
    expect(await downloaders('acme/killed')).toEqual([]);
  });
});

test('an agent that is killed in the middle of a download finds the weights afterwards', async () => {
  const host = fleet.host('a');
  await bridge.ask('load_model', { model: 'acme/killed', wait_seconds: 1 });
  await eventually('a downloader', async () => (await downloaders('acme/killed')).length > 0);
  await host.stopAgent('SIGKILL');
  await host.startAgent();
  await eventually('the link', async () => (await bridge.ask('list_hosts'))['status'] === 'success');
  const loaded = await eventually(
    'the model is up',
    async () => {
      const answer = await bridge.call('load_model', { model: 'acme/killed', wait_seconds: 30 });
      return answer.isError || answer.json['status'] !== 'success' ? undefined : answer.json;
    },
    40_000,
  );
  expect(loaded).toMatchObject({ hosts: [{ state: 'ready' }] });
  await eventually('no downloader is left', async () => (await downloaders('acme/killed')).length === 0);
});

test('an agent that ends takes its downloader with it', async () => {
  const host = fleet.host('a');
  await rm(join(cache, 'hub/models--acme--killed'), { recursive: true });
  await bridge.call('release_gpu', { model: 'acme/killed' });
  await bridge.ask('load_model', { model: 'acme/killed', wait_seconds: 1 });
  await eventually('a downloader', async () => (await downloaders('acme/killed')).length > 0);
  await host.stopAgent();
  expect(await downloaders('acme/killed')).toEqual([]);
});

async function placeOf(model: string): Promise<Record<string, unknown>> {
  const { models } = (await bridge.ask('list_models')) as {
    models: { model: string; hosts: Record<string, unknown>[] }[];
  };
  const [place] = models.find((each) => each.model === model)?.hosts ?? [];
  if (place === undefined) throw new Error(`${model} is on no host`);
  return place;
}

function pull(...args: string[]) {
  const config = join(fleet.host('a').directory, 'agent.yaml');
  return execa('node', [resolve('dist/gantry-agent.mjs'), 'pull', ...args, '--config', config], { reject: false });
}

async function environmentOf(pid: number): Promise<string[]> {
  return (await readFile(`/proc/${pid}/environ`, 'utf8')).split('\0');
}

/** Pids of the simulated downloader at work for this repository. */
async function downloaders(repository: string): Promise<number[]> {
  const found: number[] = [];
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const words = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).split('\0');
    const isOurs = words.includes(repository) && words.some((word) => word.endsWith('sim/hf'));
    if (isOurs && (await readlink(`/proc/${pid}/exe`).catch(() => '')) !== '') found.push(Number(pid));
  }
  return found;
}
