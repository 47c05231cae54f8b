import { describe, expect, vi } from 'vitest';
import { SEVERAL_AT_ONCE } from '../helpers/at-once.ts';
import { processTree } from '../helpers/fleet.ts';
import { modelOf, statusOf } from '../helpers/host-status.ts';
import { allGone } from './processes.ts';
import {
  loaded,
  MODEL,
  serverOf,
  startBatch,
  startFleet,
  untilDone,
  untilEnded,
  untilReady,
  untilRunning,
  SMALL,
} from './batch.ts';
import { fault } from './fault.ts';
import { expectHistory, manifestOf } from './history.ts';
import { bridgeConfig, scaledMs } from './scale.ts';

// They mostly wait, and no bound of theirs is tight.
vi.setConfig(SEVERAL_AT_ONCE);

describe('a model server dies or hangs', () => {
  fault('F01', 'leader SIGKILLed, idle', async (row) => {
    await using fleet = await startFleet({ a: { klein: loaded({ setsid: true, orphan: true }, { pin: true }) } });
    await untilReady(fleet);
    const host = fleet.host('a');
    const { leader } = await serverOf(host);
    const tree = await processTree(leader);
    expect(tree.length).toBeGreaterThan(1);
    row.injected();
    process.kill(leader, 'SIGKILL');
    await row.sees('seen: releasing', 1_000, async () => host.events('model-releasing')[0]);
    const failed = await row.sees('failed, a retry due', 15_000, async () => host.events('model-failed')[0]);
    expect(failed['retry']).toMatchObject({ atMs: expect.any(Number) as number });
    // `failed` promises it: nothing of the tree lives, and its memory is back.
    expect(await allGone(tree)).toBe(true);
    expect((await host.computePids()).filter((pid) => tree.includes(pid))).toEqual([]);
    // After its pause, and as soon as a program starts.
    await row.sees('ready again, for it is pinned', 15_000 + 30_000, async () => host.events('model-ready')[1]);
    expect((await modelOf(host, 'klein')).state).toBe('ready');
  });

  fault('F02', 'leader SIGKILLed mid-job', async (row) => {
    await using fleet = await startFleet({ a: {}, b: {} });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    const id = await startBatch(bridge);
    await untilDone(bridge, id, 2);
    const leaders = await Promise.all(fleet.hosts.map(async (host) => (await serverOf(host)).leader));
    row.injected();
    for (const leader of leaders) process.kill(leader, 'SIGKILL');
    await row.sees('attempt failed, job waits again', 5_000, async () => {
      return (await manifestOf(fleet, id)).find((line) => line.type === 'attempt-failed' && line.error.retryable);
    });
    expect(await untilEnded(bridge, id)).toBe('success');
    await expectHistory(fleet, id);
    row.holds('every image once, the next attempts on any host');
  });

  fault('F02', 'leader SIGKILLed mid-job, on the only host', async (row) => {
    await using fleet = await startFleet({ a: {} });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    const id = await startBatch(bridge, 4);
    await untilDone(bridge, id, 1);
    const { leader } = await serverOf(fleet.host('a'));
    process.kill(leader, 'SIGKILL');
    expect(await untilEnded(bridge, id)).toBe('success');
    await expectHistory(fleet, id);
    row.holds('it goes on there after the restart');
  });

  fault('F03', 'worker killed mid-job', async (row) => {
    await using fleet = await startFleet({ a: {}, b: {} });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    const id = await startBatch(bridge);
    await untilDone(bridge, id, 2);
    const servers = await Promise.all(fleet.hosts.map(serverOf));
    row.injected();
    for (const { worker } of servers) process.kill(worker, 'SIGKILL');
    await row.sees('treated as a crash', 10_000, async () =>
      fleet.hosts.every((host) => host.events('model-failed')[0]),
    );
    expect(await untilEnded(bridge, id)).toBe('success');
    await expectHistory(fleet, id);
    row.holds('every image once');
  });

  fault('F03', 'worker killed, /health stays 200', async (row) => {
    await using fleet = await startFleet({ a: { 'worker-death-unnoticed': true } });
    await untilReady(fleet);
    const host = fleet.host('a');
    const { leader, worker } = await serverOf(host);
    const tree = await processTree(leader);
    row.injected();
    process.kill(worker, 'SIGKILL');
    await row.sees('found while idle, treated as a crash', 10_000, async () => host.events('model-failed')[0]);
    expect(await allGone(tree)).toBe(true);
    const bridge = await fleet.bridge(bridgeConfig());
    const id = await startBatch(bridge, 2);
    expect(await untilEnded(bridge, id)).toBe('success');
    await expectHistory(fleet, id);
    row.holds('the next jobs get a new server');
  });

  fault('F09', 'hangs mid-generation', async (row) => {
    await using fleet = await startFleet({ a: {}, b: {} });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    // How long a job may take is known once a few were seen; before that an agent is patient.
    const first = await startBatch(bridge, 6, { host: 'a' });
    expect(await untilEnded(bridge, first)).toBe('success');
    const id = await startBatch(bridge, 20);
    const host = fleet.host('a');
    const { leader } = await serverOf(host);
    const tree = await processTree(leader);
    await untilDone(bridge, id, 2);
    await untilRunning(host);
    row.injected();
    for (const pid of tree) process.kill(pid, 'SIGSTOP');
    await row.sees('progress deadline: its attempt fails', 60_000, async () => {
      return (await manifestOf(fleet, id)).find((line) => line.type === 'attempt-failed' && line.host === 'a');
    });
    await row.sees('killed, although stopped', 60_000 + 30_000 + 5_000, async () => await allGone(tree));
    expect(await untilEnded(bridge, id)).toBe('success');
    await expectHistory(fleet, first, id);
    row.holds('its job was done elsewhere, once');
  });
});

