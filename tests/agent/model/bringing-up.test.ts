import { execa } from 'execa';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { expect, test, vi } from 'vitest';
import { freePort } from '../../../agent/server/free-port.ts';
import type { ConfiguredModel } from '../../../agent/configured-model.ts';
import { SEVERAL_AT_ONCE } from '../../helpers/at-once.ts';
import { generate, ModelHost, never, omni, QUIET, until } from './model-host.ts';

// Real processes: how long they take to start is up to the machine.
vi.setConfig({ testTimeout: 120_000, ...SEVERAL_AT_ONCE });

test('who waits for a load or a wake hears again and again how long it takes, and so does the status', async () => {
  await using host = await ModelHost.start([omni('a', ['--load-ms', '600', '--sleep-ms', '300'])]);
  const details: string[] = [];
  const admit = () =>
    host.residency.admit('a', { megapixels: 1, signal: never, onDetail: (text) => details.push(text) });
  const status = new Set<string>();
  const admitted = admit();
  await until(() => {
    status.add(host.residency.modelStatus()[0]?.detail ?? '');
    return host.state('a') === 'ready';
  });
  (await admitted)[Symbol.dispose]();
  expect(details[0]).toMatch(/^loading a, about \d+ s expected$/);
  expect(status.size).toBeGreaterThan(1);
  await host.move('a', 'release');
  details.length = 0;
  (await admit())[Symbol.dispose]();
  expect(details[0]).toMatch(/^loading a, usually \d+(\.\d)? s$/); // measured meanwhile
  expect(details.some((text) => /, \d+(\.\d)? s so far$/.test(text))).toBe(true);
  expect(new Set(details).size).toBeGreaterThan(2);
  await host.move('a', 'offload');
  details.length = 0;
  (await admit())[Symbol.dispose]();
  expect(details[0]).toMatch(/^waking a, about/);
  expect(host.residency.modelStatus()[0]?.detail).toBeUndefined();
});

test('preloads come pinned first, then the largest; what does not fit beside them evicts nobody', async () => {
  const models = [
    omni('small', ['--weights-mib', '6000'], { preload: true, vramMiB: 6_000 }),
    omni('large', ['--weights-mib', '10000'], { preload: true, vramMiB: 10_000 }),
    omni('pinned', ['--weights-mib', '4000'], { pin: true, vramMiB: 4_000 }),
    omni('more', ['--weights-mib', '6000'], { preload: true, vramMiB: 6_000 }),
  ];
  const order: string[] = [];
  await using host = await ModelHost.start(models, { gpusMiB: [24_000] });
  await until(() => {
    for (const { alias } of models) if (host.state(alias) === 'ready' && !order.includes(alias)) order.push(alias);
    return order.length === 3;
  });
  expect(order).toEqual(['pinned', 'large', 'small']);
  const startMs = performance.now();
  await until(() => performance.now() - startMs > 500); // ten pulses
  expect(models.map(({ alias }) => host.state(alias))).toEqual(['ready', 'ready', 'ready', 'released']);
});

test('a pinned model makes room for itself at start', async () => {
  const models = [omni('a', [], { vramMiB: 8_000 }), omni('p', ['--exit-after', '60000'], { pin: true })];
  await using host = await ModelHost.start(models, { gpusMiB: [12_000], times: { retryFirstMs: 2_000 } });
  await until(() => host.residency.slotFacts('p').isReady);
  const [pid] = host.pids();
  process.kill(pid ?? NaN, 'SIGKILL');
  await until(() => host.state('p') === 'failed');
  (await host.admit('a'))[Symbol.dispose](); // in its absence
  await until(() => host.residency.slotFacts('p').isReady);
  expect(host.state('a')).not.toBe('ready');
});

test('after a person released a preloaded model nothing brings it back by itself; a waiting person does', async () => {
  await using host = await ModelHost.start([omni('a', [], { preload: true })]);
  await until(() => host.residency.slotFacts('a').isReady);
  await host.move('a', 'release');
  const startMs = performance.now();
  await until(() => performance.now() - startMs > 500); // ten pulses
  expect(host.state('a')).toBe('released');
  (await host.admit('a'))[Symbol.dispose]();
  expect(host.state('a')).toBe('ready');
});

const QUIETLY = { reject: false, stdio: 'ignore' } as const;

async function temporary(): Promise<{ path: string } & AsyncDisposable> {
  const path = await mkdtemp(join(tmpdir(), 'gantry-fetch-'));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true, maxRetries: 3 }) };
}

