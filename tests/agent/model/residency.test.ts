import { execa } from 'execa';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { freePort } from '../../../agent/server/free-port.ts';
import { Collected, edit, generate, ModelHost, never, omni, QUIET, step1x, until } from './model-host.ts';

// Real processes: how long they take to start is up to the machine.
vi.setConfig({ testTimeout: 120_000 });

const PNG = Buffer.from([0x89, 0x50, 0x4e, 0x47]);

describe('a job', () => {
  let host: ModelHost;
  beforeAll(async () => {
    const models = [
      omni('a', ['--peak-mib', '9000', '--step-ms', '100']),
      omni('b'),
      omni('big', ['--peak-mib', '12000', '--generate-ms', '400']),
    ];
    host = await ModelHost.start(models, { gpusMiB: [80_000] });
  });
  afterAll(() => host[Symbol.asyncDispose]());

  test('loads its model, shows its steps, gets an image, and what it took is learned', async () => {
    const details: string[] = [];
    using lease = await host.residency.admit('a', {
      megapixels: 1,
      signal: never,
      onDetail: (text) => details.push(text),
    });
    const steps: string[] = [];
    const sink = new Collected();
    const { runMs } = await lease.run(generate({ steps: 8 }), [], {
      signal: never,
      onStep: (step, of) => steps.push(`${step}/${of}`),
      sink,
    });
    expect(sink.image.subarray(0, 4)).toEqual(PNG);
    expect(runMs).toBeGreaterThan(800);
    expect(steps.length).toBeGreaterThan(0);
    expect(steps.every((text) => text.endsWith('/8'))).toBe(true);
    expect(lease.gpuNames).toEqual(['Simulated GPU']);
    expect(details.join()).toContain('loading a');
    lease[Symbol.dispose]();
    await until(() => host.residency.slotFacts('a').heldMiB === 8_000);
    expect(host.residency.slotFacts('a')).toMatchObject({ state: 'ready', isReady: true, loadedMiB: 8_000 });
    expect(host.residency.gpuStatus()[0]).toMatchObject({ oursMiB: 8_000, foreign: [], isDegraded: false });
    host.residency.learn('a', { request: generate(), runMs });
    expect(host.residency.slotFacts('a').service.samples).toBe(1);
  });

  test('joins a load under way, which does not end when another one leaves', async () => {
    const leaving = new AbortController();
    const left = host.residency.admit('b', { megapixels: 1, signal: leaving.signal, onDetail: () => undefined });
    const before = host.pids();
    const joined = Promise.all([host.admit('b'), host.admit('b'), host.move('test/b', 'load')]);
    leaving.abort(new Error('left'));
    await expect(left).rejects.toThrow('left');
    const leases = await joined;
    expect(host.residency.modelStatus()[1]).toMatchObject({ state: 'ready', loads: 1 });
    expect(host.pids()).toHaveLength(before.length + 1);
    leases[0][Symbol.dispose]();
    leases[1][Symbol.dispose]();
  });

  test('that was abandoned keeps its server in use until it ends, and its memory promised no longer', async () => {
    const facts = () => host.residency.vramView(new Set()).residents.find(({ slotId }) => slotId === 'big');
    const lease = await host.admit('big', 1);
    const leaving = new AbortController();
    const run = lease.run(generate({ model: 'test/big' }), [], { ...QUIET, signal: leaving.signal });
    await until(() => host.ledger.entries().some(({ usedMiB }) => usedMiB > 8_000)); // else it is never sent
    leaving.abort(new Error('cancelled'));
    await expect(run).rejects.toThrow('cancelled');
    lease[Symbol.dispose]();
    expect(facts()?.inFlight).toBe(1);
    await until(() => facts()?.inFlight === 0);
    // The readings of that moment still show its peak; with the next ones the promise is over.
    await until(() => facts()?.heldMiB === host.residency.slotFacts('big').heldMiB);
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
        const sink = new Collected();
        await lease.run(edit({ sizeLevel: 512 }), [input], { ...QUIET, sink });
        expect(sink.image.subarray(0, 4)).toEqual(PNG);
      }
      await until(() => host.state('step1x') === 'offloaded');
      const facts = host.residency.slotFacts('step1x');
      expect(facts).toMatchObject({ isReady: true, reloadMs: 0 });
      expect(facts.loadedMiB).toBeGreaterThan(7_000);
      expect(facts.heldMiB).toBeLessThan(4_000);
      expect(host.residency.wantFor('step1x', edit()).needMiB).toBeGreaterThan(4_000);
    },
  );
});

test('two GPUs take two models each, and a replica each of a third', async () => {
  const models = [omni('a', [], { replicas: 'auto' }), omni('b'), omni('c')];
  await using host = await ModelHost.start(models, { gpusMiB: [24_000, 24_000] });
  expect(host.residency.slots.map(({ slotId }) => slotId)).toEqual(['a', 'a#2', 'b', 'c']);
  const leases = await Promise.all(['a', 'a#2', 'b', 'c'].map((slotId) => host.admit(slotId)));
  expect([host.usedMiB(0), host.usedMiB(1)]).toEqual([16_000, 16_000]);
  for (const lease of leases) lease[Symbol.dispose]();
});

