import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import sharp from 'sharp';
import { Laptop } from '../helpers/command.ts';
import { eventually, STEP1X_EDIT, TestFleet, vllm } from '../helpers/fleet.ts';

const MODEL = 'Tongyi-MAI/Z-Image-Turbo';
const SMALL = ['--model', MODEL, '--width', '256', '--height', '256'];

describe('on two hosts', () => {
  let fleet: TestFleet;
  let laptop: Laptop;
  beforeAll(async () => {
    fleet = await TestFleet.start([
      { name: 'attic', gpuMiB: [81_559], models: { z: vllm(MODEL), editor: STEP1X_EDIT } },
      { name: 'rack', models: { z: vllm(MODEL) } },
    ]);
    laptop = await Laptop.of(fleet);
  });
  afterAll(() => fleet[Symbol.asyncDispose]());

  test('generate prints the path on stdout and talks on stderr; --json has the words of the tool', async () => {
    const made = await laptop.run('generate', 'a red fox', '--seed', '7', '--filename', 'fox.jpg', ...SMALL);
    expect(made).toMatchObject({ exitCode: 0, stdout: join(fleet.output, 'fox.jpg') });
    expect(made.stderr).toMatch(/made on (attic|rack) in .*\nSaved 1 image: fox\.jpg, 256x256, made by (attic|rack)\./);
    expect((await sharp(made.stdout).metadata()).format).toBe('jpeg');
    const { exitCode, json } = await laptop.json('generate', 'a red fox', '--seed', '7', ...SMALL);
    expect({ exitCode, ...json }).toMatchObject({
      exitCode: 0,
      schema: 1,
      status: 'success',
      parameters_used: { prompt: 'a red fox', seed: 7, width: 256 },
    });
    const quiet = await laptop.run('generate', 'a red fox', ...SMALL, '--quiet');
    expect(quiet).toMatchObject({ exitCode: 0, stderr: '' });
  });

  test('a mistake has the sentence of the tool, and an exit code that says whose it is', async () => {
    const size = await laptop.run('generate', 'a fox', '--width', '1000');
    expect(size).toMatchObject({ exitCode: 2, stdout: '' });
    expect(size.stderr).toContain('INVALID_ARGUMENT: Width 1000 is not a multiple of 16. Nearest valid width is 1008.');
    const word = await laptop.run('generate', 'a fox', '--seed', 'seven');
    expect(word).toMatchObject({ exitCode: 2 });
    expect(word.stderr).toContain('seed must be a');
    const model = await laptop.json('generate', 'a fox', '--model', 'zz');
    expect(model).toMatchObject({ exitCode: 1, json: { status: 'failed', error: { code: 'MODEL_UNKNOWN' } } });
    const hidden = await laptop.run('generate', 'a fox', '--output-dir', join(laptop.home, '.secret'));
    expect(hidden.exitCode).toBe(77);
    const many = await laptop.run('batch', ...Array.from({ length: 21 }, (_, at) => `fox ${at}`));
    expect(many).toMatchObject({ exitCode: 2 });
    expect(many.stderr).toContain('prompts must have at most 20 entries');
    const typo = await laptop.run('generate', 'a fox', '--widht', '3');
    expect(typo).toMatchObject({ exitCode: 2, stdout: '' });
    expect(typo.stderr).toContain('Did you mean --width?');
    expect(await laptop.run('generat')).toMatchObject({ exitCode: 2 });
    expect((await laptop.run('--help')).exitCode).toBe(0);
  });

  test('batch takes a file that the person names wherever it is, and prints each path as it finishes', async () => {
    const file = join(fleet.directory, 'laptop', 'foxes.txt');
    await writeFile(file, 'a small fox\na large fox\na fox\n');
    const made = await laptop.run('batch', file, ...SMALL);
    expect(made.exitCode, made.stderr).toBe(0);
    const paths = made.stdout.split('\n');
    expect(new Set(paths).size).toBe(3);
    for (const path of paths) expect((await sharp(path).metadata()).width).toBe(256);
    expect(made.stderr).toMatch(/^1\/3 {2}made on .*\n2\/3 {2}made on .*\n3\/3 {2}made on .*\nSaved 3 images in/m);
  });

  test('edit leaves the original alone', async () => {
    const original = join(fleet.output, 'photo.png');
    await sharp({ create: { width: 320, height: 200, channels: 3, background: '#355' } })
      .png()
      .toFile(original);
    const before = await readFile(original);
    const target = join(fleet.output, 'winter.png');
    const made = await laptop.run('edit', original, 'let it snow', '--output-path', target, '--size-level', '512');
    expect(made, made.stderr).toMatchObject({ exitCode: 0, stdout: target });
    expect(await readFile(original)).toEqual(before);
    expect(await laptop.run('edit', join(fleet.output, 'none.png'), 'x')).toMatchObject({ exitCode: 65, stdout: '' });
  });

  test('status and hosts show both, also as JSON', async () => {
    const status = await laptop.run('status');
    expect(status).toMatchObject({ exitCode: 0, stderr: '' });
    expect(status.stdout).toMatch(/^attic {2}ws:.* connected[^]*\nrack {2}ws:.* connected/);
    const hosts = await laptop.run('hosts');
    expect(hosts.stdout).toMatch(/^HOST .*\nattic .* connected, simulated .* z, editor\nrack .* z$/);
    expect((await laptop.json('hosts')).json).toMatchObject({ hosts: [{ host: 'attic' }, { host: 'rack' }] });
    expect(`${status.stdout}${hosts.stdout}`).not.toMatch(/\u001b|gantry_/);
  });

  test('load, offload and release say the VRAM before and after', async () => {
    const gpu = /VRAM free \d+\.\d -> \d+\.\d GiB, held by it \d+\.\d -> \d+\.\d GiB$/;
    const loaded = await laptop.run('load', 'z', '--host', 'rack');
    expect(loaded.exitCode, loaded.stderr).toBe(0);
    expect(loaded.stdout).toContain('rack: z is ');
    const offloaded = await laptop.run('offload', 'z', '--host', 'rack');
    expect(offloaded.stdout).toMatch(gpu);
    expect(offloaded.stdout).toContain('rack: z is offloaded now.');
    const released = await laptop.json('release', 'z', '--host', 'rack');
    expect(released).toMatchObject({
      exitCode: 0,
      json: { status: 'success', hosts: [{ host: 'rack', state: 'released' }] },
    });
    expect(await fleet.host('rack').computePids()).toEqual([]);
    const again = await laptop.run('load', 'z', '--host', 'rack'); // ends the time for which batch work leaves it away
    expect(again.stdout).toMatch(gpu);
    expect(await laptop.run('load', 'zz')).toMatchObject({ exitCode: 1, stdout: '' });
  });

  test('drain keeps new work away until resume', async () => {
    const drained = await laptop.run('drain', 'rack', '--wait');
    expect(drained).toMatchObject({ exitCode: 0, stderr: '' });
    expect(drained.stdout).toContain('rack takes no new work.');
    const hosts = await eventually('it is shown', async () => {
      const { stdout } = await laptop.run('hosts');
      return stdout.includes('draining') ? stdout : undefined;
    });
    expect(hosts).toMatch(/^rack .*draining/m);
    expect((await laptop.run('resume', 'rack')).stdout).toBe('rack takes part again.');
    const unknown = await laptop.run('drain', 'rak');
    expect(unknown).toMatchObject({ exitCode: 2, stdout: '' });
    expect(unknown.stderr).toContain('Configured hosts: attic, rack');
  });

  test('jobs lists what was made, shows one by a short id, and knows nothing of a wrong one', async () => {
    const { json } = await laptop.json('generate', 'a listed fox', ...SMALL);
    const list = await laptop.run('jobs');
    expect(list.stdout).toMatch(/^ID .*\n[0-9a-f]{8} {2}generate {2}success +1\/1 .* a listed fox$/m);
    const id = String(json['job_id']).slice(0, 8);
    const one = await laptop.run('jobs', id);
    expect(one.exitCode, one.stderr).toBe(0);
    expect(one.stdout).toContain(`    ${String(json['file_path'])}`);
    expect((await laptop.json('jobs', id)).json).toMatchObject({ status: 'success', state: 'success' });
    expect(await laptop.run('jobs', 'zzzz')).toMatchObject({ exitCode: 1, stdout: '' });
    expect(await laptop.run('jobs', '--state', 'odd')).toMatchObject({ exitCode: 2, stdout: '' });
  });

  test('clients prints a snippet that starts this very program', async () => {
    const { stdout, stderr } = await laptop.run('clients', 'gemini');
    const { mcpServers } = JSON.parse(stdout) as { mcpServers: { gantry: { command: string; args: string[] } } };
    expect(mcpServers.gantry.command).toBe(process.execPath);
    expect(mcpServers.gantry.args).toEqual([expect.stringMatching(/^\/.*\/dist\/gantry\.cjs$/), 'bridge']);
    expect(stderr).toContain(join(laptop.home, '.gemini', 'settings.json'));
    expect((await laptop.json('clients')).json['clients']).toHaveLength(8);
    expect((await laptop.run('clients', 'cursr')).stderr).toContain('Did you mean cursor?');
  });

  test('config show tells value and origin, and no token', async () => {
    const shown = await laptop.run('config', 'show');
    expect(shown.stdout).toMatch(/^output_dir +\S+out +\S+bridge\.yaml:\d+$/m);
    expect(shown.stdout).toMatch(/^times\.silence +45s +default$/m);
    expect(shown.stdout).toMatch(/^hosts\.attic\.token +gantry_\.\.\. \(hidden\) /m);
    for (const { token } of fleet.hosts) expect(shown.stdout).not.toContain(token);
    const { json } = await laptop.json('config', 'show', '--output-dir', 'here');
    expect(json['settings']).toContainEqual({
      key: 'output_dir',
      value: 'here',
      origin: 'flag',
      where: '--output-dir',
    });
  });
});

