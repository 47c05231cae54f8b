import { once } from 'node:events';
import { readlinkSync } from 'node:fs';
import { readFile, readdir } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { Server } from 'node:http';
import { describe, expect, test, vi } from 'vitest';
import type { ComputeApp } from '../../../agent/gpu/smi-rows.ts';
import type { VramLook } from '../../../agent/gpu/vram-measure.ts';
import { measureVram } from '../../../agent/gpu/vram-measure.ts';
import type { ServerFacts } from '../../../agent/engine/engine.ts';
import { vllmOmni } from '../../../agent/engine/vllm-omni.ts';
import type { ConfiguredModel } from '../../../agent/configured-model.ts';
import type { PortLease } from '../../../agent/server/free-port.ts';
import { PortTable } from '../../../agent/server/free-port.ts';
import { titleOf } from '../../../agent/server/process-table.ts';
import { WorkerWatch } from '../../../agent/server/worker-watch.ts';
import { LifeStage, script } from './life-stage.ts';
import { omni, until } from './model-host.ts';

// Real processes: how long they take to start is up to the machine.
/** vi.waitFor gives up after a second unless it is told otherwise. */
const PATIENT = { timeout: 60_000 };

vi.setConfig({ testTimeout: 120_000 });

const failureOf = (promise: Promise<unknown>): Promise<string> => promise.then(() => 'no failure', String);

/** A server of the simulator whose engine lives on, and is healthy, when its worker has died. */
const WITH_WORKER = omni('a', ['--fork', '--retitle', '--worker-death-unnoticed']);

function workerOf(stage: LifeStage): number {
  const worker = stage.life.pids().find((pid) => /Worker/.test(titleOf(pid)));
  if (worker === undefined) throw new Error('the server has no worker');
  return worker;
}

describe('a start', () => {
  test('in which a port is held by somebody who answers goes on with the next one, and names who it was', async () => {
    const orphan = createServer((_, response) => response.end(JSON.stringify({ data: [{ id: 'test/a' }] })));
    await using stage = await LifeStage.open({ more: { ports: await portsBeginningWith(orphan) } });
    await stage.load();
    expect(stage.life.state).toMatchObject({ kind: 'ready', server: { kind: 'owned' } });
    expect(stage.event('server-port-taken')).toMatchObject({ port: portOf(orphan), owner: { pid: process.pid } });
    expect(stage.events.filter(({ event }) => event === 'model-failed')).toEqual([]);
    await closed(orphan);
  });

  test('that finds every port taken has failed after three, with the name of who has them', async () => {
    const orphan = createServer((_, response) => response.end());
    const ports = await portsBeginningWith(orphan, { times: 3 });
    await using stage = await LifeStage.open({ model: script('sleep 60'), more: { ports } });
    const failure = await failureOf(stage.load());
    expect(failure).toMatch(`(process ${process.pid}) listens on 127.0.0.1:${portOf(orphan)}`);
    expect(stage.events.filter(({ event }) => event === 'server-port-taken')).toHaveLength(2);
    expect(stage.life.state).toMatchObject({ kind: 'failed', retry: { atMs: expect.any(Number) as number } });
    expect(stage.life.pids()).toEqual([]);
    await closed(orphan);
  });

  test('that exits because its address is in use is tried on another port too', async () => {
    // The first one gives up at once, as uvicorn does; what comes after it is the simulator.
    const first = '[ -e first ] || { touch first; echo "OSError: [Errno 98] Address already in use"; exit 1; }';
    await using stage = await LifeStage.open({ model: inDirectory(omni('a'), first) });
    await stage.load();
    expect(stage.event('server-port-taken')).toBeDefined();
    expect(stage.life.state.kind).toBe('ready');
  });

  test('without a log line or more VRAM has failed, long before its deadline', async () => {
    const model = script('echo "loading weights"; exec sleep 60');
    await using stage = await LifeStage.open({ model, times: { stallMs: 700 } });
    const failure = await failureOf(stage.load());
    expect(failure).toMatch(/no sign of life for 1 s[^]*loading weights/);
    expect(stage.life.state.kind).toBe('failed');
    expect(stage.life.pids()).toEqual([]);
  });

  test('is no stall as long as its log grows, or the VRAM in use', async () => {
    let usedMiB = 0;
    const grow = (): number => (usedMiB += 100);
    const talking = script('while :; do echo line; sleep 0.1; done');
    const silent = script('exec sleep 60');
    const times = { stallMs: 700, startDeadlineMs: 2_500 };
    await using first = await LifeStage.open({ model: talking, times });
    await using second = await LifeStage.open({ model: silent, times, more: { usedMiB: grow } });
    const failures = await Promise.all([failureOf(first.load()), failureOf(second.load())]);
    for (const failure of failures) expect(failure).toMatch(/was not ready after 3 s/);
  });

  test('whose program is missing, or cannot be run, is not tried again', async () => {
    for (const command of [['/no/such/program'], ['no-such-program'], ['/etc/passwd']]) {
      const model = omni('a');
      if (model.launch.kind !== 'owned') throw new Error('ours');
      await using stage = await LifeStage.open({ model: { ...model, launch: { ...model.launch, command } } });
      expect(await failureOf(stage.load())).toMatch(/was not found, or may not be run/);
      expect(stage.life.state).toMatchObject({ kind: 'failed', retry: 'never' });
    }
  });

  test.each([78, 126, 127])('that exits with %i is not tried again', async (code) => {
    await using stage = await LifeStage.open({ model: script(`exit ${code}`) });
    await failureOf(stage.load());
    expect(stage.life.state).toMatchObject({ kind: 'failed', retry: 'never' });
  });

  test.each([
    { foreignMiB: 4_000, retry: { atMs: expect.any(Number) as number } },
    { foreignMiB: 0, retry: 'never' },
  ])('that ran out of memory while others took $foreignMiB MiB', async ({ foreignMiB, retry }) => {
    const model = script('echo "torch.OutOfMemoryError: CUDA out of memory"; exit 1');
    const look = (): Promise<VramLook> => Promise.resolve(lookWith(1_000 + foreignMiB));
    await using stage = await LifeStage.open({ model, more: { look } });
    const before = measureVram(lookWith(1_000), { gpus: ['GPU-0'], pids: [] });
    expect(await failureOf(stage.load(before))).toMatch(/out of memory/);
    expect(stage.life.state).toMatchObject({ kind: 'failed', retry });
  });

  test('has its server lowered in the order in which the kernel ends processes', async () => {
    await using stage = await LifeStage.open();
    await stage.load();
    expect(await readFile(`/proc/${stage.life.process?.pid}/oom_score_adj`, 'utf8')).toBe('500\n');
  });

  test('gives the server no socket of ours: it would keep our port when we are gone', async () => {
    const own = createServer();
    await once(own.listen(0, '127.0.0.1'), 'listening');
    await using stage = await LifeStage.open({ model: script('exec sleep 60') });
    await stage.life.begin([], undefined);
    const fds = `/proc/${stage.life.process?.pid}/fd`;
    await until(() => titleOf(stage.life.process?.pid ?? 0) === 'sleep');
    const files = (await readdir(fds)).map((fd) => readlinkSync(`${fds}/${fd}`));
    expect(files.slice(0, 3)).toEqual(['/dev/null', stage.life.log?.path, stage.life.log?.path]);
    expect(files.filter((file) => file.startsWith('socket:'))).toEqual([]);
    await closed(own);
  });
});

