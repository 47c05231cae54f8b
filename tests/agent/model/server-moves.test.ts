import { pino } from 'pino';
import { resolve } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import { execa } from 'execa';
import { freePort } from '../../../agent/server/free-port.ts';
import type { ConfiguredModel } from '../../../agent/configured-model.ts';
import { callEngine } from '../../../agent/engine/engine.ts';
import { SEVERAL_AT_ONCE } from '../../helpers/at-once.ts';
import { generate, ModelHost, never, omni, QUIET, until } from './model-host.ts';
import { join } from 'node:path';

// Real processes: how long they take to start is up to the machine.
/** vi.waitFor gives up after a second unless it is told otherwise. */
const PATIENT = { timeout: 60_000 };

vi.setConfig({ testTimeout: 120_000, ...SEVERAL_AT_ONCE });

const failureOf = (promise: Promise<unknown>): Promise<string> => promise.then(String, String);
const SIMULATOR = resolve('dist/sim/vllm-omni');
const STRIP = 'for a; do shift; [ "$a" = --enable-sleep-mode ] || set -- "$@" "$a"; done; exec "$0" "$@"';

/** As the server of somebody who forgot the flag, or of a version that has lost it. */
function withCommand(command: readonly string[], args: readonly string[] = [], alias = 'a'): ConfiguredModel {
  const model = omni(alias, args);
  if (model.launch.kind !== 'owned') throw new Error('it is owned');
  return { ...model, launch: { ...model.launch, command: [...command, SIMULATOR, 'serve'] } };
}

const canOffload = (host: ModelHost, slotId = 'a'): boolean | undefined =>
  host.residency.vramView(new Set()).residents.find((resident) => resident.slotId === slotId)?.canOffload;

describe('an offload', () => {
  test('by a server without --enable-sleep-mode frees nothing: seen by nvidia-smi, said, and learned', async () => {
    await using host = await ModelHost.start([withCommand(['/bin/sh', '-c', STRIP])]);
    await host.move('a', 'load');
    expect(canOffload(host)).toBe(true);
    const away = await host.move('a', 'offload');
    expect(away.message).toMatch(/reports success, but only 0 MiB of 8000 MiB/);
    expect(away.message).toContain('release_gpu');
    expect(away.vram).toEqual({
      ...{ freeBeforeMiB: 16_576, freeAfterMiB: 16_576, heldBeforeMiB: 8_000, heldAfterMiB: 8_000 },
    });
    expect(canOffload(host)).toBe(false);
    expect((await host.move('a', 'offload')).message).toContain('still holds 8000 MiB');
    // It sleeps all the same: a job wakes it.
    expect((await host.run('a')).image.length).toBeGreaterThan(0);
  });

  test('comes after a job that nobody waits for any more, and not into the middle of it', async () => {
    await using host = await ModelHost.start([omni('a', ['--generate-ms', '1200'])]);
    const lease = await host.admit('a');
    const leaving = new AbortController();
    const run = failureOf(lease.run(generate(), [], { ...QUIET, signal: leaving.signal }));
    await until(() => host.residency.vramView(new Set()).residents[0]?.inFlight === 2);
    leaving.abort(new Error('abandoned'));
    expect(await run).toContain('abandoned');
    lease[Symbol.dispose]();
    const [pid] = host.pids();
    expect(await host.move('a', 'offload')).toMatchObject({ state: 'offloaded', done: 'offload' });
    expect(host.pids()).toEqual([pid]); // sleep with a request in flight kills this engine
    expect((await host.run('a')).image.length).toBeGreaterThan(0);
  });

  test.each([
    ['--sleep-ack-error', 'ERROR'],
    ['--sleep-crash', "no attribute 'sleeping_stages'"],
  ])('that fails with %s leaves a server that works, or none', async (flag, says) => {
    await using host = await ModelHost.start([omni('a', [flag])]);
    await host.move('a', 'load');
    expect(await failureOf(host.move('a', 'offload'))).toContain(says);
    expect(['ready', 'failed']).toContain(host.state('a'));
    if (host.state('a') === 'ready') expect(canOffload(host)).toBe(false);
    else expect(host.usedMiB()).toBe(0);
    await until(
      () => host.residency.slotFacts('a').retryInMs === undefined || host.residency.slotFacts('a').retryInMs === 0,
    );
    expect((await host.run('a')).image.length).toBeGreaterThan(0);
  });

  test('of a model with several stages is a release, and says why', async () => {
    await using host = await ModelHost.start([omni('a', ['--deploy-config', 'two.yaml'])]);
    await host.move('a', 'load');
    const away = await host.move('a', 'offload');
    expect(away).toMatchObject({ state: 'released', done: 'release' });
    expect(away.message).toMatch(/cannot be offloaded \(it has several stages.*\), so it was released/);
    expect(host.usedMiB()).toBe(0);
  });

  test('that host RAM cannot hold is a release, and says so with numbers', async () => {
    await using host = await ModelHost.start([omni('a')], { ramReserveMiB: 100_000_000 });
    await host.move('a', 'load');
    const away = await host.move('a', 'offload');
    expect(away).toMatchObject({ state: 'released', done: 'release' });
    expect(away.message).toMatch(/take 6000 MiB of host RAM, and -?\d+ MiB are free/);
    expect(host.pids()).toEqual([]);
  });

  test('says that VRAM is not known where nvidia-smi hangs, and the engine answers', async () => {
    await using host = await ModelHost.start([omni('a')], { queryTimeoutMs: 3_000 });
    await host.move('a', 'load');
    await host.hangNvidiaSmi();
    const away = await host.move('a', 'offload');
    expect(away.vram).toBeUndefined();
    expect(away.message).toContain('nvidia-smi did not answer');
    await host.mendNvidiaSmi();
    await host.sampler.firstSample(never);
    expect((await host.run('a')).image.length).toBeGreaterThan(0);
  });
});

