import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { entryOf, eventually, isAlive, isOpenAfter, kill, SimHost, SimServer } from './sim-server.ts';

const DEAD = 'EngineCore encountered an issue';

describe('where they live', () => {
  test('--fork: a worker in the same group holds the memory, and follows a killed parent', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host, ['--fork']);
    const worker = entryOf(host).pid;
    expect(worker).not.toBe(server.pid);
    expect(sessionAndGroup(worker)).toEqual(sessionAndGroup(server.pid));
    kill(server.pid);
    await server.exited;
    await eventually('the worker followed', () => !isAlive(worker));
    expect(host.usedMiB()).toBe(0);
  });

  test('--fork with two GPUs: one worker for each, and the death of one is the end of both', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host, ['--fork', '--tensor-parallel-size', '2']);
    const entries = host.ledger.entries().toSorted((a, b) => a.gpuUuid.localeCompare(b.gpuUuid));
    expect(entries).toMatchObject([
      { gpuUuid: 'GPU-one', usedMiB: 10_000, name: 'vLLM-Omni::DiffusionWorker_TP0' },
      { gpuUuid: 'GPU-two', usedMiB: 10_000, name: 'vLLM-Omni::DiffusionWorker_TP1' },
    ]);
    const [first, second] = entries.map(({ pid }) => pid);
    expect(new Set([first, second, server.pid]).size).toBe(3);
    kill(second ?? 0);
    await server.says("died unexpectedly: ['DiffusionWorker-1(exitcode=-9, SIGKILL)']");
    await eventually('both are gone', () => host.ledger.entries().length === 0);
  });

  test('--setsid: the worker is in a session of its own', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host, ['--setsid']);
    const worker = entryOf(host).pid;
    expect(sessionAndGroup(worker)).toEqual([worker, worker]);
    expect(worker).not.toBe(server.pid);
  });

  test('--retitle: nothing in /proc tells where the worker comes from', async () => {
    await using host = await SimHost.create();
    await using _plain = await SimServer.omni(host, ['--fork']);
    const plain = entryOf(host).pid;
    expect(shown(plain, 'cmdline')).toContain('simulated-worker');
    expect(shown(plain, 'environ')).toContain('GANTRY_SIM_LEDGER');
    await using _hidden = await SimServer.omni(host, ['--retitle', '--setsid'], { CUDA_VISIBLE_DEVICES: '1' });
    const hidden = host.ledger.entries().find(({ gpuUuid }) => gpuUuid === 'GPU-two')?.pid ?? 0;
    expect(shown(hidden, 'cmdline').replaceAll('\0', '')).toBe('vLLM-Omni::DiffusionWorker');
    expect([shown(hidden, 'environ'), shown(hidden, 'comm')]).toEqual(['', 'vLLM-Omni::Diff\n']);
    expect(sessionAndGroup(hidden)).toEqual([hidden, hidden]);
  });
});