test('a server that exits in the moment in which it becomes ready is dead, not ready', async () => {
  // The last question of the probe needs no answer, so that it is ready by the end of its own process.
  const answer = 'q.url === "/version" ? process.exit(3) : r.end(JSON.stringify({ data: [{ id: "test/a" }] }))';
  const server = `require("http").createServer((q, r) => ${answer})`;
  const model = script(`exec ${process.execPath} -e '${server}.listen(process.argv[1])' $PORT`);
  for (let times = 0; times < 3; times += 1) {
    await using stage = await LifeStage.open({ model });
    await failureOf(stage.load());
    await until(() => stage.life.state.kind === 'failed');
    expect(String(stage.life.death)).toMatch(/exited with code 3/);
  }
});

test('a server whose exit is known before its last answer has been understood is dead, not ready', async () => {
  const model = script(`exec ${process.execPath} -e 'require("http").createServer().listen(process.argv[1])' $PORT`);
  const probe = async (): Promise<ServerFacts> => {
    process.kill(stage.life.process?.pid ?? NaN, 'SIGKILL');
    await stage.life.process?.exited;
    return { servedName: 'test/a' };
  };
  await using stage = await LifeStage.open({ model, more: { engine: { ...vllmOmni(), probe } } });
  await failureOf(stage.load());
  await until(() => stage.life.state.kind === 'failed');
  expect(String(stage.life.death)).toMatch(/was ended by SIGKILL/);
});

test('a server that cannot start is given up after the third time, with its last words', async () => {
  await using stage = await LifeStage.open({ model: script('echo "no luck"; exit 1') });
  for (const retry of [{ atMs: expect.any(Number) as number }, { atMs: expect.any(Number) as number }, 'never']) {
    expect(await failureOf(stage.load())).toMatch(/exited with code 1 before it was ready\.[^]*no luck/);
    expect(stage.life.state).toMatchObject({ kind: 'failed', retry });
  }
});

