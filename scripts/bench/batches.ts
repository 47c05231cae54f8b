import { join } from 'node:path';
import type { BenchPart, BenchStage } from './row.ts';
import { lowerBoundMs } from './batches/bounds.ts';
import { askAll } from './batches/client.ts';
import type { Shares } from './batches/cpu.ts';
import { withShares } from './batches/cpu.ts';
import { gapsMs } from './batches/engine-log.ts';
import { BareEngines } from './batches/engines.ts';
import type { BenchJob } from './batches/fixture.ts';
import { mixedJobs, uniformJobs } from './batches/fixture.ts';
import type { BatchRun } from './batches/fleet.ts';
import { BenchFleet } from './batches/fleet.ts';
import type { Kind, Measured, PeerRuns, SmallBatch } from './batches/makespans.ts';
import { JOBS, KINDS, makespanRows } from './batches/makespans.ts';
import type { PeerKind } from './batches/peers.ts';
import { Peer } from './batches/peers.ts';

const RUNS = 3;
const SIXTEEN = 16;
const SMALL = [3, 6, 10];
/** Three draws of sixteen mixed jobs. */
const SEEDS = [1, 2, 3];

export const batches: BenchPart = {
  ids: ['B1', 'B2', 'B3', 'B8', 'B9', 'SLOTGAPMS'],
  title: 'batches of one model over four hosts of speed 1, 1, 2 and 4, and the same jobs through load balancers',
  run: async (stage) => {
    const ofPeers = await measurePeers(stage);
    return makespanRows({ ...ofPeers, ...(await measureGantry(stage, ofPeers.rates)) });
  },
};

type OfPeers = Pick<Measured, 'haproxy' | 'nginx' | 'roundRobinMs'>;

/** The engines' own speed, then the peers, one after another. */
async function measurePeers({ directory, say, signal }: BenchStage): Promise<OfPeers & { rates: number[] }> {
  await using engines = await BareEngines.start(join(directory, 'bare'), signal);
  const { ports, model } = engines;
  const rates = await engines.rates(signal);
  const run = async (kind: Kind, targetOf: (index: number) => { port: number } | { socketPath: string }) =>
    (await askAll(JOBS[kind], { targetOf, model: model.model, signal })).makespanMs;

  const through = async (kind: PeerKind, runs: number): Promise<PeerRuns> => {
    await using peer = await Peer.start(kind, { directory, ports, signal });
    if (peer === undefined) return undefined;
    say(`${kind} ${peer.version}, ${runs} times`);
    const { socketPath, version } = peer;
    const makespansMs = { uniform40: [] as number[], mixed40: [] as number[] };
    for (let at = 0; at < runs; at += 1) {
      for (const jobs of KINDS) makespansMs[jobs].push(await run(jobs, () => ({ socketPath })));
    }
    return { version, makespansMs };
  };
  const haproxy = await through('haproxy', RUNS);
  const nginx = await through('nginx', 1); // half as fast or less: once says enough
  say('client-side round robin');
  const inTurn = (index: number) => ({ port: ports[index % ports.length] ?? 0 });
  const roundRobinMs = { uniform40: await run('uniform40', inTurn), mixed40: await run('mixed40', inTurn) };
  return { rates, haproxy, nginx, roundRobinMs };
}

type OfGantry = Omit<Measured, keyof OfPeers | 'rates'>;

async function measureGantry(stage: BenchStage, rates: readonly number[]): Promise<OfGantry> {
  const { say } = stage;
  say('gantry, hosts that have never run a job');
  const coldMixed = await onFleet(stage, 'cold', async ({ run }) => (await run(JOBS.mixed40)).makespanMs);
  return await onFleet(stage, 'warm', async ({ fleet, run }) => {
    const coldUniform = (await run(JOBS.uniform40)).makespanMs;
    say(`gantry, ${RUNS} times uniform40 and mixed40`);
    const uniform = await withShares(() => inTurn(RUNS, () => run(JOBS.uniform40)));
    await run(JOBS.mixed40); // equal jobs cannot tell the fixed part of a run from that of a step
    const mixed = await inTurn(RUNS, () => run(JOBS.mixed40));
    say('gantry, smaller batches');
    const equal = await inTurn(RUNS, () => run(uniformJobs(SIXTEEN)));
    const draws = SEEDS.map((seed) => mixedJobs(SIXTEEN, seed));
    const drawn = await inTurn(SEEDS.length, (at) => run(draws[at] ?? []));
    const small: SmallBatch[] = [];
    for (const count of SMALL) small.push(await smallBatch(fleet, { count, run }));
    return {
      cold: { uniform40: coldUniform, mixed40: coldMixed },
      warm: { uniform40: makespansOf(uniform.result), mixed40: makespansOf(mixed) },
      published: uniform.result.map(publishedRatio),
      sixteen: {
        uniform: equal.map(({ makespanMs }) => makespanMs / boundOf(uniformJobs(SIXTEEN), rates)),
        mixed: drawn.map(({ makespanMs }, at) => makespanMs / boundOf(draws[at] ?? [], rates)),
        published: equal.map(publishedRatio),
      },
      small,
      gapsMs: { uniform40: await gapsOf(fleet, uniform.result), mixed40: await gapsOf(fleet, mixed) },
      note: sharesNote(uniform.shares),
    };
  });
}

/** Four new hosts and a laptop, for as long as the work takes. */
async function onFleet<T>(
  { directory, signal }: BenchStage,
  name: string,
  work: (o: { fleet: BenchFleet; run: (jobs: readonly BenchJob[]) => Promise<BatchRun> }) => Promise<T>,
): Promise<T> {
  await using fleet = await BenchFleet.start(join(directory, name));
  const bridge = await fleet.bridge(signal);
  return await work({ fleet, run: (jobs) => fleet.run(bridge, { jobs, signal }) });
}

async function smallBatch(
  fleet: BenchFleet,
  { count, run }: { count: number; run: (jobs: readonly BenchJob[]) => Promise<BatchRun> },
): Promise<SmallBatch> {
  const batch = await run(uniformJobs(count));
  const ends = (await fleet.images(batch)).map(({ images }) => images.at(-1)?.answeredMs ?? 0);
  return { count, makespanMs: batch.makespanMs, lastHost: ends.indexOf(Math.max(...ends)) };
}

async function gapsOf(fleet: BenchFleet, runs: readonly BatchRun[]): Promise<number[]> {
  const perRun = await Promise.all(runs.map((run) => fleet.images(run)));
  return perRun.flat().flatMap(({ images }) => gapsMs(images));
}

async function inTurn<T>(count: number, work: (index: number) => Promise<T>): Promise<T[]> {
  const results: T[] = [];
  for (let index = 0; index < count; index += 1) results.push(await work(index));
  return results;
}

function makespansOf(runs: readonly BatchRun[]): number[] {
  return runs.map(({ makespanMs }) => makespanMs);
}

function publishedRatio({ answers }: BatchRun): number {
  const { quality } = (answers[0] ?? {}) as { quality?: { ratio?: number } }; // the tool's output schema
  if (quality?.ratio === undefined) throw new Error('a batch that is over has a quality');
  return quality.ratio;
}

function boundOf(jobs: readonly BenchJob[], rates: readonly number[]): number {
  return lowerBoundMs(
    jobs.map(({ workMs }) => workMs),
    rates,
  );
}

function sharesNote({ ours, others }: Shares): string {
  const percent = (share: number): string => `${Math.round(share * 100)} %`;
  return `all simulated hosts and the bridge took ${percent(ours)} of the cores, others ${percent(others)}`;
}