describe('how they end', () => {
  test('--orphan: the worker outlives a killed parent and keeps the memory', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host, ['--orphan']);
    const worker = entryOf(host).pid;
    kill(server.pid);
    await server.exited;
    expect(await livesFor(worker, 300)).toBe(true);
    expect(host.usedMiB()).toBe(20_000);
    process.kill(worker, 'SIGTERM');
    await eventually('the memory is back', () => host.usedMiB() === 0);
  });

  test('--worker-ignore-sigterm: only SIGKILL ends it, which the server does not send before 0.29', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host, ['--worker-ignore-sigterm', '--join-ms', '150']);
    const worker = entryOf(host).pid;
    const startedMs = performance.now();
    server.child.kill('SIGTERM');
    expect(await server.exited).toEqual([0, null]);
    expect(performance.now() - startedMs, 'it waits --join-ms twice').toBeGreaterThanOrEqual(295);
    process.kill(worker, 'SIGTERM');
    expect(await livesFor(worker, 300)).toBe(true);
    expect(host.usedMiB()).toBe(20_000);
    kill(worker);
    await eventually('the memory is back', () => host.usedMiB() === 0);

    const newer = ['--worker-ignore-sigterm', '--join-ms', '50', '--vllm-version', '0.29.0'];
    await using killing = await SimServer.omni(host, newer);
    killing.child.kill('SIGTERM');
    await killing.exited;
    await eventually('the worker was killed', () => host.usedMiB() === 0);
  });

  test('a worker that is killed takes the engine', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host, ['--fork', '--generate-ms', '5000']);
    const work = server.generate();
    await eventually('it works', () => !!entryOf(host).isBusy);
    kill(entryOf(host).pid);
    expect((await work).at('error.message')).toContain(DEAD);
    expect((await server.get('/health')).status).toBe(503);
    expect(server.stderr).toContain("unexpectedly: ['DiffusionWorker-0(exitcode=-9, SIGKILL)']");
  });

  test('a worker that is killed during the load ends the start', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.spawnOmni(host, ['--fork', '--load-ms', '5000']);
    await eventually('it loads', () => host.usedMiB() > 0);
    kill(entryOf(host).pid);
    expect(await server.exited).toEqual([1, null]);
    expect(server.stderr).toContain('Rank 0 scheduler is dead');
  });

  test('--worker-death-unnoticed: the health stays good and no request is answered', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host, ['--worker-death-unnoticed', '--generate-ms', '300']);
    const leaving = new AbortController();
    const running = server.generate({}, leaving.signal);
    await eventually('it works', () => !!entryOf(host).isBusy);
    kill(entryOf(host).pid);
    const works = [running, server.generate({}, leaving.signal)];
    expect(await isOpenAfter(Promise.race(works), 700)).toBe(true);
    expect((await server.get('/health')).status).toBe(200);
    expect(host.usedMiB()).toBe(0);
    leaving.abort();
    await Promise.allSettled(works);
  });

  test('--worker-dies-at N: in the middle of that request; five seconds later the server ends, unless told not to', async () => {
    await using host = await SimHost.create();
    await using server = await SimServer.omni(host, ['--worker-dies-at', '2']);
    const keep = { VLLM_KEEP_ALIVE_ON_ENGINE_DEATH: '1', CUDA_VISIBLE_DEVICES: '1' };
    await using kept = await SimServer.omni(host, ['--worker-dies-at', '1'], keep);
    expect(await kept.generate()).toMatchObject({ status: 500 });
    const keptMs = performance.now();
    expect((await server.generate()).status).toBe(200);
    const reply = await server.generate();
    expect(reply).toMatchObject({ status: 500, json: { error: { type: 'InternalServerError', error_stage_id: 0 } } });
    expect([reply.at('error.message'), reply.at('error.request_id')]).toEqual([
      expect.stringContaining(DEAD),
      expect.stringMatching(/^img_gen-/),
    ]);
    expect(await server.get('/health')).toMatchObject({ status: 503, json: { status: 'unhealthy' } });
    expect((await server.generate()).at('error.message')).toContain(DEAD);
    expect(server.stderr).toContain(
      "Diffusion worker(s) died unexpectedly: ['DiffusionWorker-0(exitcode=-9, SIGKILL)']",
    );
    expect(host.ledger.entries()).toEqual([]);
    expect(await server.exited).toEqual([1, null]);
    expect(performance.now() - keptMs, 'the other one had as much time').toBeGreaterThan(5_000);
    expect((await kept.get('/health')).status).toBe(503);
  }, 120_000);

  test('--leak-sibling: the start fails, and a worker of it lives on with half of the weights', async () => {
    await using host = await SimHost.create();
    await using single = await SimServer.spawnOmni(host, ['--leak-sibling']);
    await using both = await SimServer.spawnOmni(host, ['--leak-sibling', '--tensor-parallel-size', '2']);
    expect(await Promise.all([single.exited, both.exited])).toEqual([
      [1, null],
      [1, null],
    ]);
    expect(single.stderr).toContain('EOFError');
    const left = host.ledger.entries().map(({ pid }) => pid);
    expect(await livesFor(left[0] ?? 0, 200)).toBe(true);
    expect(host.ledger.entries().map(({ name }) => name)).toEqual(
      expect.arrayContaining(['vLLM-Omni::DiffusionWorker', 'vLLM-Omni::DiffusionWorker_TP0']),
    );
    expect([host.usedMiB('GPU-one'), host.usedMiB('GPU-two')]).toEqual([10_000 + 5_000, 0]);
  });
});

async function livesFor(pid: number, ms: number): Promise<boolean> {
  return isOpenAfter(
    eventually('it has ended', () => !isAlive(pid)),
    ms,
  );
}

function shown(pid: number, file: 'cmdline' | 'environ' | 'comm'): string {
  return readFileSync(`/proc/${pid}/${file}`, 'utf8');
}

function sessionAndGroup(pid: number): number[] {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return [Number(fields[2]), Number(fields[3])];
}