describe('work that is ended early', () => {
  test('Ctrl-C cancels it, what is finished stays', async () => {
    await using fleet = await TestFleet.start([{ name: 'a', models: { z: vllm(MODEL, { 'step-ms': 300 }) } }]);
    const laptop = await Laptop.of(fleet);
    const batch = laptop.start('batch', 'one', 'two', 'three', 'four', ...SMALL);
    await eventually('the first is there', async () =>
      (await fleet.outputFiles()).some((name) => name.endsWith('.png')),
    );
    batch.kill('SIGINT');
    const ended = await batch;
    expect(ended.exitCode, ended.stderr).toBe(130);
    expect(ended.stderr).toMatch(/Cancelled: [123] of 4 images saved\./);
    expect((await laptop.run('jobs')).stdout).toMatch(/ cancelled /);
  });

  test('without its terminal it goes on: `jobs ID --wait` fetches what the host made and makes the rest', async () => {
    await using fleet = await TestFleet.start([{ name: 'a', models: { z: vllm(MODEL, { 'step-ms': 200 }) } }]);
    const laptop = await Laptop.of(fleet);
    const batch = laptop.start('batch', 'one', 'two', 'three', ...SMALL);
    await eventually('the first is there', async () =>
      (await fleet.outputFiles()).some((name) => name.endsWith('.png')),
    );
    batch.kill('SIGHUP');
    const left = await batch;
    expect(left.exitCode, left.stderr).toBe(129);
    const [, id = ''] = /gantry jobs (\S+) --wait/.exec(left.stderr) ?? [];
    expect((await laptop.run('jobs', id)).stdout).toContain('nobody works on it now');
    const rest = await laptop.run('jobs', id, '--wait');
    expect(rest.exitCode, rest.stderr).toBe(0);
    expect(rest.stdout).toContain('3 of 3 saved');
    expect((await fleet.outputFiles()).filter((name) => name.endsWith('.png'))).toHaveLength(3);
  });

  test('cancel ends what another window makes, and that window says so', async () => {
    await using fleet = await TestFleet.start([{ name: 'a', models: { z: vllm(MODEL, { 'step-ms': 300 }) } }]);
    const laptop = await Laptop.of(fleet);
    const batch = laptop.start('batch', 'one', 'two', 'three', 'four', '--json', ...SMALL);
    const id = await eventually('it is listed', async () => {
      const { jobs } = (await laptop.json('jobs')).json as { jobs: { batch_id: string; completed: number }[] };
      return jobs[0]?.completed === 1 ? jobs[0].batch_id : undefined;
    });
    const seen = await laptop.run('jobs', id);
    expect(seen.stdout).toContain('gantry works on it');
    const cancelled = await laptop.run('cancel', id.slice(0, 8));
    expect(cancelled, cancelled.stderr).toMatchObject({ exitCode: 0 });
    const ended = await batch;
    expect(ended.exitCode).toBe(130);
    expect(JSON.parse(ended.stdout)).toMatchObject({ status: 'cancelled', batch_id: id });
  });

  test('some made and some failed is partial: the exit code says so, and the reason is told', async () => {
    const model = vllm(MODEL, { 'crash-on': 'poison' });
    await using fleet = await TestFleet.start([{ name: 'a', models: { z: model } }]);
    const laptop = await Laptop.of(fleet);
    const made = await laptop.run('batch', 'a good fox', 'a poison fox', ...SMALL);
    expect(made.exitCode, made.stderr).toBe(3);
    expect(made.stdout).toMatch(/^\S+\.png$/);
    expect(made.stderr).toMatch(/failed.* a poison fox: QUARANTINED: /);
  });
});
