import { execa } from 'execa';
import { appendFile, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import { callEngine } from '../../../agent/engine/engine.ts';
import { freePort } from '../../../agent/server/free-port.ts';
import { JobWatch } from '../../../agent/model/job-watch.ts';
import { ServerLog } from '../../../agent/server/server-log.ts';
import { SEVERAL_AT_ONCE } from '../../helpers/at-once.ts';
import { Collected, generate, ModelHost, never, omni, QUIET, until } from './model-host.ts';

// Real processes: how long they take to start is up to the machine.
vi.setConfig({ testTimeout: 120_000, ...SEVERAL_AT_ONCE });

const errorOf = (promise: Promise<unknown>): Promise<unknown> => promise.catch((error: unknown) => error);
/** A job that may take 600 ms by what is known of the model, however long it really takes. */
const SHORT = { jobFloorMs: 600 };

function teach(host: ModelHost, steps: number): void {
  for (let jobs = 0; jobs < 7; jobs += 1) host.residency.learn('a', { request: generate({ steps }), runMs: 20 });
}

describe('an engine that hangs in a job', () => {
  test('is found by the deadline, ended although it is stopped, and started anew', async () => {
    await using host = await ModelHost.start([omni('a', ['--generate-ms', '1500', '--fork'])], { times: SHORT });
    teach(host, 4);
    await host.move('a', 'load');
    const pids = host.pids();
    // The first job after a load has more time: an engine that compiles is not stopped.
    expect((await host.run('a')).image.length).toBeGreaterThan(0);
    teach(host, 4);
    const startMs = performance.now();
    const run = errorOf(host.run('a'));
    await until(() => (host.residency.vramView(new Set()).residents[0]?.inFlight ?? 0) > 1);
    for (const pid of await leaderAndWorkers(host)) process.kill(pid, 'SIGSTOP');
    const error = await run;
    expect(error).toMatchObject({ code: 'TIMEOUT', retryable: true });
    expect(performance.now() - startMs).toBeLessThan(30_000);
    await until(() => host.state('a') === 'failed');
    expect(host.pids().filter((pid) => pids.includes(pid))).toEqual([]);
    expect(host.usedMiB()).toBe(0);
    await until(() => host.residency.slotFacts('a').retryInMs === 0);
    expect((await host.run('a')).image.length).toBeGreaterThan(0);
  });

  test('is none while its bar goes on, however slow it is', async () => {
    // Ten steps take longer than one may, and one takes a sixth of that: so much a busy machine may add to it.
    const args = ['--generate-ms', '0', '--step-ms', '500'];
    const limited = { times: { jobFloorMs: 3_000 } };
    await using host = await ModelHost.start([omni('a', args)], limited);
    await host.run('a', { steps: 1 });
    teach(host, 10);
    const steps: number[] = [];
    {
      using lease = await host.admit('a');
      await lease.run(generate({ steps: 10 }), [], { ...QUIET, onStep: (step) => steps.push(step) });
    }
    expect(steps).toEqual([...steps].sort((a, b) => a - b));
    expect(new Set(steps).size).toBe(steps.length);
    await using mute = await ModelHost.start([omni('a', [...args, '--no-progress-bar'])], limited);
    await mute.run('a', { steps: 1 });
    teach(mute, 10);
    expect(await errorOf(mute.run('a', { steps: 10 }))).toMatchObject({ code: 'TIMEOUT' });
  });

  test('that never answers one request is ended, and the next one works', async () => {
    await using host = await ModelHost.start([omni('a', ['--never-answer', '2'])], { times: SHORT });
    await host.run('a');
    teach(host, 4);
    expect(await errorOf(host.run('a'))).toMatchObject({ code: 'TIMEOUT' });
    await until(() => host.residency.slotFacts('a').retryInMs === 0);
    await host.run('a');
  });
});

describe('a job that runs out of memory', () => {
  const request = { width: 1024, height: 1024 };
  const megapixels = 1024 ** 2 / 1e6;

  test.each(['exception', 'engine-output'])('as %s is tried once more when idle models made room', async (as) => {
    // So long that a reading falls into the second try: a peak that nobody saw is no evidence of anything.
    const models = [omni('a', ['--oom', as, '--peak-mib', '9000', '--generate-ms', '2000']), omni('b')];
    await using host = await ModelHost.start(models);
    await host.move('b', 'load');
    {
      using lease = await host.admit('a', megapixels);
      // A busy machine may tell late what they hold, and who is not known to hold anything is not put away.
      await until(() => ['a', 'b'].every((slotId) => host.residency.slotFacts(slotId).heldMiB >= 8_000));
      const made = await lease.run(generate(request), [], QUIET);
      expect(made.notes.join()).toContain('Ran out of GPU memory once');
      expect(made.isSecondTry).toBe(true);
    }
    expect(['offloaded', 'released']).toContain(host.state('b'));
    // It had enough in the end, so what it ran short of at first is no evidence any more.
    expect(host.residency.wantFor('a', generate(request)).needMiB).toBeLessThan(4_000);
  });

  test('with nobody to make room fails with numbers and the next step, and is not let into the same trap again', async () => {
    await using host = await ModelHost.start([omni('a', ['--oom', 'exception', '--oom-at', '2'])]);
    await host.run('a');
    {
      using lease = await host.admit('a', megapixels);
      const error = await errorOf(lease.run(generate(request), [], QUIET));
      expect(error).toMatchObject({ code: 'GPU_OUT_OF_MEMORY', retryable: true });
      expect(String(error)).toMatch(
        /needs about \d+ MiB at 1024x1024, of which it held 8000; the most that is free on one GPU is \d+ MiB\. Try 720x720/,
      );
    }
    expect(host.state('a')).toBe('ready');
    expect((await host.run('a')).image.length).toBeGreaterThan(0); // a smaller one still may
    host.plant(1_000); // less is free than it had
    await until(() => host.residency.whyNoRoom('a', megapixels) !== undefined);
    expect(await errorOf(host.admit('a', megapixels))).toMatchObject({ code: 'GPU_OUT_OF_MEMORY' });
    host.plant(0);
    // It had all that there is; it may try that once more.
    await until(() => host.residency.whyNoRoom('a', megapixels) === undefined);
    (await host.admit('a', megapixels))[Symbol.dispose]();
  });

  test('makes the next one of its size evict first', async () => {
    const models = [omni('a', ['--oom', 'exception', '--oom-at', '1']), omni('b', [], { pin: true }), omni('c')];
    await using host = await ModelHost.start(models, { gpusMiB: [40_000] });
    await until(() => host.residency.slotFacts('b').isReady);
    await host.move('a', 'load');
    {
      using lease = await host.admit('a', megapixels);
      expect(await errorOf(lease.run(generate(request), [], QUIET))).toMatchObject({ code: 'GPU_OUT_OF_MEMORY' });
    }
    // It had 8000 and 24000 more, and that was too little: pinned neighbours stay, so nothing of that size comes in.
    await until(() => host.residency.wantFor('a', generate(request)).needMiB > 24_000);
    expect(host.residency.wantFor('a', generate()).needMiB).toBeLessThan(4_000);
  });

  test('and then hangs is ended long before its deadline', async () => {
    await using host = await ModelHost.start([omni('a', ['--oom', 'hang'])], { times: { jobFloorMs: 10_000 } });
    const startMs = performance.now();
    const error = await errorOf(host.run('a'));
    expect(error).toMatchObject({ code: 'GPU_OUT_OF_MEMORY' });
    expect(String(error)).toContain('did not survive');
    expect(performance.now() - startMs).toBeLessThan(60_000); // the first job of a model may take ten times the floor
    await until(() => host.state('a') === 'failed');
    await until(() => host.residency.slotFacts('a').retryInMs === 0);
  });

  test('and kills its engine is told from one that is poison', async () => {
    await using host = await ModelHost.start([omni('a', ['--oom', 'die'])]);
    expect(await errorOf(host.run('a'))).toMatchObject({ code: 'GPU_OUT_OF_MEMORY' });
    await until(() => host.state('a') === 'failed');
    expect(host.usedMiB()).toBe(0);
  });
});

describe('an engine', () => {
  test('never has two requests at a time, also when nobody waits for the first one any more', async () => {
    await using host = await ModelHost.start([omni('a', ['--generate-ms', '5000'])]);
    using lease = await host.admit('a');
    const leaving = new AbortController();
    const first = errorOf(lease.run(generate(), [], { ...QUIET, signal: leaving.signal }));
    const url = host.urlOf(host.pids()[0]);
    const inEngine = async (): Promise<number> => {
      const { body } = await callEngine(`${url}/metrics`, { signal: never });
      return [...body.toString().matchAll(/num_requests_(?:running|waiting)\S* (\d+)/g)].reduce(
        (sum, [, count]) => sum + Number(count),
        0,
      );
    };
    await vi.waitFor(async () => expect(await inEngine()).toBe(1), { timeout: 60_000 });
    leaving.abort(new Error('left'));
    await first;
    let isOver = false;
    const sink = new Collected();
    const second = lease.run(generate(), [], { ...QUIET, sink }).finally(() => (isOver = true));
    let most = 0;
    while (!isOver) most = Math.max(most, await inEngine());
    await second;
    expect(sink.image.length).toBeGreaterThan(0);
    expect(most).toBe(1);
  });

  test.each(['new', 'no-metrics', 'minimal'])('with the %s shape of answers is understood', async (shape) => {
    await using host = await ModelHost.start([omni('a', ['--response-shape', shape])]);
    expect((await host.run('a')).image.subarray(1, 4).toString()).toBe('PNG');
  });

  test('with several stages answers without size and format, and is understood', async () => {
    await using host = await ModelHost.start([omni('a', ['--multi-stage'])]);
    expect((await host.run('a')).image.subarray(1, 4).toString()).toBe('PNG');
  });

  test('of somebody else that was started anew under another first name is asked again, once', async () => {
    const port = await freePort('127.0.0.1');
    const launch = { kind: 'attached' as const, url: `http://127.0.0.1:${port}` };
    const slow = { healthPollMs: 1_500 };
    await using host = await ModelHost.start([omni('a', [], { id: 'their/model', launch })], { times: slow });
    const start = async (names: readonly string[]) => {
      const where = ['serve', 'their/model', '--omni', '--host', '127.0.0.1', '--port', String(port)];
      const server = execa(
        resolve('dist/sim/vllm-omni'),
        [...where, '--load-ms', '20', '--generate-ms', '20', '--served-model-name', ...names],
        { reject: false, stdio: 'ignore' },
      );
      await vi.waitFor(() => callEngine(`${launch.url}/health`, { signal: never }), { timeout: 60_000 });
      const dispose = async (): Promise<void> => {
        server.kill('SIGKILL');
        await server;
      };
      return { [Symbol.asyncDispose]: dispose };
    };
    {
      await using _first = await start(['their/model']);
      await until(() => host.residency.slotFacts('a').isReady);
      await host.run('a');
    }
    {
      await using _second = await start(['newname', 'their/model']);
      expect((await host.run('a')).image.length).toBeGreaterThan(0);
    }
    await using _third = await start(['quite/another']);
    expect(String(await errorOf(host.run('a')))).toMatch(/serves quite\/another, not their\/model/);
    await until(() => host.state('a') === 'failed');
  });
});

describe('the progress of a job', () => {
  test('is its own bar only: none of another length, none that goes back', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'gantry-watch-'));
    try {
      const log = await ServerLog.create({ logDir: directory, slotId: 'a' });
      await appendFile(log.path, ' 90%|#########| 18/20 [00:01<00:00]\n');
      const seen: string[] = [];
      const limits = { deadlineMs: 60_000, outOfMemoryMs: 300, signal: never };
      const from = await log.size();
      using watch = new JobWatch({ log, from, steps: 20, ...limits, onStep: (step, of) => seen.push(`${step}/${of}`) });
      for (const bar of ['3/3', '1/20', '7/7', '5/20', '4/20', '20/20']) {
        const before = seen.length;
        await appendFile(log.path, `\r 10%|#         | ${bar} [00:01<00:09,  1.00it/s]`);
        if (bar.endsWith('/20') && bar !== '4/20') await until(() => seen.length > before);
        else await new Promise((told) => setImmediate(told));
      }
      expect(seen).toEqual(['1/20', '5/20', '20/20']);
      expect(watch.isTooLate).toBe(false);
      await appendFile(log.path, '\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n');
      await until(() => watch.isTooLate);
      expect(watch.isShortOfMemory).toBe(true);
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  });
});

/** The ledger knows the worker, the record of the agent the leader. */
async function leaderAndWorkers(host: ModelHost): Promise<number[]> {
  const records = JSON.parse(await readFile(join(host.directory, 'servers.json'), 'utf8')) as Records;
  return [...host.pids(), ...records.servers.flatMap(({ leader }) => leader?.pid ?? [])];
}
type Records = { servers: { leader: { pid: number } | null }[] };
