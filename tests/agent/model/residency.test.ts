import { execa } from 'execa';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import { freePort } from '../../../agent/model/free-port.ts';
import { edit, generate, ModelHost, never, omni, step1x, until } from './model-host.ts';

// Real processes: how long they take to start is up to the machine.
vi.setConfig({ testTimeout: 60_000 });

const PNG = Buffer.from([0x89, 0x50, 0x4e, 0x47]);

describe('a job', () => {
  test('loads its model, gets an image, and what it took is learned', async () => {
    await using host = await ModelHost.start([omni('a', ['--peak-mib', '9000'])]);
    const details: string[] = [];
    using lease = await host.residency.admit('a', {
      megapixels: 1,
      signal: never,
      onDetail: (text) => details.push(text),
    });
    const steps: number[] = [];
    const { image, runMs } = await lease.run(generate({ steps: 8 }), [], {
      signal: never,
      onStep: (step) => steps.push(step),
    });
    expect(image.subarray(0, 4)).toEqual(PNG);
    expect(runMs).toBeGreaterThan(40);
    expect(lease.gpuNames).toEqual(['Simulated GPU']);
    expect(details.join()).toContain('loading a');
    lease[Symbol.dispose]();
    await until(() => host.residency.slotFacts('a').heldMiB === 8_000);
    expect(host.residency.slotFacts('a')).toMatchObject({
      state: 'ready',
      isReady: true,
      heldMiB: 8_000,
      loadedMiB: 8_000,
    });
    expect(host.residency.gpuStatus()[0]).toMatchObject({ oursMiB: 8_000, foreign: [], isDegraded: false });
    host.residency.learn('a', { request: generate(), runMs });
    expect(host.residency.slotFacts('a').service.samples).toBe(1);
  });

  test('shows the steps of its progress bar', async () => {
    await using host = await ModelHost.start([omni('a', ['--step-ms', '200'])]);
    using lease = await host.admit('a');
    const seen: string[] = [];
    await lease.run(generate({ steps: 5 }), [], {
      signal: never,
      onStep: (step, steps) => seen.push(`${step}/${steps}`),
    });
    expect(seen.length).toBeGreaterThan(0);
    expect(seen.every((text) => text.endsWith('/5'))).toBe(true);
  });

  test('joins a load under way', async () => {
    await using host = await ModelHost.start([omni('a')]);
    const leases = await Promise.all([host.admit('a'), host.admit('a'), host.residency.move('test/a', 'load', never)]);
    expect(host.residency.modelStatus()[0]).toMatchObject({ state: 'ready', loads: 1 });
    expect(host.pids()).toHaveLength(1);
    leases[0][Symbol.dispose]();
    leases[1][Symbol.dispose]();
  });

  test('one caller that leaves does not end the load for the others', async () => {
    await using host = await ModelHost.start([omni('a')]);
    const leaving = new AbortController();
    const left = host.residency.admit('a', { megapixels: 1, signal: leaving.signal, onDetail: () => undefined });
    const stayed = host.admit('a');
    leaving.abort(new Error('left'));
    await expect(left).rejects.toThrow('left');
    using lease = await stayed;
    expect(lease.gpuNames).toHaveLength(1);
  });

  test('that outgrows the GPU evicts the idle model with the least regret, by offload', async () => {
    await using host = await ModelHost.start([omni('a'), omni('b'), omni('c')], { gpusMiB: [20_000] });
    for (const alias of ['a', 'b', 'c']) {
      using lease = await host.admit(alias);
      await lease.run(generate(), [], { signal: never, onStep: () => undefined });
    }
    expect(host.residency.slotFacts('a').state).toBe('offloaded');
    expect(host.residency.slotFacts('c').state).toBe('ready');
    expect(host.usedMiB()).toBeLessThanOrEqual(20_000);
    using again = await host.admit('a');
    expect(host.residency.slotFacts('a').state).toBe('ready');
    await again.run(generate(), [], { signal: never, onStep: () => undefined });
  });

  test('waits for no GPU that a running job needs', async () => {
    await using host = await ModelHost.start([omni('a'), omni('b')], { gpusMiB: [12_000] });
    using lease = await host.admit('a');
    await expect(host.admit('b')).rejects.toMatchObject({ code: 'GPU_BUSY' });
    expect(lease.gpuNames).toHaveLength(1);
  });

  test('that never fits is refused with numbers and the names of strangers', async () => {
    await using host = await ModelHost.start([omni('a')], { gpusMiB: [12_000] });
    host.plant(6_000);
    const refusal: unknown = await host.admit('a').catch((error: unknown) => error);
    expect(refusal).toMatchObject({ code: 'GPU_OUT_OF_MEMORY' });
    expect(String(refusal)).toMatch(/a needs \d+ MiB.*Other programs hold VRAM: .*pid \d+, 6000 MiB on GPU 0/);
    expect(host.residency.gpuStatus()[0]?.foreign).toMatchObject([{ pid: process.pid, usedMiB: 6_000 }]);
  });

  test('that runs out of memory is tried once more after idle models made room', async () => {
    await using host = await ModelHost.start([omni('a'), omni('b', ['--oom', 'exception', '--oom-at', '1'])]);
    (await host.admit('a'))[Symbol.dispose]();
    using lease = await host.admit('b');
    const result = await lease.run(generate({ model: 'test/b' }), [], { signal: never, onStep: () => undefined });
    expect(result.notes.join()).toContain('second try');
    expect(host.residency.slotFacts('a').state).toBe('offloaded');
  });

  test('that cannot have more memory fails with GPU_OUT_OF_MEMORY, and its server lives', async () => {
    await using host = await ModelHost.start([omni('a', ['--oom', 'engine-output', '--oom-at', '1'])]);
    using lease = await host.admit('a');
    const run = () => lease.run(generate(), [], { signal: never, onStep: () => undefined });
    await expect(run()).rejects.toMatchObject({ code: 'GPU_OUT_OF_MEMORY' });
    await expect(run()).resolves.toMatchObject({ notes: [] });
  });
});

