import { describe, expect, test, vi } from 'vitest';
import type { ConfiguredModel } from '../../../agent/configured-model.ts';
import { isSameServer } from '../../../agent/model/same-server.ts';
import { ModelHost, never, omni, until } from './model-host.ts';

// Real processes: how long they take to start is up to the machine.
vi.setConfig({ testTimeout: 120_000 });

const SETTINGS = { reserveMiB: 512, ramReserveMiB: 2_048, yieldsToForeign: false };

/** As `ModelHost.start` configures them. */
function reload(host: ModelHost, models: readonly ConfiguredModel[], settings: Partial<typeof SETTINGS> = {}): void {
  const env = { GANTRY_SIM_LEDGER: `${host.directory}/ledger` };
  const found = models.map((model) =>
    model.launch.kind === 'attached' ? model : { ...model, launch: { ...model.launch, env } },
  );
  host.residency.reconfigure(found, { ...SETTINGS, ...settings });
}

const aliases = (host: ModelHost): string[] => host.residency.modelStatus().map(({ alias }) => alias);
const slotIds = (host: ModelHost): string[] => host.residency.slots.map(({ slotId }) => slotId);

describe('the same server serves', () => {
  const model = omni('a');
  const { launch } = model;
  if (launch.kind !== 'owned') throw new Error('it is owned');
  const ROWS: [what: string, change: Partial<ConfiguredModel>, isSame: boolean][] = [
    ['other policies', { preload: true, pin: true, offloadAfterMs: 1, releaseAfterMs: 2, warmsUp: true }, true],
    ['other guesses and numbers', { vramMiB: 1, replicas: 3, profile: { ...model.profile, steps: 3 } }, true],
    ['another downloader', { launch: { ...launch, download: 'auto' } }, true],
    ['the same environment in another order', { launch: { ...launch, env: { B: '2', A: '1' } } }, true],
    ['another alias', { alias: 'b' }, false],
    ['another revision', { id: 'test/a@b' }, false],
    ['another flag', { launch: { ...launch, args: [...launch.args, '--x'] } }, false],
    ['another environment', { launch: { ...launch, env: { A: '2', B: '2' } } }, false],
    ['more GPUs', { gpuCount: 2 }, false],
    ['no offload, which is a flag', { offload: 'none' }, false],
    ['an attached one', { launch: { kind: 'attached', url: 'http://127.0.0.1:1' } }, false],
  ];
  test.each(ROWS)('%s: %#', (_, change, isSame) => {
    const before = { ...model, launch: { ...launch, env: { A: '1', B: '2' } } };
    const after = { ...before, ...change };
    if (after.launch.kind === 'owned' && change.launch?.kind === 'owned' && change.launch.env === launch.env) {
      after.launch = { ...after.launch, env: before.launch.env };
    }
    expect(isSameServer(before, after)).toBe(isSame);
  });
});