describe('a wake', () => {
  test('waits for no memory that somebody else has taken: refused with their name, and nothing is lost', async () => {
    await using host = await ModelHost.start([omni('a')]);
    await host.move('a', 'load');
    await host.move('a', 'offload');
    const [pid] = host.pids();
    host.plant(20_000);
    expect(await failureOf(host.run('a'))).toMatch(/needs \d+ MiB[^]*\(pid \d+, 20000 MiB/);
    expect(await failureOf(host.move('a', 'load'))).toContain('pid');
    expect(host.state('a')).toBe('offloaded');
    host.plant(0);
    expect(await host.move('a', 'load')).toMatchObject({ done: 'wake', state: 'ready' });
    expect(host.pids()).toContain(pid);
  });

  test('makes room for itself first', async () => {
    await using host = await ModelHost.start([omni('a'), omni('b', ['--weights-mib', '14000'], { vramMiB: 14_000 })]);
    await host.move('a', 'load');
    await host.move('a', 'offload');
    await host.move('b', 'load');
    await host.run('a');
    expect(host.state('a')).toBe('ready');
    expect(['offloaded', 'released']).toContain(host.state('b'));
    expect(host.residency.modelStatus()[0]).toMatchObject({ loads: 1, wakes: 1 });
  });

  test.each(['--wake-oom', '--wake-ack-error'])('that fails with %s ends the process', async (flag) => {
    await using host = await ModelHost.start([omni('a', [flag])]);
    await host.move('a', 'load');
    await host.move('a', 'offload');
    expect(await failureOf(host.move('a', 'load'))).toContain('Waking a failed');
    expect(host.residency.slotFacts('a')).toMatchObject({ state: 'failed' });
    expect(host.residency.slotFacts('a').retryInMs).toBeDefined();
    expect(host.usedMiB()).toBe(0);
  });

  test('that brings nothing back to the GPU is not believed', async () => {
    const deaf = withCommand([process.execPath, resolve('tests/agent/model/deaf-wake.mjs')]);
    await using host = await ModelHost.start([deaf]);
    await host.move('a', 'load');
    await host.move('a', 'offload');
    expect(await failureOf(host.move('a', 'load'))).toMatch(
      /says that it woke, but nvidia-smi shows only 0 of 6464 MiB/,
    );
    await until(() => host.state('a') === 'failed');
    expect(host.pids()).toEqual([]);
    await until(() => host.residency.slotFacts('a').retryInMs === 0);
    await host.run('a');
    expect(canOffload(host)).toBe(false);
  });

  test('that its process does not survive says how it died', async () => {
    await using host = await ModelHost.start([omni('a', ['--sleep-ms', '1000'])]);
    await host.move('a', 'load');
    await host.move('a', 'offload');
    const back = failureOf(host.move('a', 'load'));
    await until(() => host.state('a') === 'loading');
    process.kill(host.pids()[0] ?? NaN, 'SIGKILL');
    expect(await back).toContain('was ended by SIGKILL');
    expect(host.state('a')).toBe('failed');
    expect(host.usedMiB()).toBe(0);
  });
});

describe('a stranger who puts our engine to sleep', () => {
  const sleep = (host: ModelHost, level: number): Promise<unknown> =>
    callEngine(`${host.urlOf(host.pids()[0])}/v1/omni/sleep`, {
      ...{ method: 'POST', headers: { 'content-type': 'application/json' }, signal: never },
      body: JSON.stringify({ stage_ids: [0], level }),
    });

  test('at level 1 is no harm to the next job', async () => {
    await using host = await ModelHost.start([omni('a', ['--asleep', '500'])]);
    await host.move('a', 'load');
    await sleep(host, 1);
    expect((await host.run('a')).image.length).toBeGreaterThan(0);
    expect(host.residency.modelStatus()[0]).toMatchObject({ loads: 1 });
  });

  test('at level 2 has ended it: the job fails, the process goes, and the next job has a new one', async () => {
    await using host = await ModelHost.start([omni('a', ['--asleep', '500'])]);
    await host.move('a', 'load');
    const [pid] = host.pids();
    await sleep(host, 2);
    expect(await failureOf(host.run('a'))).toMatch(/cannot be used any more[^]*asleep/);
    await until(() => host.residency.slotFacts('a').retryInMs === 0);
    expect(host.pids()).not.toContain(pid);
    expect((await host.run('a')).image.length).toBeGreaterThan(0);
  });
});

describe('a warm-up image', () => {
  test('is made before the server counts as ready, with one step, and is no job', async () => {
    await using host = await ModelHost.start([omni('a', [], { warmsUp: true })]);
    await host.move('a', 'load');
    const metrics = await callEngine(`${host.urlOf(host.pids()[0])}/metrics`, { signal: never });
    expect(metrics.body.toString()).toMatch(/requests_success_total\S* 1\.0/);
    expect(host.residency.modelStatus()[0]).toMatchObject({ state: 'ready', jobsDone: 0, loads: 1 });
    await host.move('a', 'offload');
    await host.move('a', 'load');
    const again = await callEngine(`${host.urlOf(host.pids()[0])}/metrics`, { signal: never });
    expect(again.body.toString()).toMatch(/requests_success_total\S* 1\.0/); // a wake compiles nothing
  });

  test('is not made where nobody asked for it', async () => {
    await using host = await ModelHost.start([omni('a')]);
    await host.move('a', 'load');
    const metrics = await callEngine(`${host.urlOf(host.pids()[0])}/metrics`, { signal: never });
    expect(metrics.body.toString()).toMatch(/requests_success_total\S* 0\.0/);
  });

  test('that fails is a failed start, with the log', async () => {
    await using host = await ModelHost.start([omni('a', ['--oom', 'exception'], { warmsUp: true })]);
    expect(await failureOf(host.move('a', 'load'))).toMatch(/its warm-up image failed: [^]*torch\.OutOfMemoryError/);
    expect(host.state('a')).toBe('failed');
    expect(host.usedMiB()).toBe(0);
  });

  test('that its server does not survive says how it died', async () => {
    await using host = await ModelHost.start([omni('a', ['--crash-on', 'grey square'], { warmsUp: true })]);
    expect(await failureOf(host.move('a', 'load'))).toMatch(
      /exited with code 1 before it was ready[^]*Segmentation fault/,
    );
    expect(host.state('a')).toBe('failed');
  });
});

describe('somebody else’s server', () => {
  async function attach(args: readonly string[]) {
    const port = await freePort('127.0.0.1');
    const launch = { kind: 'attached' as const, url: `http://127.0.0.1:${port}` };
    const host = await ModelHost.start([omni('a', [], { id: 'their/model', launch })]);
    const quick = ['--load-ms', '20', '--sleep-ms', '20', '--weights-mib', '8000', '--log-stats'];
    const where = ['serve', 'their/model', '--omni', '--host', '127.0.0.1', '--port', String(port)];
    const theirs = execa(SIMULATOR, [...where, ...quick, ...args], {
      env: { GANTRY_SIM_LEDGER: join(host.directory, 'ledger') },
      ...{ reject: false, stdio: 'ignore' },
    });
    await until(() => host.residency.slotFacts('a').isReady);
    const dispose = async (): Promise<void> => {
      theirs.kill('SIGKILL');
      await theirs;
      await host[Symbol.asyncDispose]();
    };
    return { host, url: launch.url, [Symbol.asyncDispose]: dispose };
  }

  test('that frees nothing when it is offloaded is said to', async () => {
    await using their = await attach([]);
    const away = await their.host.move('a', 'offload');
    expect(away.message).toContain('the engine did nothing, whatever it says');
    expect(away.vram).toMatchObject({ freeBeforeMiB: 16_576, freeAfterMiB: 16_576 });
  });

  test('is not put to sleep while it works for others', async () => {
    await using their = await attach(['--enable-sleep-mode', '--generate-ms', '1500']);
    const { width: _w, height: _h, ...rest } = generate();
    const body = JSON.stringify({ prompt: rest.prompt, size: '64x64', num_inference_steps: 2 });
    const theirJob = callEngine(`${their.url}/v1/images/generations`, {
      ...{ method: 'POST', headers: { 'content-type': 'application/json' }, signal: never, body, deadlineMs: 30_000 },
    });
    await vi.waitFor(async () => {
      const { body: metrics } = await callEngine(`${their.url}/metrics`, { signal: never });
      expect(metrics.toString()).toMatch(/num_requests_running\S* 1/);
    }, PATIENT);
    expect(await failureOf(their.host.move('a', 'offload'))).toContain('working for somebody else');
    expect(their.host.state('a')).toBe('ready');
    expect((await theirJob).status).toBe(200);
  });
});

test('every move is in the log with the VRAM before and after', async () => {
  const lines: string[] = [];
  const log = pino({ level: 'info' }, { write: (line: string) => void lines.push(line) });
  await using host = await ModelHost.start([omni('a')], { log });
  await host.run('a');
  await host.move('a', 'offload');
  await host.move('a', 'release');
  type Line = { event: string; done: string; freeBeforeMiB: number; freeAfterMiB: number };
  const moves = lines.map((line) => JSON.parse(line) as Line).filter(({ event }) => event === 'model-moved');
  expect(moves.map(({ done, freeBeforeMiB, freeAfterMiB }) => [done, freeBeforeMiB, freeAfterMiB])).toEqual([
    ['load', 24_576, 16_576],
    ['offload', 16_576, 23_040],
    ['release', 23_040, 24_576],
  ]);
});