describe('a person', () => {
  test('offloads and wakes, and nvidia-smi agrees', async () => {
    await using host = await ModelHost.start([omni('a', ['--residual-mib', '1000'])]);
    await host.residency.move('a', 'load', never);
    const away = await host.residency.move('a', 'offload', never);
    expect(away).toMatchObject({
      state: 'offloaded',
      done: 'offload',
      heldAwayMs: expect.closeTo(600_000, -4) as number,
    });
    expect(away.vram).toEqual({
      freeBeforeMiB: 16_576,
      freeAfterMiB: 23_576,
      heldBeforeMiB: 8_000,
      heldAfterMiB: 1_000,
    });
    expect(host.usedMiB()).toBe(1_000);
    expect(host.residency.isHeldAway('test/a')).toBeGreaterThan(0);
    const back = await host.residency.move('a', 'load', never);
    expect(back).toMatchObject({ state: 'ready', done: 'wake', heldAwayMs: 0 });
    expect(back.vram).toMatchObject({ freeBeforeMiB: 23_576, freeAfterMiB: 16_576 });
    expect(await host.residency.move('a', 'load', never)).toMatchObject({ done: 'nothing' });
  });

  test('hears when an offload freed next to nothing', async () => {
    await using host = await ModelHost.start([omni('a', ['--free-only-mib', '500'])]);
    await host.residency.move('a', 'load', never);
    const away = await host.residency.move('a', 'offload', never);
    expect(away.message).toContain('only 500 MiB of 8000 MiB came free');
    expect(away.vram).toMatchObject({ heldAfterMiB: 7_500 });
  });

  test('offloads a model that cannot: it is released, and the answer says so', async () => {
    await using host = await ModelHost.start([omni('a', [], { offload: 'none' })]);
    await host.residency.move('a', 'load', never);
    const away = await host.residency.move('a', 'offload', never);
    expect(away).toMatchObject({ state: 'released', done: 'release' });
    expect(away.message).toContain('cannot be offloaded, so it was released');
    expect(host.usedMiB()).toBe(0);
  });

  test('loads while a job is in the way: after it', async () => {
    await using host = await ModelHost.start([omni('a'), omni('b')], { gpusMiB: [12_000] });
    const lease = await host.admit('a');
    const load = host.residency.move('b', 'load', never);
    await until(() => host.residency.modelStatus()[1]?.detail?.includes('using now') === true);
    lease[Symbol.dispose]();
    expect(await load).toMatchObject({ state: 'ready', done: 'load' });
  });

  test('gets an answer in time, and joins by calling again', async () => {
    await using host = await ModelHost.start([omni('a', ['--load-ms', '1500'])], { times: { moveAnswerMs: 300 } });
    const first = await host.residency.move('a', 'load', never);
    expect(first).toMatchObject({ done: 'nothing', state: expect.stringMatching(/released|loading/) as string });
    expect(first.readyInMs).toBeGreaterThan(0);
    let last = first;
    while (last.readyInMs !== undefined) last = await host.residency.move('a', 'load', never);
    expect(last).toMatchObject({ state: 'ready', done: 'load' });
    expect(host.residency.modelStatus()[0]?.loads).toBe(1);
  });
});