describe('a reload', () => {
  test('does not touch a model that is the same: its process, its job and what was learned stay', async () => {
    await using host = await ModelHost.start([omni('a', ['--generate-ms', '400'])]);
    await host.run('a');
    const [pid] = host.pids();
    const { loadMs } = host.residency.slotFacts('a');
    const running = host.run('a');
    reload(host, [omni('a', ['--generate-ms', '400']), omni('b')]);
    expect(aliases(host)).toEqual(['a', 'b']);
    expect((await running).image.length).toBeGreaterThan(0);
    expect(host.pids()).toEqual([pid]);
    expect(host.residency.slotFacts('a')).toMatchObject({ state: 'ready', loadMs });
    expect(host.residency.modelStatus()[0]).toMatchObject({ loads: 1, jobsDone: 2 });
  });

  test('lets a removed model end its job, then ends its server, then forgets it', async () => {
    await using host = await ModelHost.start([omni('a', ['--generate-ms', '600']), omni('b')]);
    await host.run('b');
    const running = host.run('a');
    await until(() => host.residency.modelStatus()[0]?.state === 'ready');
    reload(host, [omni('b')]);
    expect(host.residency.slotFacts('a').leaving).toMatch(/removed from agent.yaml/);
    await expect(host.move('a', 'load')).rejects.toMatchObject({ code: 'GPU_BUSY' });
    expect((await running).image.length).toBeGreaterThan(0);
    await until(() => aliases(host).join() === 'b');
    await until(() => host.pids().length === 1);
    expect(host.usedMiB()).toBe(8_000);
    await expect(host.move('a', 'load')).rejects.toMatchObject({
      code: 'MODEL_UNKNOWN',
      message: expect.stringMatching(/^No model a is configured on this host\. Configured: /) as string,
    });
    host.residency.learn('a', { request: (await import('./model-host.ts')).generate(), runMs: 5 }); // a picture stored late
  });

  test('replaces a model whose server must be another one, when the old one is gone', async () => {
    await using host = await ModelHost.start([omni('a')]);
    await host.run('a');
    const [before] = host.pids();
    reload(host, [omni('a', ['--weights-mib', '4000'])]);
    expect(host.residency.slotFacts('a').leaving).toMatch(/definition in agent.yaml has changed/);
    await until(() => host.residency.slotFacts('a').leaving === undefined);
    expect(host.state('a')).toBe('released');
    await host.run('a');
    expect(host.usedMiB()).toBe(4_000);
    expect(host.pids()).not.toContain(before);
  });

  test('applies policies in place', async () => {
    await using host = await ModelHost.start([omni('a')]);
    await host.run('a');
    const [pid] = host.pids();
    reload(host, [omni('a', [], { pin: true })]);
    expect(host.residency.modelStatus()[0]).toMatchObject({ isPinned: true, state: 'ready' });
    reload(host, [omni('a', [], { offloadAfterMs: 1 })]);
    await until(() => host.state('a') === 'offloaded');
    expect(host.pids()).toEqual([pid]);
  });

  test('loads what is new and to be preloaded, and what is to be preloaded from now on', async () => {
    await using host = await ModelHost.start([omni('a')]);
    reload(host, [omni('a', [], { preload: true }), omni('b', [], { preload: true })]);
    await until(() => host.state('a') === 'ready' && host.state('b') === 'ready');
  });

  test('adds and takes away replicas', async () => {
    await using host = await ModelHost.start([omni('a')], { gpusMiB: [24_576, 24_576] });
    await host.run('a');
    const [first] = host.pids();
    reload(host, [omni('a', [], { replicas: 3 })]);
    expect(slotIds(host)).toEqual(['a', 'a#2', 'a#3']);
    await host.run('a#2');
    reload(host, [omni('a')]);
    await until(() => slotIds(host).join() === 'a');
    expect(host.pids()).toEqual([first]);
    reload(host, [omni('a', [], { replicas: 'auto' })]);
    expect(slotIds(host)).toEqual(['a', 'a#2']);
  });

  test('swaps two aliases: each server ends, and each name serves the other model', async () => {
    await using host = await ModelHost.start([omni('a'), omni('b')]);
    await host.run('a');
    await host.run('b');
    reload(host, [omni('a', [], { id: 'test/b' }), omni('b', [], { id: 'test/a' })]);
    expect(slotIds(host), 'no name and no model is there twice').toEqual(['a', 'b']);
    const ids = (): string =>
      host.residency
        .modelStatus()
        .map(({ alias, model }) => `${alias} ${model}`)
        .join();
    await until(() => ids() === 'a test/b,b test/a' && host.pids().length === 0);
    expect(host.usedMiB()).toBe(0);
    await host.run('a', { model: 'test/b' });
  });

  test('that comes right after another one wins, whatever was under way', async () => {
    await using host = await ModelHost.start([omni('a', ['--generate-ms', '300']), omni('b')]);
    const running = host.run('a');
    await until(() => host.state('a') === 'ready');
    const [pid] = host.pids();
    reload(host, [omni('b')]);
    reload(host, [omni('a', ['--generate-ms', '300'])]);
    expect(host.residency.slotFacts('a').leaving).toBeUndefined();
    await running;
    await until(() => aliases(host).join() === 'a');
    expect(host.pids()).toEqual([pid]);
    for (let round = 0; round < 50; round += 1)
      reload(host, round % 2 === 0 ? [] : [omni('a', ['--generate-ms', '300'])]);
    await until(() => aliases(host).join() === 'a' && host.residency.slotFacts('a').leaving === undefined);
    await host.run('a');
    expect(host.pids()).toHaveLength(1);
  });

  test('during a load: what nobody waits for is cut short', async () => {
    await using host = await ModelHost.start([omni('a', ['--load-ms', '8000'], { preload: true })]);
    await until(() => host.state('a') === 'loading');
    reload(host, [omni('a', [], { preload: true })]);
    await until(() => host.state('a') === 'ready');
    expect(host.pids()).toHaveLength(1);
  });

  test('during a load for a job: the job is done first', async () => {
    await using host = await ModelHost.start([omni('a', ['--load-ms', '400'])]);
    const running = host.run('a');
    await until(() => host.state('a') === 'loading');
    reload(host, []);
    expect((await running).image.length).toBeGreaterThan(0);
    await until(() => aliases(host).length === 0 && host.pids().length === 0);
  });

  test('during a download: nobody waits for the rest of it', async () => {
    const model = omni('a');
    if (model.launch.kind !== 'owned') throw new Error('it is owned');
    const slow: ConfiguredModel = { ...model, launch: { ...model.launch, download: ['sh', '-c', 'exec sleep 60'] } };
    await using host = await ModelHost.start([slow]);
    const asked = host.move('a', 'load').catch((error: unknown) => error);
    await until(() => host.residency.modelStatus()[0]?.download !== undefined);
    reload(host, [omni('b')]);
    await until(() => aliases(host).join() === 'b');
    expect(await asked).toBeInstanceOf(Error);
    await host.run('b');
  });

  test('changes the reserve for the next plan', async () => {
    await using host = await ModelHost.start([omni('a')], { gpusMiB: [12_000] });
    reload(host, [omni('a')], { reserveMiB: 9_000 });
    await expect(host.move('a', 'load')).rejects.toMatchObject({ code: 'GPU_OUT_OF_MEMORY' });
    reload(host, [omni('a')], { reserveMiB: 100 });
    expect((await host.move('a', 'load')).state).toBe('ready');
  });

  test('takes an attached server away without ending it', async () => {
    const attached = omni('x', [], { launch: { kind: 'attached', url: 'http://127.0.0.1:9' } });
    await using host = await ModelHost.start([attached]);
    reload(host, [omni('b')]);
    await until(() => aliases(host).join() === 'b');
  });

  test('a slot that somebody has stays until they let go', async () => {
    let isTaken = true;
    await using host = await ModelHost.start([omni('a')], { isTaken: () => isTaken });
    reload(host, []);
    await host.sampler.sampleNow(never);
    expect(slotIds(host)).toEqual(['a']);
    isTaken = false;
    host.residency.look();
    await until(() => slotIds(host).length === 0);
  });
});