describe('a worker', () => {
  test('that dies while its leader lives and is healthy is a crash of the server', async () => {
    await using stage = await LifeStage.open({ model: WITH_WORKER });
    await stage.load();
    const worker = workerOf(stage);
    process.kill(worker, 'SIGKILL');
    await until(() => stage.life.state.kind === 'failed');
    expect(String(stage.life.death)).toMatch(`lost its worker`);
    expect(String(stage.life.death)).toMatch(`(process ${worker})`);
    expect(stage.life.pids()).toEqual([]);
  });

  test('is who holds VRAM, or has the title of one; helpers are not missed', async () => {
    const children = 'sleep 61 & echo $!; sleep 62 & echo $!; sleep 63 & echo $!; wait';
    await using stage = await LifeStage.open({ model: script(children) });
    await stage.life.begin([], undefined);
    await until(() => stage.life.pids().length === 4);
    const leader = stage.life.process?.pid ?? 0;
    await vi.waitFor(async () => expect(await stage.life.log?.tail(9)).toHaveLength(3), PATIENT);
    const [worker = 0, compiler = 0, helper = 0] = ((await stage.life.log?.tail(9)) ?? []).map(Number);
    const apps = [app(worker, 20_000), app(compiler, 500), app(leader, 300), app(1, 9_000)];
    const watch = new WorkerWatch({ leader, tree: stage.life.pids(), apps });
    for (const pid of [helper, compiler]) process.kill(pid, 'SIGKILL');
    await until(() => stage.life.pids().length === 2);
    expect(watch.lost()).toBeUndefined();
    process.kill(worker, 'SIGKILL');
    await until(() => watch.lost() !== undefined);
    expect(watch.lost()).toMatchObject({ pid: worker, name: 'sleep' });
  });

  test('that dies together with its leader is told as the death of the leader', async () => {
    await using stage = await LifeStage.open({ model: WITH_WORKER });
    await stage.load();
    const pids = [workerOf(stage), stage.life.process?.pid ?? 0];
    for (const pid of pids) process.kill(pid, 'SIGKILL');
    await until(() => stage.life.state.kind === 'failed');
    expect(String(stage.life.death)).toMatch(/was ended by SIGKILL/);
  });
});

describe('a stop', () => {
  test('that had to be forced is logged as forced, with who was killed', async () => {
    await using stage = await LifeStage.open({ model: omni('a', ['--ignore-sigterm']) });
    await stage.load();
    const { pid } = stage.life.process ?? {};
    await stage.life.bury('asked');
    expect(stage.life.state.kind).toBe('released');
    expect(stage.event('server-forced')).toMatchObject({ processes: [{ pid }] });
  });

  test('that was not is not', async () => {
    await using stage = await LifeStage.open();
    await stage.load();
    await stage.life.bury('asked');
    expect(stage.event('server-forced')).toBeUndefined();
    expect(await stage.recordsText()).not.toContain('"a"');
  });

  test('under way is not made ruder by the end of the agent', async () => {
    const model = script('trap "echo terminated; sleep 1; exit 0" TERM; echo up; while :; do sleep 0.05; done');
    await using stage = await LifeStage.open({ model, times: { stopGraceMs: 20_000 } });
    await stage.life.begin([], undefined);
    const { process: server, log } = stage.life;
    await vi.waitFor(async () => expect(await log?.lastLines()).toBe('up'), PATIENT);
    const burial = stage.life.bury('asked');
    await stage.life.shutdown({ graceMs: 0, work: () => undefined });
    await burial;
    expect(await server?.exited).toEqual({ code: 0, signal: null });
    expect(await log?.lastLines()).toBe('up\nterminated');
  });
});

/** The model's own command, after this piece of shell in a directory that is new. */
function inDirectory(model: ConfiguredModel, shell: string): ConfiguredModel {
  if (model.launch.kind !== 'owned') throw new Error('ours');
  const inNew = 'cd "$(dirname "$(readlink /proc/$$/fd/1)")"';
  const command = ['/bin/sh', '-c', `${inNew}; ${shell}; exec "$0" "$@"`, ...model.launch.command];
  return { ...model, launch: { ...model.launch, command } };
}

function portOf(server: Server): number {
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('it listens on a port');
  return address.port;
}

/** The kernel's choice, but for the first ports: those are where this server listens. */
async function portsBeginningWith(stranger: Server, { times = 1 } = {}): Promise<PortTable> {
  await once(stranger.listen(0, '127.0.0.1'), 'listening');
  let left = times;
  return new (class extends PortTable {
    override take(): Promise<PortLease> {
      left -= 1;
      return left < 0 ? super.take() : Promise.resolve({ number: portOf(stranger), [Symbol.dispose]: () => undefined });
    }
  })('127.0.0.1');
}

async function closed(server: Server): Promise<void> {
  server.closeAllConnections();
  server.close();
  await once(server, 'close');
}

function app(pid: number, usedMiB: number): ComputeApp {
  return { pid, gpuUuid: 'GPU-0', usedMiB, name: undefined };
}

/** A GPU on which somebody else holds so much. */
function lookWith(foreignMiB: number): VramLook {
  const [totalMiB, freeMiB] = [24_000, 24_000 - foreignMiB];
  const memory = { totalMiB, freeMiB, usedMiB: foreignMiB };
  const unknown = { busId: undefined, utilisationPercent: null, temperatureC: null, powerW: null };
  const reading = { uuid: 'GPU-0', index: 0, name: 'GPU', ...memory, ...unknown, health: 'ok' as const, ageMs: 0 };
  return { readings: [reading], apps: [app(1, foreignMiB)], isNumberedHere: true };
}