describe('an agent that comes back', () => {
  test('ends what its predecessor left running, and remembers what it learned', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'gantry-left-'));
    try {
      // As /var/log may be: the kernel names the open log by another path than the configuration does.
      await mkdir(join(directory, 'real'));
      await symlink(join(directory, 'real'), join(directory, 'logs'));
      const stubborn = omni('a', ['--orphan', '--setsid', '--ignore-sigterm']);
      await using host = await ModelHost.start([stubborn], { directory });
      (await host.admit('a'))[Symbol.dispose]();
      await until(() => existsSync(join(directory, 'learned.json')));
      const records = JSON.parse(await readFile(join(directory, 'servers.json'), 'utf8')) as Records;
      // What is left is a worker without its leader, in a session of its own.
      process.kill(records.servers[0].leader.pid, 'SIGKILL');
      expect(host.pids()).toHaveLength(1);
      await using next = await ModelHost.start([stubborn], { directory });
      expect(next.pids()).toEqual([]);
      expect(next.residency.slotFacts('a')).toMatchObject({ state: 'released', loadedMiB: 8_000 });
      expect(next.residency.modelStatus()[0]).toMatchObject({ isMeasured: true });
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  });

  test('has started before a hanging nvidia-smi answers; then come replicas and preloads', async () => {
    const models = [omni('a', [], { replicas: 'auto' }), omni('b', [], { preload: true })];
    const hanging = { doesNvidiaSmiHang: true, queryTimeoutMs: 3_000 };
    await using host = await ModelHost.start(models, { gpusMiB: [24_576, 24_576], ...hanging });
    expect(host.residency.slots.map(({ slotId }) => slotId)).toEqual(['a', 'b']);
    expect(host.residency.modelStatus().map(({ state }) => state)).toEqual(['released', 'released']);
    await host.mendNvidiaSmi();
    await until(() => host.residency.slotFacts('b').isReady);
    expect(host.residency.slots.map(({ slotId }) => slotId)).toEqual(['a', 'a#2', 'b']);
  });
});

/** What is in servers.json. */
type Records = { servers: [{ leader: { pid: number } }] };

describe('the status of a model', () => {
  test('has what its configuration allows, its policies and what it did', async () => {
    const more = { capabilities: ['generate' as const, 'edit' as const], offloadAfterMs: 100, releaseAfterMs: 1_500 };
    await using host = await ModelHost.start([omni('a', [], more)]);
    const status = () => host.residency.modelStatus()[0];
    expect(status()).toMatchObject({ offloadAfterMs: 100, releaseAfterMs: 1_500, wakes: 0, loads: 0 });
    expect(status()?.profile.capabilities).toEqual(['generate', 'edit']);
    (await host.admit('a'))[Symbol.dispose]();
    // Idle policies: offload first, release later.
    await until(() => host.state('a') === 'offloaded');
    (await host.admit('a'))[Symbol.dispose]();
    await until(() => host.state('a') === 'released');
    expect(status()).toMatchObject({ loads: 1, wakes: 1, releases: 1 });
    expect(host.usedMiB()).toBe(0);
  });
});

describe('a server that somebody else started', () => {
  test('is found, used, offloaded and missed, but never ended', async () => {
    const port = await freePort('127.0.0.1');
    const args = ['serve', 'their/model', '--omni', '--host', '127.0.0.1', '--port', String(port)];
    const quick = ['--load-ms', '20', '--generate-ms', '20', '--sleep-ms', '200', '--weights-mib', '8000'];
    const attached = omni('theirs', [], {
      id: 'their/model',
      launch: { kind: 'attached', url: `http://127.0.0.1:${port}` },
    });
    await using host = await ModelHost.start([attached]);
    const theirs = execa('dist/sim/vllm-omni', [...args, '--enable-sleep-mode', ...quick], {
      env: { GANTRY_SIM_LEDGER: join(host.directory, 'ledger') },
      reject: false,
      stdio: 'ignore',
    });
    try {
      await until(() => host.residency.slotFacts('theirs').isReady);
      const { image } = await host.run('theirs', { model: 'their/model' });
      expect(image.subarray(0, 4)).toEqual(PNG);
      await expect(host.move('theirs', 'release')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
      const away = host.move('theirs', 'offload');
      await until(() => host.state('theirs') === 'offloading');
      const admitted = host.admit('theirs'); // a job that comes in the middle of it waits, and wakes it
      expect(await away).toMatchObject({ done: 'offload', vram: { freeBeforeMiB: 16_576, freeAfterMiB: 23_040 } });
      (await admitted)[Symbol.dispose]();
      expect(host.state('theirs')).toBe('ready');
      expect(host.residency.gpuStatus()[0]?.foreign[0]?.pid).toBe(theirs.pid);
    } finally {
      theirs.kill('SIGKILL');
      await theirs;
    }
    await until(() => host.state('theirs') === 'failed');
    expect(host.residency.slotFacts('theirs').retryInMs).toBeDefined();
  });
});
