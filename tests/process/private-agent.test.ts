import { cp, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import { PrivateLink } from '../../shared/private-link.ts';
import { eventually, isAlive } from '../helpers/fleet.ts';
import { freePort, SimHost, SimServer } from '../sim/sim-server.ts';

vi.setConfig({ testTimeout: 180_000, hookTimeout: 60_000 });

const SMALL = { prompt: 'a fox', width: 256, height: 256, preview: 'none' };
/** Far longer than any of these tests takes. */
const LONG = '10m';
const SHORT = '1s';
const PATIENCE_MS = 90_000;

let directory: string;
let sim: SimHost;
const bridges: BridgeClient[] = [];

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'gantry-private-'));
  sim = await SimHost.create();
});

afterEach(async () => {
  await Promise.all(bridges.splice(0).map((bridge) => bridge[Symbol.asyncDispose]()));
  for (const { pid } of await agents()) if (await isAlive(pid)) process.kill(pid, 'SIGKILL');
  await sim[Symbol.asyncDispose]();
  await rm(directory, { recursive: true, force: true, maxRetries: 3 });
});

/** A bridge of one and the same user, on a machine without nvidia-smi. */
async function bridge(
  url: string,
  { linger = LONG, flags = [] as string[], program = '', env = {} } = {},
): Promise<BridgeClient> {
  await mkdir(join(directory, 'bin'), { recursive: true });
  const started = await BridgeClient.start({
    flags: ['--vllm-url', url, '--linger', linger, '--output-dir', join(directory, 'out'), ...flags],
    home: directory,
    clientName: 'gantry-test',
    stderr: 'ignore',
    env: { PATH: join(directory, 'bin'), ...env },
    ...(program !== '' && { program }),
  });
  bridges.push(started);
  return started;
}

