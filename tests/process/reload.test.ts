import { execa } from 'execa';
import { readFile, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { describe, expect, test } from 'vitest';
import { parse, stringify } from 'yaml';
import { HostClient } from '../../agent/cli/host-client.ts';
import type { HostSnapshot } from '../../shared/host-snapshot.ts';
import type { SimulatedHost } from '../../scripts/lib/simulated-host.ts';
import { eventually, isAlive, TestFleet, vllm } from '../helpers/fleet.ts';

const MAIN = resolve('dist/gantry-agent.mjs');
const KLEIN = 'black-forest-labs/FLUX.2-klein-4B';
const Z_IMAGE = 'Tongyi-MAI/Z-Image-Turbo';
const SMALL = { prompt: 'a fox', width: 256, height: 256 };

type File = { models: Record<string, Record<string, unknown>>; [key: string]: unknown };

describe('SIGHUP', () => {
  test('leaves the running model alone, brings a new one, and takes one away behind its job', async () => {
    await using fleet = await TestFleet.start([
      { name: 'a', models: { klein: vllm(KLEIN), z: vllm(Z_IMAGE, { 'step-ms': 1_000 }) } },
    ]);
    const host = fleet.host('a');
    const bridge = await fleet.bridge();
    await bridge.ask('generate_image', { ...SMALL, model: KLEIN });
    const [pid] = await host.computePids();
    const running = bridge.ask('generate_image', { ...SMALL, model: Z_IMAGE });
    await eventually('it runs', async () => (await slotOf(host, 'z'))?.phase === 'running');
    const learned = (await snapshot(host)).models.find(({ alias }) => alias === 'klein')?.loadMs;

    await change(host, (file) => {
      const { z, ...rest } = file.models;
      file.models = { ...rest, extra: { ...z, model: 'stabilityai/stable-diffusion-3.5-medium', preload: true } };
      file['gpu'] = { ...(file['gpu'] as object), reserve: '2GiB', silence: '7s' };
      file['log_level'] = 'debug';
    });
    process.kill(host.pid, 'SIGHUP');
    await logged(host, 'config-reloaded');
    expect(host.log.join('\n')).toContain('gpu.silence: takes effect at the next start');
    expect(JSON.stringify(await running)).toContain('.png');
    await eventually('the removed model is gone', async () => !(await aliases(host)).includes('z'));
    await eventually('the new one is up', async () => (await stateOf(host, 'extra')) === 'ready');
    expect(await aliases(host)).toEqual(['klein', 'extra']);
    expect(await host.computePids()).toContain(pid);
    expect((await snapshot(host)).models[0]).toMatchObject({ state: 'ready', loads: 1, jobsDone: 1, loadMs: learned });
    expect(await bridge.ask('list_models', {})).not.toMatchObject({ models: [{ model: Z_IMAGE }] });
  });

  test('with a mistake in the file changes nothing, and logs every problem', async () => {
    await using fleet = await TestFleet.start([{ name: 'a', models: { klein: vllm(KLEIN) } }]);
    const host = fleet.host('a');
    await command(host, 'load', 'klein');
    const pids = await host.computePids();
    await change(host, (file) => {
      file.models = { klein: { ...file.models['klein'], engin: 'x' } };
      file['log_levle'] = 'debug';
    });
    process.kill(host.pid, 'SIGHUP');
    await logged(host, 'config-not-reloaded');
    const problems = host.log.filter((line) => line.includes('"config-problem"'));
    expect(problems.join('\n')).toMatch(/models\.klein\.engin: unknown key\. Did you mean engine\?[^]*log_levle/);
    expect(await host.computePids()).toEqual(pids);
    const { exitCode, stdout, stderr } = await command(host, 'reload');
    expect({ exitCode, stdout }).toEqual({ exitCode: 78, stdout: '' });
    expect(stderr).toMatch(/log_levle: unknown key[^]*Nothing was changed\./);
    await writeFile(join(host.directory, 'agent.yaml'), 'models: [');
    expect((await command(host, 'reload')).exitCode).toBe(78); // not even the socket is found by such a file
    expect(await stateOf(host, 'klein')).toBe('ready');
  });

  test('a storm of them, with a file that changes all the time, ends with what the file says last', async () => {
    await using fleet = await TestFleet.start([{ name: 'a', models: { klein: vllm(KLEIN), z: vllm(Z_IMAGE) } }]);
    const host = fleet.host('a');
    await command(host, 'load', 'klein');
    const before = await readFile(join(host.directory, 'agent.yaml'), 'utf8');
    for (let round = 0; round < 60; round += 1) {
      if (round % 3 === 0) await writeFile(join(host.directory, 'agent.yaml'), before);
      else {
        await change(host, (file) => {
          if (round % 3 === 1) file.models = {};
          else file.models = { klein: { ...file.models['klein'], pin: true } };
        });
      }
      process.kill(host.pid, 'SIGHUP');
    }
    await writeFile(join(host.directory, 'agent.yaml'), before);
    expect((await command(host, 'reload')).exitCode).toBe(0);
    await eventually('both models are there', async () => (await aliases(host)).join() === 'klein,z');
    await eventually('nothing leaves', async () => (await slotOf(host, 'klein'))?.phase === 'idle');
    expect((await command(host, 'load', 'klein')).exitCode).toBe(0);
    expect((await snapshot(host)).models[0]).toMatchObject({ state: 'ready', isPinned: false });
    expect(await host.stopAgent()).toBe(0);
  });

  test('a command tells the differences; replaced models come with their new definition', async () => {
    await using fleet = await TestFleet.start([{ name: 'a', models: { klein: vllm(KLEIN), z: vllm(Z_IMAGE) } }]);
    const host = fleet.host('a');
    await command(host, 'load', 'klein');
    const [pid = 0] = await host.computePids();
    await change(host, (file) => {
      const { models } = file;
      models['klein'] = {
        ...models['klein'],
        args: [...(models['klein']?.['args'] as string[]), '--weights-mib', '4000'],
      };
      models['z'] = { ...models['z'], offload_after: '9m' };
      file['times'] = { held_away: '7m' };
    });
    expect((await command(host, 'reload')).stdout).toMatch(
      /^times\.held_away: changed\nmodels\.klein: its server is replaced when its work has ended\nmodels\.z: changed, its server stays$/m,
    );
    await eventually('the old server has gone', async () => !(await isAlive(pid)));
    await eventually('the slot is open again', async () => (await slotOf(host, 'klein'))?.phase === 'idle');
    await command(host, 'load', 'klein');
    expect((await snapshot(host)).models).toMatchObject([{ heldMiB: 4_000 }, { offloadAfterMs: 540_000 }]);
    expect((await command(host, 'release', 'klein')).stdout).toContain('leaves it away for 7 min');
    expect((await command(host, 'reload')).stdout).toMatch(
      /^(warning: .*\n)*Nothing that a running agent takes over has changed\.$/,
    );
  });
});

test('an attached server that comes up late is called what it serves', async () => {
  await using fleet = await TestFleet.start([
    { name: 'a', models: { klein: vllm(KLEIN) }, config: { times: { health_poll: '200ms' } } },
    { name: 'b', models: {}, config: { times: { health_poll: '200ms' } } },
  ]);
  const [a, b] = [fleet.host('a'), fleet.host('b')];
  const port = 20_000 + Math.floor(Math.random() * 20_000);
  await change(b, (file) => {
    file.models = { mine: { engine: 'vllm-omni', attach: `http://127.0.0.1:${port}` } };
  });
  expect((await command(b, 'reload')).stdout).toContain('models.mine: added');
  expect((await snapshot(b)).models).toMatchObject([{ alias: 'mine', model: 'mine' }]);
  const server = execa(
    resolve('dist/sim/vllm-omni'),
    ['serve', KLEIN, '--omni', '--port', String(port), '--load-ms', '10'],
    {
      env: { GANTRY_SIM_LEDGER: a.ledger },
      reject: false,
      stdout: 'ignore',
      stderr: 'ignore',
    },
  );
  await eventually('it is known by its name', async () => (await snapshot(b)).models[0]?.model === KLEIN, 30_000);
  await eventually('it is ready', async () => (await snapshot(b)).models[0]?.state === 'ready', 30_000);
  expect((await command(b, 'reload')).stdout).toBe('Nothing that a running agent takes over has changed.');
  server.kill('SIGKILL');
  await server;
});

async function change(host: SimulatedHost, edit: (file: File) => void): Promise<void> {
  const path = join(host.directory, 'agent.yaml');
  const file = parse(await readFile(path, 'utf8')) as File; // written by the test's own host
  edit(file);
  await writeFile(path, stringify(file));
}

async function command(host: SimulatedHost, ...args: string[]) {
  const flags = ['--config', join(host.directory, 'agent.yaml')];
  const { exitCode, stdout, stderr } = await execa('node', [MAIN, ...args, ...flags], {
    stdin: 'ignore',
    reject: false,
  });
  return { exitCode, stdout, stderr };
}

async function snapshot(host: SimulatedHost): Promise<HostSnapshot> {
  using client = await HostClient.connect(join(host.directory, 'state', 'agent.sock'));
  return (await client.ask('host.snapshot', {})).snapshot;
}

async function aliases(host: SimulatedHost): Promise<string[]> {
  return (await snapshot(host)).models.map(({ alias }) => alias);
}

async function stateOf(host: SimulatedHost, alias: string): Promise<string | undefined> {
  return (await snapshot(host)).models.find((model) => model.alias === alias)?.state;
}

async function slotOf(host: SimulatedHost, alias: string) {
  return (await snapshot(host)).models.find((model) => model.alias === alias)?.slots[0];
}

async function logged(host: SimulatedHost, event: string): Promise<void> {
  await eventually(event, () => Promise.resolve(host.log.some((line) => line.includes(`"${event}"`))));
}
