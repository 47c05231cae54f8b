import { execa } from 'execa';
import { mkdir, stat, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { once } from 'node:events';
import { join, resolve } from 'node:path';
import { describe, expect, test } from 'vitest';
import { HostClient } from '../../agent/cli/host-client.ts';
import type { HostSnapshot } from '../../shared/host-snapshot.ts';
import { fetchBody } from '../../shared/http-client.ts';
import type { SimulatedHost } from '../../scripts/lib/simulated-host.ts';
import { eventually, TestFleet, vllm } from '../helpers/fleet.ts';

const MAIN = resolve('dist/gantry-agent.mjs');
const MODEL = 'black-forest-labs/FLUX.2-klein-4B';
const SMALL = { prompt: 'a fox', width: 256, height: 256 };

describe('with a daemon', () => {
  test('status shows what nvidia-smi shows; load, offload and release say it before and after', async () => {
    await using fleet = await TestFleet.start([{ name: 'a', models: { klein: vllm(MODEL) } }]);
    const host = fleet.host('a');
    expect((await stat(join(host.directory, 'state', 'agent.sock'))).mode & 0o777).toBe(0o600);
    const [before] = await memory(host);
    const loaded = await command(host, 'load', 'klein');
    expect(loaded).toMatchObject({ exitCode: 0, stderr: '' });
    const [free, used, total] = await memory(host);
    expect(used).toBeGreaterThan(7_500);
    expect(loaded.stdout).toMatch(/^klein is ready now\./);
    expect(lastLine(loaded)).toBe(`VRAM free ${gib(before)} -> ${gib(free)} GiB, held by it 0.0 -> ${gib(used)} GiB`);
    const { gpus, models } = await snapshot(host);
    expect(gpus).toMatchObject([{ usedMiB: used, freeMiB: free, oursMiB: used, foreign: [] }]);
    expect(models).toMatchObject([{ alias: 'klein', state: 'ready', heldMiB: used }]);
    const { stdout: text } = await command(host, 'status');
    const row = [0, gib(used), gib(total), gib(free), gib(used), '0.0', 'ok', 'Simulated GPU'];
    expect(text.split('\n').map((line) => line.split(/ {2,}/).join('|'))).toContain(row.join('|'));
    expect(text).toMatch(/^klein +ready +7\.8 +0 /m);
    expect(text).not.toMatch(/\u001b/);
    const offloaded = await command(host, 'offload', 'klein');
    const [freeOffloaded, usedOffloaded] = await memory(host);
    expect(usedOffloaded).toBeLessThan(used / 2);
    expect(lastLine(offloaded)).toBe(
      `VRAM free ${gib(free)} -> ${gib(freeOffloaded)} GiB, held by it ${gib(used)} -> ${gib(usedOffloaded)} GiB`,
    );
    const released = await command(host, 'release', 'klein');
    expect(lastLine(released)).toBe(
      `VRAM free ${gib(freeOffloaded)} -> ${gib(before)} GiB, held by it ${gib(usedOffloaded)} -> 0.0 GiB`,
    );
    expect((await memory(host))[1]).toBe(0);
    const unknown = await command(host, 'load', 'klien');
    expect(unknown).toMatchObject({ exitCode: 1, stdout: '' });
    expect(unknown.stderr).toContain('No model klien is configured');
  });

  test('status and health do not wait for an nvidia-smi that hangs', async () => {
    const gpu = { sample_interval: '250ms', query_timeout: '30s' };
    await using fleet = await TestFleet.start([{ name: 'a', models: { klein: vllm(MODEL) }, config: { gpu } }]);
    const host = fleet.host('a');
    await host.stopAgent();
    await writeFile(join(host.ledger, 'nvidia-smi.fault.json'), '{"mode":"hang"}');
    await host.startAgent();
    const startMs = performance.now();
    const limits = { signal: AbortSignal.timeout(20_000), deadlineMs: 20_000, maxBytes: 1e6 };
    const [seen, health] = await Promise.all([
      snapshot(host),
      fetchBody(`http${host.url.slice(2)}/healthz`, { ...limits, headers: {} }),
    ]);
    expect(performance.now() - startMs).toBeLessThan(20_000);
    expect(seen).toMatchObject({ gpus: [], models: [{ alias: 'klein', state: 'released' }] });
    expect(health.status).toBe(200);
    expect((await command(host, 'status')).stdout).toContain('nvidia-smi has shown no GPU.');
  });

  test('drain holds over a restart, lets the job end, and sends offers elsewhere until resume', async () => {
    const slow = vllm(MODEL, { 'step-ms': 1_000 });
    await using fleet = await TestFleet.start([{ name: 'a', models: { klein: slow } }]);
    const host = fleet.host('a');
    const bridge = await fleet.bridge();
    await bridge.ask('generate_image', SMALL);
    // Longer than the command takes to start.
    const running = bridge.ask('generate_image', { ...SMALL, num_inference_steps: 12, prompt: 'a slow fox' });
    await eventually('it runs', async () => (await snapshot(host)).models[0]?.slots[0]?.phase === 'running');
    const drained = await command(host, 'drain', '--wait');
    expect(drained.stdout).toMatch(
      /^The host takes no new work\. One job is still running\.\nNothing runs any more\.$/,
    );
    expect((await snapshot(host)).models[0]?.jobsDone).toBe(2);
    expect(JSON.stringify(await running)).toContain('.png');
    expect((await command(host, 'drain')).stdout).toBe('The host takes no new work. Nothing runs any more.');

    const waiting = bridge.ask('generate_image', { ...SMALL, prompt: 'a patient fox' });
    await eventually('it is offered', async () => (await snapshot(host)).offered.length > 0);
    await host.stopAgent();
    await host.startAgent();
    await eventually('the bridge is back', async () => (await snapshot(host)).offered.length > 0);
    // Until the agent has cleared up, the slots say that instead.
    const reason = 'The host is draining: `gantry-agent resume` there, or `gantry resume HOST` on a laptop, ends that.';
    await eventually('its slots say why', async () => {
      const slot = (await snapshot(host)).models[0]?.slots[0];
      return slot?.phase === 'cannot' && slot.reason === reason;
    });
    expect(await snapshot(host)).toMatchObject({ isDraining: true, models: [{ jobsDone: 0 }] });
    expect((await command(host, 'status')).stdout).toContain('! The host is draining: `gantry-agent resume` there');
    const json: unknown = JSON.parse((await command(host, 'status', '--json')).stdout);
    expect(json).toMatchObject({ schema: 1, snapshot: { isDraining: true } });
    expect((await command(host, 'resume')).stdout).toBe('The host takes part again.');
    expect(JSON.stringify(await waiting)).toContain('.png');
    await host.stopAgent();
    await host.startAgent();
    expect((await snapshot(host)).isDraining).toBe(false);
  });

  test('logs prints the end of a server log, follows it over a new start, and needs no daemon', async () => {
    await using fleet = await TestFleet.start([{ name: 'a', models: { klein: vllm(MODEL) } }]);
    const host = fleet.host('a');
    expect((await command(host, 'logs', 'klein')).stderr).toContain('There is no log of klein');
    using client = await HostClient.connect(join(host.directory, 'state', 'agent.sock'));
    await client.ask('model.load', { model: 'klein' });
    const following = execa('node', [MAIN, 'logs', 'klein', '-f', '-n', '2', ...flags(host)], { reject: false });
    let seen = '';
    following.stdout.on('data', (chunk: Buffer) => (seen += chunk.toString()));
    await eventually('the end is printed', () => Promise.resolve(seen.split('\n').length === 3));
    await client.ask('model.offload', { model: 'klein' });
    await eventually('what is written is followed', () => Promise.resolve(seen.split('\n').length > 3));
    await client.ask('model.release', { model: 'klein' });
    await client.ask('model.load', { model: 'klein' });
    await eventually('the next start is followed', () => Promise.resolve(/--- klein was started again\n./.test(seen)));
    following.kill('SIGINT');
    await following;
    await host.stopAgent();
    expect((await command(host, 'logs', 'klein', '-n', '3')).stdout.split('\n')).toHaveLength(3);
  });
});

describe('without a daemon', () => {
  test.each(['status', 'drain', 'resume', 'reload', 'load m', 'offload m', 'release m'])(
    '%s says so and exits 69',
    async (words) => {
      await using fleet = await TestFleet.start([]);
      const ended = await node(...words.split(' '), '--state-dir', fleet.directory);
      expect(ended).toMatchObject({ exitCode: 69, stdout: '' });
      expect(ended.stderr).toContain('No gantry-agent runs here');
      expect(ended.stderr).toContain('`gantry-agent run`');
    },
  );

  test('an agent of the release before, which only says its pid, is named as such', async () => {
    await using fleet = await TestFleet.start([]);
    const state = join(fleet.directory, 'old');
    await mkdir(state);
    const old = createServer((socket) => void socket.end('pid 7\n', () => socket.destroy()));
    await once(old.listen(join(state, 'agent.sock')), 'listening');
    const ended = await node('status', '--state-dir', state);
    expect(ended).toMatchObject({ exitCode: 69, stdout: '' });
    expect(ended.stderr).toContain('of an older release');
    const second = await node('run', '--state-dir', state, '--config', await minimal(fleet.directory));
    expect(second.exitCode).toBe(75);
    expect(second.stderr).toContain('(pid 7)');
    old.close();
    await once(old, 'close');
  });

  test('a broken agent.yaml locks nobody out of the agent that runs', async () => {
    await using fleet = await TestFleet.start([{ name: 'a', models: {} }]);
    const host = fleet.host('a');
    await writeFile(join(host.directory, 'agent.yaml'), `state_dir: ${join(host.directory, 'state')}\nmodls: {}\n`);
    expect(await command(host, 'status')).toMatchObject({ exitCode: 0 });
  });
});

async function command(host: SimulatedHost, ...args: string[]) {
  return await node(...args, ...flags(host));
}

function flags(host: SimulatedHost): string[] {
  return ['--config', join(host.directory, 'agent.yaml')];
}

async function node(...args: string[]) {
  const { exitCode, stdout, stderr } = await execa('node', [MAIN, ...args], { stdin: 'ignore', reject: false });
  return { exitCode, stdout, stderr };
}

/** As `status --json` prints it, without starting a program each time. */
async function snapshot(host: SimulatedHost): Promise<HostSnapshot> {
  using client = await HostClient.connect(join(host.directory, 'state', 'agent.sock'));
  return (await client.ask('host.snapshot', {})).snapshot;
}

/** Free, used and total MiB of the only GPU, by nvidia-smi. */
async function memory(host: SimulatedHost): Promise<[freeMiB: number, usedMiB: number, totalMiB: number]> {
  const row = await host.nvidiaSmi('--query-gpu=memory.free,memory.used,memory.total', '--format=csv,noheader,nounits');
  const [free = 0, used = 0, total = 0] = row.split(',').map(Number);
  return [free, used, total];
}

function gib(mib: number): string {
  return (mib / 1024).toFixed(1);
}

function lastLine({ stdout }: { stdout: string }): string | undefined {
  return stdout.split('\n').at(-1);
}

async function minimal(directory: string): Promise<string> {
  const path = join(directory, 'minimal.yaml');
  await writeFile(path, `listen: 127.0.0.1:0\ngpu: { nvidia_smi: ${directory}/absent }\n`);
  return path;
}