describe('Step1X-Edit', () => {
  test.each(['unified', 'api'])(
    'of the %s server loads by a small edit, and is offloaded when nvidia-smi agrees',
    async (server) => {
      await using host = await ModelHost.start([step1x(['--server', server])]);
      {
        using lease = await host.admit('step1x');
        const input = await readFile('tests/agent/model/input.png');
        const { image } = await lease.run(edit({ sizeLevel: 512 }), [input], {
          signal: never,
          onStep: () => undefined,
        });
        expect(image.subarray(0, 4)).toEqual(PNG);
      }
      await until(() => host.residency.slotFacts('step1x').state === 'offloaded');
      const facts = host.residency.slotFacts('step1x');
      expect(facts).toMatchObject({ isReady: true, reloadMs: 0 });
      expect(facts.loadedMiB).toBeGreaterThan(7_000);
      expect(facts.heldMiB).toBeLessThan(4_000);
      expect(host.residency.wantFor('step1x', edit()).needMiB).toBeGreaterThan(4_000);
    },
  );

  test('whose offload moves nothing is released when its memory is needed', async () => {
    await using host = await ModelHost.start([step1x(['--offload', 'noop']), omni('b')], { gpusMiB: [12_000] });
    (await host.admit('step1x'))[Symbol.dispose]();
    using lease = await host.admit('b');
    expect(lease.gpuNames).toHaveLength(1);
    expect(host.residency.slotFacts('step1x').state).toBe('released');
  });
});

describe('two GPUs', () => {
  test('take a model each', async () => {
    await using host = await ModelHost.start([omni('a'), omni('b')], { gpusMiB: [12_000, 12_000] });
    const [a, b] = await Promise.all([host.admit('a'), host.admit('b')]);
    expect([host.usedMiB(0), host.usedMiB(1)]).toEqual([8_000, 8_000]);
    a[Symbol.dispose]();
    b[Symbol.dispose]();
  });

  test('take a replica each', async () => {
    await using host = await ModelHost.start([omni('a', [], { replicas: 'auto' })], { gpusMiB: [12_000, 12_000] });
    expect(host.residency.slots.map(({ slotId }) => slotId)).toEqual(['a', 'a#2']);
    const leases = await Promise.all([host.admit('a'), host.admit('a#2')]);
    expect([host.usedMiB(0), host.usedMiB(1)]).toEqual([8_000, 8_000]);
    for (const lease of leases) lease[Symbol.dispose]();
  });
});

describe('an agent that comes back', () => {
  test('ends what its predecessor left running, and remembers what it learned', async () => {
    await using host = await ModelHost.start([omni('a')]);
    (await host.admit('a'))[Symbol.dispose]();
    await until(() => existsSync(join(host.directory, 'learned.json')));
    const [left] = host.pids();
    expect(left).toBeDefined();
    await using next = await ModelHost.start([omni('a')], { directory: host.directory });
    await until(() => !next.pids().includes(left ?? 0));
    expect(next.residency.slotFacts('a')).toMatchObject({ state: 'released', loadedMiB: 8_000 });
    expect(next.residency.modelStatus()[0]).toMatchObject({ isMeasured: true });
  });
});

describe('idle policies', () => {
  test('offload first, release later', async () => {
    await using host = await ModelHost.start([omni('a', [], { offloadAfterMs: 100, releaseAfterMs: 1_500 })]);
    (await host.admit('a'))[Symbol.dispose]();
    await until(() => host.residency.slotFacts('a').state === 'offloaded');
    await until(() => host.residency.slotFacts('a').state === 'released');
    expect(host.usedMiB()).toBe(0);
  });
});

describe('a server that somebody else started', () => {
  test('is found, used, offloaded and missed, but never ended', async () => {
    const port = await freePort('127.0.0.1');
    const args = [
      'serve',
      'their/model',
      '--omni',
      '--host',
      '127.0.0.1',
      '--port',
      String(port),
      '--enable-sleep-mode',
    ];
    const quick = ['--load-ms', '20', '--generate-ms', '20', '--sleep-ms', '10', '--weights-mib', '8000'];
    const attached = omni('theirs', [], {
      id: 'their/model',
      launch: { kind: 'attached', url: `http://127.0.0.1:${port}` },
    });
    await using host = await ModelHost.start([attached], { times: { retryFirstMs: 100 } });
    const GANTRY_SIM_LEDGER = join(host.directory, 'ledger');
    const theirs = execa('dist/sim/vllm-omni', [...args, ...quick], {
      env: { GANTRY_SIM_LEDGER },
      reject: false,
      stdio: 'ignore',
    });
    try {
      await until(() => host.residency.slotFacts('theirs').isReady);
      {
        using lease = await host.admit('theirs');
        const { image } = await lease.run(generate({ model: 'their/model' }), [], {
          signal: never,
          onStep: () => undefined,
        });
        expect(image.subarray(0, 4)).toEqual(PNG);
      }
      await until(() => host.residency.gpuStatus()[0]?.foreign[0]?.pid === theirs.pid);
      await expect(host.residency.move('theirs', 'release', never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
      const away = await host.residency.move('theirs', 'offload', never);
      expect(away).toMatchObject({ state: 'offloaded', vram: { freeBeforeMiB: 16_576, freeAfterMiB: 23_040 } });
      (await host.admit('theirs'))[Symbol.dispose]();
      expect(host.residency.slotFacts('theirs').state).toBe('ready');
    } finally {
      theirs.kill('SIGKILL');
      await theirs;
    }
    await until(() => host.residency.slotFacts('theirs').state === 'failed');
    expect(host.residency.slotFacts('theirs').retryInMs).toBeDefined();
  });
});