describe('a model server starts or ends badly', () => {
  fault('F04', 'ignores SIGTERM', async (row) => {
    await using fleet = await startFleet({ a: { 'ignore-sigterm': true } });
    await untilReady(fleet);
    const host = fleet.host('a');
    const { leader } = await serverOf(host);
    const tree = await processTree(leader);
    const bridge = await fleet.bridge(bridgeConfig());
    row.injected();
    const released = bridge.ask('release_gpu', { model: MODEL, wait_seconds: 45 });
    await row.sees('none alive', 30_000 + 5_000, async () => await allGone(tree));
    await row.sees('release returns', 30_000 + 5_000 + 15_000, async () => await released);
    expect(await host.computePids()).toEqual([]);
    expect(host.events('server-forced').length, 'logged as forced').toBeGreaterThan(0);
    row.holds('logged as forced');
  });

  fault('F05', 'grandchildren setsid + renamed', async (row) => {
    await using fleet = await startFleet({ a: { setsid: true, retitle: true, orphan: true } });
    await untilReady(fleet);
    const host = fleet.host('a');
    const { leader } = await serverOf(host);
    const tree = await processTree(leader);
    expect(tree.length).toBeGreaterThan(1);
    const bridge = await fleet.bridge(bridgeConfig());
    row.injected();
    await bridge.ask('release_gpu', { model: MODEL, wait_seconds: 45 });
    await row.sees('none alive after stop', 30_000 + 5_000, async () => await allGone(tree));
    expect(await host.computePids()).toEqual([]);
  });

  fault('F10', 'VRAM not given back after exit', async (row) => {
    await using fleet = await startFleet({ a: { 'vram-linger-ms': scaledMs(60_000) } });
    await untilReady(fleet);
    const host = fleet.host('a');
    const bridge = await fleet.bridge(bridgeConfig());
    const fromLine = host.log.length;
    row.injected();
    const released = bridge.ask('release_gpu', { model: MODEL, wait_seconds: 45 });
    await row.sees('GPU degraded, and whose memory is missing', 15_000, async () => {
      const [gpu] = (await statusOf(host)).snapshot.gpus;
      return gpu?.isDegraded === true && /pid|MiB/.test(gpu.degraded ?? '');
    });
    await released;
    // A person's call: after a person's release a batch would leave the model away for a while.
    const asked = bridge.ask('generate_image', { ...SMALL, prompt: 'a fox', wait_seconds: 45 });
    const { time: healedMs } = await row.sees('heals by itself', 60_000, async () => host.events('gpu-recovered')[0]);
    const since = ['model-loading', 'job-accepted'].flatMap((event) => host.events(event, { fromLine }));
    expect(since.filter(({ time }) => time < healedMs)).toEqual([]);
    row.holds('no load and no grant before that');
    expect((await asked)['status']).toBe('success');
    row.holds('the job that waited for it is done');
  });
});
