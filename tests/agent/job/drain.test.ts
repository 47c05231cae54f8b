import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { pause } from '../../../shared/abort.ts';
import { Drain } from '../../../agent/job/drain.ts';
import { omni } from '../model/model-host.ts';
import { jobOf, log } from './exchange-host.ts';
import { SimulatedServers } from './simulated-servers.ts';

let stateDir: string;
beforeEach(async () => {
  stateDir = await mkdtemp(join(tmpdir(), 'gantry-drain-'));
});
afterEach(() => rm(stateDir, { recursive: true, force: true }));

describe('what is kept', () => {
  test('lasts over a restart, until it is taken back', async () => {
    expect((await Drain.open({ stateDir, log })).isDraining).toBe(false);
    await (await Drain.open({ stateDir, log })).set(true);
    const again = await Drain.open({ stateDir, log });
    expect(again.isDraining).toBe(true);
    await again.set(false);
    expect((await Drain.open({ stateDir, log })).isDraining).toBe(false);
  });

  test('is moved aside when it is damaged', async () => {
    await writeFile(join(stateDir, 'drain.json'), '{"version":1,"isDr');
    expect((await Drain.open({ stateDir, log })).isDraining).toBe(false);
    expect((await readdir(stateDir)).join()).toMatch(/^drain\.json\.corrupt-\d+$/);
  });

  test('holds at once also where the disk refuses it, and says so', async () => {
    const drain = await Drain.open({ stateDir: join(stateDir, 'absent'), log });
    await expect(drain.set(true)).rejects.toMatchObject({
      code: 'DISK_FULL',
      message: expect.stringMatching(/^The host drains, but a restart/) as string,
    });
    expect(drain.isDraining).toBe(true);
  });
});

describe('a draining host', { timeout: 120_000 }, () => {
  test('counts what still runs, takes back open grants, and lets accepted jobs end', async () => {
    await using servers = await SimulatedServers.start([omni('a', ['--generate-ms', '500']), omni('b')]);
    const { exchange } = servers.host;
    const [working, holding] = [servers.host.bridge('token-a'), servers.host.bridge('token-b')];
    const [job, waiting] = [jobOf(), jobOf()];
    working.work([job]);
    await working.until(() => working.of('job.progress').find(({ state }) => state === 'running'));
    // On a GPU of 24 GiB the other model fits beside, but one GPU runs one job: so its grant comes when the first has ended.
    expect(await exchange.drain()).toEqual({ isDraining: true, running: 1 });
    holding.offer('test/b');
    await working.done(job.jobId);
    await expect.poll(() => exchange.drain()).toEqual({ isDraining: true, running: 0 });
    expect(holding.grants).toEqual([]);
    expect(await exchange.resume()).toEqual({ isDraining: false, running: 0 });
    const open = await holding.grant();
    expect(await exchange.drain()).toMatchObject({ running: 0 });
    expect(holding.of('slot.revoke')).toEqual([{ grantId: open.grantId }]);
    await expect(holding.take(open, waiting)).rejects.toMatchObject({ code: 'GRANT_EXPIRED' });
    expect(exchange.slots().get('b')?.phase).toBe('cannot');
  });

  test('still loads and releases a model for a person, also one whose turn had to wait', async () => {
    await using servers = await SimulatedServers.start([
      omni('a', ['--generate-ms', '700', '--weights-mib', '15000'], { vramMiB: 15_000 }),
      omni('b', ['--weights-mib', '15000'], { vramMiB: 15_000 }),
    ]);
    const { exchange } = servers.host;
    const bridge = servers.host.bridge();
    const job = jobOf();
    bridge.work([job]);
    await bridge.until(() => bridge.of('job.progress').find(({ state }) => state === 'running'));
    const { signal } = new AbortController();
    const before = exchange.move('b', 'load', signal); // waits for the running job
    await exchange.drain();
    expect(await before).toMatchObject({ state: 'ready' });
    expect(bridge.of('job.done')).toHaveLength(1);
    expect(await exchange.move('b', 'release', signal)).toMatchObject({ done: 'release' });
    expect(await exchange.move('a', 'load', signal)).toMatchObject({ state: 'ready' });
    expect(exchange.isDraining).toBe(true);
  });

  test('preloads nothing, and does so once it is resumed', async () => {
    await using servers = await SimulatedServers.start([omni('a', [], { preload: true })], { isDraining: true });
    const state = (): string => servers.residency.slotFacts('a').state;
    await expect.poll(() => servers.residency.gpuStatus().length, { timeout: 60_000 }).toBe(1);
    await pause(2_000, new AbortController().signal); // else it would begin within a pulse of 50 ms
    expect(state()).toBe('released');
    await servers.host.exchange.resume();
    await expect.poll(state, { timeout: 60_000 }).toBe('ready');
  });
});

test('a slot that agent.yaml dropped gives its grant back, and goes when nobody has it', async () => {
  await using servers = await SimulatedServers.start([omni('a')], { times: { grantMs: 60_000 } });
  const { host, residency } = servers;
  const bridge = host.bridge();
  bridge.offer('test/a');
  const open = await bridge.grant();
  residency.reconfigure([], { reserveMiB: 512, ramReserveMiB: 2_048, yieldsToForeign: false });
  await bridge.until(() => bridge.of('slot.revoke')[0]);
  await expect(bridge.take(open, jobOf())).rejects.toMatchObject({ code: 'GRANT_EXPIRED' });
  await expect.poll(() => residency.slots).toEqual([]);
  bridge.offer('test/a');
  expect(host.exchange.slots().size).toBe(0);
  await expect(host.exchange.move('test/a', 'load', new AbortController().signal)).rejects.toMatchObject({
    code: 'MODEL_UNKNOWN',
  });
});

test('a job that waits for its inputs keeps its slot, dropped or not', async () => {
  await using servers = await SimulatedServers.start([omni('a', [], { capabilities: ['generate', 'edit'] })], {
    times: { inputSilenceMs: 400 },
  });
  const { host, residency } = servers;
  const bridge = host.bridge();
  bridge.offer('test/a');
  const grant = await bridge.grant();
  const job = jobOf({ kind: 'edit', inputs: ['0'.repeat(64)] } as never); // an edit whose input never comes
  await bridge.take(grant, job);
  residency.reconfigure([], { reserveMiB: 512, ramReserveMiB: 2_048, yieldsToForeign: false });
  expect(host.exchange.slots().get('a')?.phase).toBe('accepted');
  expect((await bridge.failed(job.jobId)).error.code).toBe('INPUT_MISSING');
  await expect.poll(() => residency.slots).toEqual([]);
});