async function omni(args: string[] = []): Promise<{ server: SimServer; url: string } & AsyncDisposable> {
  const server = await SimServer.omni(sim, args);
  const url = `http://127.0.0.1:${server.port}`;
  return { server, url, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}

/** What the agents that may be linked to say of themselves. */
async function agents(): Promise<PrivateLink[]> {
  const root = join(directory, '.local', 'state', 'gantry', 'vllm');
  const keys = await readdir(root).catch(() => []);
  const texts = await Promise.all(keys.map((key) => readFile(join(root, key, 'link.json'), 'utf8').catch(() => '')));
  return texts.flatMap((text) => (text === '' ? [] : PrivateLink.parse(JSON.parse(text))));
}

async function onlyAgent(): Promise<PrivateLink> {
  const [agent, ...others] = await agents();
  if (agent === undefined || others.length > 0) throw new Error(`${others.length} agents besides ${agent?.pid}`);
  return agent;
}

/** Every process of ours that was started for a URL. */
async function running(): Promise<number[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const lines = await Promise.all(pids.map((pid) => readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')));
  return pids
    .flatMap((pid, at) =>
      lines[at]?.includes(`${directory}/`) === true && lines[at].includes('--linger') ? Number(pid) : [],
    )
    .filter((pid) => !bridges.some(({ transport }) => transport.pid === pid));
}

async function answers(url: string): Promise<boolean> {
  const socket = connect(Number(new URL(url).port), '127.0.0.1');
  return new Promise((resolve) => {
    socket.once('connect', () => (resolve(true), socket.destroy()));
    socket.once('error', () => resolve(false));
  });
}

async function ended(agent: PrivateLink): Promise<void> {
  await eventually('the agent has ended', async () => !(await isAlive(agent.pid)), PATIENCE_MS);
  await eventually('no process is left', async () => (await running()).length === 0, PATIENCE_MS);
  expect(await answers(agent.url)).toBe(false);
  expect(await agents()).toEqual([]);
}

test('a plain server makes images without nvidia-smi anywhere, and what is unknown of it is marked as estimated', async () => {
  await using theirs = await omni();
  const client = await bridge(`${theirs.url}/v1/`);
  const answer = await client.ask('generate_image', SMALL);
  expect(answer).toMatchObject({ status: 'success', parameters_used: { model: 'org/model' } });
  expect((await stat(String(answer['file_path']))).size).toBeGreaterThan(1_000);
  expect(JSON.stringify(await client.ask('list_models'))).toMatch(
    /org\/model[^"]*is not in the known profiles; fallback/,
  );
  const status = JSON.stringify(await client.ask('gpu_status'));
  expect(status).toMatch(
    /"estimated":"The GPUs behind http:[^"]*cannot be read from here \(nvidia-smi was not found\)/,
  );
  expect(status).toContain('"estimated_vram_gb":');
  for (const tool of ['list_models', 'get_model_info', 'estimate_generation']) {
    expect(JSON.stringify(await client.ask(tool)), tool).toMatch(/so VRAM is estimated from the models' profiles\./);
  }
  expect(await client.ask('estimate_generation')).toMatchObject({ basis: 'estimated' });
  const { pid } = await onlyAgent();
  const agentDir = join(directory, '.local', 'state', 'gantry', 'vllm');
  const [key = ''] = await readdir(agentDir);
  expect((await stat(join(agentDir, key, 'token'))).mode & 0o777).toBe(0o600);
  expect((await stat(join(agentDir, key))).mode & 0o777).toBe(0o700);
  expect(await isAlive(pid)).toBe(true);
});

test('the GPUs of this machine are not taken for those of a server on another one', async () => {
  await using theirs = await omni();
  // As everywhere else a name leads to an address; here it leads back to this machine, which gantry cannot know.
  const names = join(directory, 'names.mjs');
  const lookup = `(name, ...rest) => real(name === 'gpu-box.test' ? '127.0.0.1' : name, ...rest)`;
  await writeFile(names, `import dns from 'node:dns';\nconst real = dns.lookup;\ndns.lookup = ${lookup};\n`);
  const smi = resolve('dist/sim/nvidia-smi');
  const script = `#!/bin/sh\nGANTRY_SIM_LEDGER='${sim.dir}' exec '${process.execPath}' '${smi}' "$@"\n`;
  await mkdir(join(directory, 'bin'));
  await writeFile(join(directory, 'bin', 'nvidia-smi'), script, { mode: 0o755 });
  const env = { NODE_OPTIONS: `--import=${pathToFileURL(names).href}` };
  const here = await bridge(theirs.url, { env });
  await here.ask('generate_image', SMALL);
  expect(JSON.stringify(await here.ask('gpu_status'))).toContain('"gpu_name":"Simulated');
  const away = await bridge(theirs.url.replace('127.0.0.1', 'gpu-box.test'), { env });
  await away.ask('generate_image', SMALL);
  const status = JSON.stringify(await away.ask('gpu_status'));
  expect(status).not.toContain('Simulated');
  expect(status).toMatch(/"estimated":"The GPUs behind http:\/\/gpu-box\.test:\d+ cannot be read from here/);
  expect(JSON.stringify(await away.ask('get_model_info'))).toContain("estimated from the models' profiles");
});

test('two bridges that start at once share one agent, which ends after the last of them', async () => {
  await using theirs = await omni();
  const [first, second] = await Promise.all([
    bridge(theirs.url, { linger: SHORT }),
    bridge(`${theirs.url.toUpperCase()}/v1`, { linger: SHORT }),
  ]);
  await Promise.all([first.ask('generate_image', SMALL), second.ask('generate_image', SMALL)]);
  const agent = await onlyAgent();
  await eventually('the one that was too late is gone', async () => (await running()).length === 1, PATIENCE_MS);
  process.kill(first.transport.pid ?? 0, 'SIGKILL');
  await second.ask('generate_image', SMALL);
  expect(await onlyAgent()).toEqual(agent);
  await second[Symbol.asyncDispose]();
  await ended(agent);
});

test('an agent outlives a killed bridge for its linger and no longer', async () => {
  await using theirs = await omni();
  const client = await bridge(theirs.url, { linger: SHORT });
  await client.ask('generate_image', SMALL);
  const agent = await onlyAgent();
  process.kill(client.transport.pid ?? 0, 'SIGKILL');
  await ended(agent);
});

test('a bridge that comes back in time links to the same agent', async () => {
  await using theirs = await omni();
  const client = await bridge(theirs.url);
  await client.ask('generate_image', SMALL);
  const agent = await onlyAgent();
  process.kill(client.transport.pid ?? 0, 'SIGKILL');
  const again = await bridge(theirs.url);
  await again.ask('generate_image', SMALL);
  expect(await onlyAgent()).toEqual(agent);
});

test('an agent that is killed is started anew, and the batch goes on', async () => {
  await using theirs = await omni(['--generate-ms', '400']);
  const client = await bridge(theirs.url);
  const prompts = Array.from({ length: 6 }, (_, index) => `picture ${index}`);
  const { batch_id: id } = await client.ask('batch_generate', {
    ...SMALL,
    prompt: undefined,
    prompts,
    wait_seconds: 0,
  });
  const out = join(directory, 'out');
  const pictures = async (): Promise<string[]> =>
    (await readdir(out).catch(() => [])).filter((name) => name.endsWith('.png'));
  await eventually('a picture', async () => (await pictures()).length > 0, PATIENCE_MS);
  const before = await onlyAgent();
  process.kill(before.pid, 'SIGKILL');
  const state = await eventually(
    'the batch ends',
    async () => {
      const answer = await client.ask('get_job', { id, wait_seconds: 0 });
      return answer['state'] === 'running' ? undefined : answer['state'];
    },
    PATIENCE_MS,
  );
  expect(state).toBe('success');
  expect(await pictures()).toHaveLength(6);
  expect((await onlyAgent()).pid).not.toBe(before.pid);
});

test('a server that is not there is said to be so everywhere, and used once it is', async () => {
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const client = await bridge(url);
  const refused = await client.call('generate_image', SMALL);
  expect(refused.isError).toBe(true);
  expect(refused.text).toMatch(
    /NO_HOST: .*Nobody listens at http:\/\/127\.0\.0\.1:\d+ \(connection refused\)\. Start the server/,
  );
  for (const tool of ['list_hosts', 'server_health']) {
    expect(JSON.stringify(await client.ask(tool))).toContain(`Nobody listens at ${url} (connection refused).`);
  }
  await using _server = await SimServer.spawnOmni(sim, [], {}, port);
  await eventually('it is found', async () => !(await client.call('generate_image', SMALL)).isError, PATIENCE_MS);
});

test('what answers but is no vLLM-Omni server is said to be none', async () => {
  await using step1x = await SimServer.step1x(sim);
  const client = await bridge(`http://127.0.0.1:${step1x.port}/`);
  const refused = await client.call('generate_image', SMALL);
  expect(refused.text).toMatch(/is no vLLM-Omni server/);
});

test('a bridge that lies alone, without the agent beside it, says so', async () => {
  const program = join(directory, 'alone', 'gantry.cjs');
  await cp('dist/gantry.cjs', program);
  await cp('dist/bridge', join(directory, 'alone', 'bridge'), { recursive: true });
  const client = await bridge('http://127.0.0.1:9', { program });
  const { text } = await client.call('generate_image', SMALL);
  expect(text).toMatch(
    /needs the program gantry-agent on this machine, and .*gantry-agent\.mjs is not there\. Install/,
  );
});

test('a request that takes longer than --timeout fails with what to do', async () => {
  await using theirs = await omni(['--generate-ms', '60000']);
  const client = await bridge(theirs.url, { flags: ['--timeout', '1'] });
  const { job_id: id } = await client.ask('generate_image', { ...SMALL, wait_seconds: 0 });
  const said = await eventually(
    'the time-out is told',
    async () => {
      const text = JSON.stringify((await client.call('get_job', { id, wait_seconds: 0 })).json);
      return /did not answer a job within 1 s/.test(text) ? text : undefined;
    },
    PATIENCE_MS,
  );
  expect(said).toMatch(/raise `times\.job_limit` \(`--timeout` of a bridge\)/);
});
