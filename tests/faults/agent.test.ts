import { execa } from 'execa';
import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { describe, expect } from 'vitest';
import type { JobEnd } from '../../agent/job/journal-lines.ts';
import { endOf, idOf, parseLine } from '../../agent/job/journal-lines.ts';
import type { ManifestLine } from '../../bridge/fleet/manifest-lines.ts';
import type { SimulatedHost } from '../../scripts/lib/simulated-host.ts';
import type { Job } from '../../shared/job.ts';
import { eventually, processTree, TestFleet, vllm } from '../helpers/fleet.ts';
import { modelOf, statusOf } from '../helpers/host-status.ts';
import { loaded, serverOf, startBatch, startFleet, untilDone, untilEnded, untilReady, untilRunning } from './batch.ts';
import type { FaultRow } from './fault.ts';
import { fault } from './fault.ts';
import { expectHistory, manifestOf } from './history.ts';
import { allGone } from './processes.ts';
import { agentConfig, bridgeConfig, FACTOR, scaledMs } from './scale.ts';

const RESTART_MS = 2_000;
const EXIT_DELAY_MS = 4_000;
const SLOW = 'Tongyi-MAI/Z-Image-Turbo';

describe('the agent dies', () => {
  fault('F13', 'SIGKILL idle, model loaded', async (row) => {
    await using fleet = await startFleet({ a: { setsid: true, orphan: true } });
    await untilReady(fleet);
    const host = fleet.host('a');
    const { leader } = await serverOf(host);
    const tree = await processTree(leader);
    row.injected();
    await host.stopAgent('SIGKILL');
    expect(await allGone(tree), 'left over by the crash').toBe(false);
    const fromLine = host.log.length;
    await host.startAgent();
    await row.sees('left-overs gone', RESTART_MS + 10_000, async () => await allGone(tree));
    const named = JSON.stringify(host.events('server-left-over', { fromLine }));
    for (const pid of tree) expect(named).toMatch(new RegExp(`\\b${pid}\\b`));
    row.holds('and named in the log');
    await row.sees('loaded anew, status right', RESTART_MS + 10_000, async () => {
      const { snapshot } = await statusOf(host);
      const pids = await host.computePids();
      const [model] = snapshot.models;
      const [gpu] = snapshot.gpus;
      if (model?.state !== 'ready' || gpu === undefined || pids.some((pid) => tree.includes(pid))) return undefined;
      return gpu.oursMiB === gpu.usedMiB && gpu.foreign.length === 0 && model.heldMiB === gpu.usedMiB;
    });
    expect(await host.computePids()).toHaveLength(1);
  });

  fault('F14', 'SIGKILL mid-generation, jobs accepted', async (row) => {
    await using fleet = await startFleet({ a: {}, b: {} });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    const id = await startBatch(bridge);
    await untilDone(bridge, id, 2);
    const host = fleet.host('a');
    await expectInterrupted(row, host);
    expect(await untilEnded(bridge, id)).toBe('success');
    await expectHistory(fleet, id);
    row.holds('every image once, on any host');
  });

  fault('F14', 'SIGKILL mid-generation, on the only host', async (row) => {
    await using fleet = await startFleet({ a: {} });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    const id = await startBatch(bridge, 8);
    await untilDone(bridge, id, 1);
    const interrupted = await expectInterrupted(row, fleet.host('a'));
    expect(await untilEnded(bridge, id)).toBe('success');
    await expectHistory(fleet, id);
    const failed = (await manifestOf(fleet, id)).flatMap((line) =>
      line.type === 'attempt-failed' && line.error.code === 'INTERRUPTED' ? [line.jobId] : [],
    );
    expect(failed.sort()).toEqual(interrupted.sort());
    row.holds('told to the bridge, and finished once there');
  });

  fault('F15', 'event loop frozen', async (row) => {
    // What the engine answered meanwhile is read when it wakes: no limit of a job must be shorter than the freeze.
    const { times, gpu } = agentConfig();
    const plan = { models: { klein: loaded() }, config: { gpu, times: { ...times, job_floor: '60s' } } };
    await using fleet = await TestFleet.start([
      { name: 'a', ...plan },
      { name: 'b', ...plan },
    ]);
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    const id = await startBatch(bridge);
    await untilDone(bridge, id, 2);
    const host = fleet.host('a');
    await untilRunning(host);
    const { pid } = host;
    row.injected();
    process.kill(pid, 'SIGSTOP');
    try {
      await row.sees('its jobs are taken elsewhere', 45_000, async () => {
        const sent = (await manifestOf(fleet, id)).flatMap((line) => (line.type === 'sent' ? [line] : []));
        return sent.some((line) => line.host === 'b' && sent.some((a) => a.host === 'a' && a.jobId === line.jobId));
      });
      expect(await untilEnded(bridge, id)).toBe('success');
    } finally {
      process.kill(pid, 'SIGCONT');
    }
    await eventually('a is done with what it had', async () => isLate(await manifestOf(fleet, id), host));
    await expectHistory(fleet, id);
    row.holds('what it had is dropped unseen, one file each');
  });

  fault('F16', 'second agent on the same state', async (row) => {
    await using fleet = await startFleet({ a: {} });
    const host = fleet.host('a');
    row.injected();
    const second = await row.sees('exits 75, naming the holder', 1_000 / FACTOR, () => startSecond(host));
    expect(second).toEqual({ exitCode: 75, stderr: expect.stringContaining(`pid ${host.pid}`) as string });
    expect(await modelOf(host, 'klein')).toBeDefined();
    row.holds('the first one goes on');
    process.kill(host.pid, 'SIGSTOP');
    try {
      expect((await startSecond(host)).exitCode).toBe(75);
    } finally {
      process.kill(host.pid, 'SIGCONT');
    }
    row.holds('also while the holder hangs');
  });

  fault('F18', 'SIGTERM under load', async (row) => {
    const delay = { 'exit-delay-ms': EXIT_DELAY_MS };
    const { times, gpu } = agentConfig();
    await using fleet = await TestFleet.start([
      {
        name: 'a',
        gpuMiB: [24_564, 24_564],
        models: {
          klein: loaded(delay),
          // An image takes longer than what a running job is given.
          slow: { ...vllm(SLOW, { ...delay, 'step-ms': scaledMs(9_000) }), preload: true },
        },
        config: { gpu, times: { ...times, stop_grace: '10s' } }, // nobody is forced
      },
    ]);
    await untilReady(fleet);
    await untilReady(fleet, 'slow');
    const host = fleet.host('a');
    const bridge = await fleet.bridge(bridgeConfig());
    const quick = await startBatch(bridge, 4);
    const slow = await startBatch(bridge, 1, { model: SLOW });
    await untilRunning(host, 'slow');
    await untilRunning(host);
    const tree = await processTree(host.pid);
    const fromLine = host.log.length;
    row.injected();
    const exit = { code: undefined as number | undefined };
    const stopping = host.stopAgent().then((code) => (exit.code = code));
    await row.sees('exit 0', 120_000, async () => exit.code === 0);
    await stopping;
    expect(await allGone(tree)).toBe(true);
    const has = (name: string) => host.events(name, { fromLine });
    const stoppingMs = has('stopping')[0]?.time ?? 0;
    expect(has('job-accepted').filter(({ time }) => time > stoppingMs)).toEqual([]);
    row.holds('no grants');
    expect(has('job-done').length, 'the short one').toBeGreaterThan(0);
    expect(has('job-failed').map(({ code }) => code)).toContain('INTERRUPTED');
    row.holds('running job done, or INTERRUPTED after its grace');
    // So long takes each to end after its SIGTERM; one after the other they would take twice as long.
    const [servers = 0] = has('job-failed').map(({ time }) => time);
    const [stopped = 0] = has('stopped').map(({ time }) => time);
    expect(stopped - servers - row.stoodStillMs()).toBeLessThan(2 * EXIT_DELAY_MS);
    row.holds('all servers stopped together');
    await host.startAgent();
    for (const id of [quick, slow]) expect(await untilEnded(bridge, id)).toBe('success');
    await expectHistory(fleet, quick, slow);
  });
});