function fetched(alias: string, mibPerSecond: number, directory: string): ConfiguredModel {
  const model = omni(alias);
  if (model.launch.kind !== 'owned') throw new Error('it is owned');
  const env = { HF_HOME: directory, GANTRY_SIM_HF_MIB: '40', GANTRY_SIM_HF_MIB_PER_S: `${mibPerSecond}` };
  return {
    ...model,
    launch: { ...model.launch, env, download: 'auto', command: [resolve('dist/sim/vllm-omni'), 'serve'] },
  };
}

test('weights come before room is made: nobody is evicted and no GPU is held meanwhile, and who asked hears how far it is', async () => {
  await using home = await temporary();
  await using host = await ModelHost.start([fetched('far', 20, home.path), omni('b')], { gpusMiB: [12_000] });
  (await host.admit('b'))[Symbol.dispose]();
  const details: string[] = [];
  const far = host.residency.admit('far', { megapixels: 1, signal: never, onDetail: (text) => details.push(text) });
  await until(() => details.some((text) => text.startsWith('downloading')));
  expect(host.state('b')).toBe('ready');
  using lease = await host.admit('b'); // its GPU is not in transition
  await lease.run(generate({ model: 'test/b' }), [], QUIET);
  lease[Symbol.dispose]();
  (await far)[Symbol.dispose]();
  expect(details.join('\n')).toMatch(/downloading \d+ of (about )?\d+ MiB[^]*making room: releasing b[^]*loading far/);
  expect(host.state('far')).toBe('ready');
});

test('a preload whose weights come late evicts nobody who came meanwhile', async () => {
  await using home = await temporary();
  const far = { ...fetched('far', 40, home.path), preload: true };
  await using host = await ModelHost.start([far, omni('b', [], { preload: true })], { gpusMiB: [12_000] });
  await until(() => host.residency.modelStatus()[0]?.download !== undefined);
  await until(() => host.residency.slotFacts('b').isReady);
  await until(() => host.residency.modelStatus()[0]?.download === undefined);
  const startMs = performance.now();
  await until(() => performance.now() - startMs > 500); // ten pulses
  expect([host.state('far'), host.state('b')]).toEqual(['released', 'ready']);
});

test('a person who releases a model while its weights come gets an answer at once; nothing is loaded when they are there', async () => {
  await using home = await temporary();
  await using host = await ModelHost.start([fetched('far', 10, home.path)]);
  const load = host.move('far', 'load').catch((error: unknown) => error);
  await until(() => host.residency.modelStatus()[0]?.detail?.startsWith('downloading') === true);
  const away = await host.move('far', 'release');
  expect(away).toMatchObject({ state: 'released', done: 'nothing' });
  expect(await load).toMatchObject({ code: 'GPU_BUSY' });
  expect(host.residency.modelStatus()[0]?.loads).toBe(0);
});

test('a server of somebody else with start and stop is started for a job, and released when it has been idle, never before', async () => {
  const port = await freePort('127.0.0.1');
  const argv = ['serve', 'their/model', '--omni', '--host', '127.0.0.1', '--port', `${port}`];
  const sim = [resolve('dist/sim/vllm-omni'), ...argv, '--load-ms', '20', '--generate-ms', '1000'].join(' ');
  await using directory = await temporary();
  const file = join(directory.path, 'calls');
  const end = {
    [Symbol.asyncDispose]: () => execa('/bin/sh', ['-c', `kill $(cat ${file}.pid)`], QUIETLY).then(() => undefined),
  };
  await using _ended = end; // where this fails before it was stopped
  const launch = {
    kind: 'attached' as const,
    url: `http://127.0.0.1:${port}`,
    start: ['/bin/sh', '-c', `echo start >> ${file}; setsid ${sim} > /dev/null 2>&1 & echo $! > ${file}.pid`],
    stop: ['/bin/sh', '-c', `echo stop >> ${file}; kill $(cat ${file}.pid)`],
  };
  const calls = async (): Promise<string> =>
    (await readFile(file, 'utf8').catch(() => '')).replaceAll('\n', ' ').trim();
  await using host = await ModelHost.start([omni('theirs', [], { id: 'their/model', launch, releaseAfterMs: 700 })]);
  const startMs = performance.now();
  await until(() => performance.now() - startMs > 300); // six pulses
  expect(await calls()).toBe('');
  await host.run('theirs', { model: 'their/model' }); // takes longer than its idle time
  expect(await calls()).toBe('start');
  await until(() => host.state('theirs') === 'released');
  expect(await calls()).toBe('start stop');
  await until(() => performance.now() - startMs > 3_000);
  expect(await calls(), 'it does not come back by itself').toBe('start stop');
});
