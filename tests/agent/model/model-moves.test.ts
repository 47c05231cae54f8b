import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { generate, ModelHost, omni, QUIET, until } from './model-host.ts';

// Real processes: how long they take to start is up to the machine.
vi.setConfig({ testTimeout: 120_000 });

let host: ModelHost;
beforeAll(async () => {
  const models = [
    omni('a', ['--residual-mib', '1000']),
    omni('poor', ['--free-only-mib', '500']),
    flooding('fixed', { offload: 'none' }),
    omni('slow', ['--load-ms', '300', '--exit-delay-ms', '100']),
  ];
  host = await ModelHost.start(models, { gpusMiB: [80_000] });
});
afterAll(() => host[Symbol.asyncDispose]());

test('a person offloads and wakes, and nvidia-smi agrees', async () => {
  await host.move('a', 'load');
  const away = await host.move('a', 'offload');
  expect(away).toMatchObject({ state: 'offloaded', done: 'offload' });
  expect(away.heldAwayMs).toBeCloseTo(600_000, -4);
  expect(away.vram).toEqual({
    freeBeforeMiB: 72_000,
    freeAfterMiB: 79_000,
    heldBeforeMiB: 8_000,
    heldAfterMiB: 1_000,
  });
  expect(host.usedMiB()).toBe(1_000);
  expect(host.residency.heldAwayMs('test/a')).toBeGreaterThan(0);
  const back = await host.move('a', 'load');
  expect(back).toMatchObject({ state: 'ready', done: 'wake', heldAwayMs: 0 });
  expect(back.vram).toMatchObject({ freeBeforeMiB: 79_000, freeAfterMiB: 72_000 });
  expect(await host.move('a', 'load')).toMatchObject({ done: 'nothing' });
});

test('a job that comes while its model is released waits for the next load, and is not cut', async () => {
  await host.move('a', 'load');
  const away = host.move('a', 'release');
  for (let turns = 0; turns < 5; turns += 1) await setImmediate(); // the release has begun, and looks at what is held
  const { image } = await host.run('a');
  expect(image.length).toBeGreaterThan(0);
  expect(await away).toMatchObject({ done: 'release' });
});

test('a person hears when an offload freed next to nothing', async () => {
  await host.move('poor', 'load');
  const away = await host.move('poor', 'offload');
  expect(away.message).toContain('only 500 MiB of 8000 MiB came free');
  expect(away.vram).toMatchObject({ heldAfterMiB: 7_500 });
});

test('a person offloads a model that cannot: it is released, and the answer says so', async () => {
  const before = host.usedMiB();
  await host.move('fixed', 'load');
  // Its server has written 24 MB of log before it was ready; that is capped while it lives.
  const logs = join(host.directory, 'logs');
  const [name] = (await readdir(logs)).filter((file) => file.startsWith('fixed-'));
  await vi.waitFor(async () => expect((await stat(join(logs, name ?? ''))).size).toBeLessThan(1_000_000), {
    timeout: 60_000,
  });
  const { size } = await stat(join(logs, `${name}.1`));
  // The last 20 MiB, and what it wrote during the copy.
  expect([size >= 20 * 1024 * 1024, size < 21 * 1024 * 1024]).toEqual([true, true]);
  const away = await host.move('fixed', 'offload');
  expect(away).toMatchObject({ state: 'released', done: 'release' });
  expect(away.message).toMatch(/cannot be offloaded \(.*`offload: none`\), so it was released/);
  expect(host.usedMiB()).toBe(before);
});

test('a person gets an answer in time, and joins by calling again', async () => {
  await using other = await ModelHost.start([omni('a', ['--load-ms', '600'])], { times: { moveAnswerMs: 300 } });
  const first = await other.move('a', 'load');
  expect(first).toMatchObject({ done: 'nothing', state: expect.stringMatching(/released|loading/) as string });
  expect(first.readyInMs).toBeGreaterThan(0);
  let last = first;
  while (last.readyInMs !== undefined) last = await other.move('a', 'load');
  expect(last).toMatchObject({ state: 'ready', done: 'load' });
  expect(other.residency.modelStatus()[0]?.loads).toBe(1);
});

test('of several moves at once the last word holds', async () => {
  const first = host.move('slow', 'load');
  const away = host.move('slow', 'release');
  expect(await first).toMatchObject({ done: 'load' });
  await until(() => host.state('slow') === 'releasing');
  const back = host.move('slow', 'load');
  expect(await away).toMatchObject({ done: 'release' });
  expect(await back).toMatchObject({ state: 'ready', done: 'load', heldAwayMs: 0 });
  expect(host.residency.modelStatus()[3]).toMatchObject({ loads: 2, releases: 1, state: 'ready', heldAwayMs: 0 });
});

test('a release that a running job delays comes after it', async () => {
  const lease = await host.admit('slow');
  const away = host.move('slow', 'release');
  await lease.run(generate({ model: 'test/slow' }), [], QUIET);
  expect(host.state('slow')).toBe('ready');
  lease[Symbol.dispose]();
  expect(await away).toMatchObject({ state: 'released' });
});

/** Writes 24 MB to its log before it starts. */
function flooding(alias: string, more: Parameters<typeof omni>[2]): ReturnType<typeof omni> {
  const model = omni(alias, [], more);
  if (model.launch.kind !== 'owned') throw new Error('it is owned');
  const script = 'yes flood | head -c 24000000; exec "$@"';
  return { ...model, launch: { ...model.launch, command: ['/bin/sh', '-c', script, 'sh', ...model.launch.command] } };
}