/** Kills the agent with jobs in it and starts it again. They are in its journal as interrupted before it listens; their ids. */
async function expectInterrupted(row: FaultRow, host: SimulatedHost): Promise<string[]> {
  await untilRunning(host);
  const tree = (await processTree(host.pid)).filter((pid) => pid !== host.pid);
  row.injected();
  await host.stopAgent('SIGKILL');
  const had = journalOf(host).filter(({ end }) => end === undefined);
  expect(had.length, 'accepted and not ended').toBeGreaterThan(0);
  await host.startAgent();
  const now = journalOf(host);
  for (const { job } of had) {
    const same = now.find((attempt) => attempt.job.jobId === job.jobId && attempt.job.attempt === job.attempt);
    expect(same?.end).toMatchObject({ state: 'failed', error: { code: 'INTERRUPTED', retryable: true } });
  }
  row.holds('accepted jobs are INTERRUPTED before it listens');
  await row.sees('its engine tree gone', RESTART_MS + 10_000, async () => await allGone(tree));
  return had.map(({ job }) => job.jobId);
}

/** What the host had of jobs that were saved elsewhere has ended there too: nobody wants it any more. */
function isLate(lines: readonly ManifestLine[], host: SimulatedHost): boolean {
  const savedElsewhere = new Set(
    lines.flatMap((line) => (line.type === 'saved' && line.host !== host.name ? [line.jobId] : [])),
  );
  const late = lines.flatMap((line) => (line.type === 'sent' && line.host === host.name ? [line.jobId] : []));
  const ended = ['job-done', 'job-cancelled', 'job-failed'].flatMap((event) =>
    host.events(event).map(({ jobId }) => jobId),
  );
  return late.filter((jobId) => savedElsewhere.has(jobId)).some((jobId) => ended.includes(jobId));
}

async function startSecond({ directory }: SimulatedHost): Promise<{ exitCode: number | undefined; stderr: string }> {
  const args = [resolve('dist/gantry-agent.mjs'), 'run', '--config', join(directory, 'agent.yaml')];
  const { exitCode, stderr } = await execa('node', args, { reject: false, timeout: 20_000, killSignal: 'SIGKILL' });
  return { exitCode, stderr };
}

/** The journal as it lies on the disk: each attempt with its end. */
function journalOf({ directory }: SimulatedHost): { job: Job; end: JobEnd | undefined }[] {
  const lines = readFileSync(join(directory, 'state', 'journal', 'journal.jsonl'), 'utf8')
    .split('\n')
    .flatMap((text) => parseLine(text) ?? []);
  return lines.flatMap((line) => {
    if (line.event !== 'taken') return [];
    const end = lines.find((each) => idOf(each) === idOf(line) && each.event !== 'taken' && each.event !== 'acked');
    return [
      {
        job: line.job,
        end: end === undefined || end.event === 'taken' || end.event === 'acked' ? undefined : endOf(end),
      },
    ];
  });
}
