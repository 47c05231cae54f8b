import { join } from 'node:path';
import { lowerBoundMs } from './batches/bounds.ts';
import { countSwaps, dealtInTurn } from './batches/bounds.ts';
import { BareEngines } from './batches/engines.ts';
import { mixedModels, uniformJobs } from './batches/fixture.ts';
import type { BatchRun, FleetModel } from './batches/fleet.ts';
import { BenchFleet } from './batches/fleet.ts';
import { jobSpans, largestLead } from './batches/served.ts';
import type { BenchPart, BenchRow, BenchStage } from './row.ts';
import { absoluteRow, figure, ratioRow } from './row.ts';

const SHARED_GATE = 1.06;
/** From here on two bridges should have been served alike. */
const FAIR_AFTER_JOBS = 20;
const SWAP_GATE = 6;
const SWAP_JOBS = 40;

/** Only one of them fits on a GPU of the fixture at a time; to make room the other is ended. */
const TWO_MODELS: readonly FleetModel[] = [
  {
    ...{ alias: 'klein', model: 'black-forest-labs/FLUX.2-klein-4B', weightsMiB: 15_000 },
    ...{ loadMs: 500, isPreloaded: true, offload: 'none' },
  },
  {
    ...{ alias: 'z-image', model: 'Tongyi-MAI/Z-Image-Turbo', weightsMiB: 15_000 },
    ...{ loadMs: 500, isPreloaded: false, offload: 'none' },
  },
];

export const sharedHosts: BenchPart = {
  ids: ['B4'],
  title: 'two bridges with 40 jobs each share the four hosts',
  run: twoBridges,
};

export const twoModels: BenchPart = {
  ids: ['B5', 'B9'],
  title: 'two models on four GPUs that hold one at a time',
  run: swaps,
};

async function twoBridges({ directory, say, signal }: BenchStage): Promise<BenchRow[]> {
  const rates = await ratesOf(join(directory, 'bare'), signal);
  await using fleet = await BenchFleet.start(join(directory, 'fleet'));
  const bridges = [await fleet.bridge(signal), await fleet.bridge(signal)] as const;
  const runBoth = (count: number): Promise<BatchRun[]> =>
    Promise.all(bridges.map((bridge) => fleet.run(bridge, { jobs: uniformJobs(count), signal })));
  say('warm-up');
  await runBoth(uniformJobs().length / 2);
  say('80 jobs');
  const runs = await runBoth(uniformJobs().length);
  const works = runs.flatMap(() => uniformJobs().map(({ workMs }) => workMs));
  const fromMs = Math.min(...runs.map((run) => run.fromMs));
  const makespanMs = Math.max(...runs.map((run) => run.toMs)) - fromMs;
  const spans = await Promise.all(runs.map(async (run) => jobSpans(run.answers, run.fromMs)));
  const lead = largestLead(spans, { afterJobs: FAIR_AFTER_JOBS });
  return [
    ratioRow({
      ...{ id: 'B4', name: 'two bridges x 40 equal jobs: makespan', value: makespanMs / 1000, unit: 's' },
      ...{ reference: { name: 'lower bound of all 80', value: lowerBoundMs(works, rates) / 1000 }, most: SHARED_GATE },
    }),
    absoluteRow({
      ...{ id: 'B4 fairness', name: 'largest difference of run time served', value: lead * 100, unit: '%', most: null },
      reference: `what the better served bridge had, from job ${FAIR_AFTER_JOBS} until one has nothing waiting`,
    }),
  ];
}

async function swaps({ directory, say, signal }: BenchStage): Promise<BenchRow[]> {
  await using fleet = await BenchFleet.start(join(directory, 'fleet'), TWO_MODELS);
  const bridge = await fleet.bridge(signal);
  const [first, second] = TWO_MODELS.map(({ model }) => model);
  if (first === undefined || second === undefined) throw new Error('there are two models');
  say('warm-up');
  const warm = [
    await fleet.run(bridge, { jobs: ofModels(Array.from({ length: 8 }, () => second)), signal }),
    await fleet.run(bridge, { jobs: ofModels(Array.from({ length: 8 }, () => first)), signal }),
  ];
  const resident = lastModels((await Promise.all(warm.map((run) => fleet.images(run)))).flat(), first);
  say(`${SWAP_JOBS} jobs of two models`);
  const models = mixedModels(SWAP_JOBS, [first, second]);
  const run = await fleet.run(bridge, { jobs: ofModels(models), signal });
  const hosts = await fleet.images(run);
  const made = hosts.flatMap(({ host, images }) => images.map(({ model }) => ({ host, model })));
  const swapCount = countSwaps(made, resident);
  const names = hosts.map(({ host }) => host);
  const blind = countSwaps(dealtInTurn(models, names), resident);
  const used = hosts.filter(({ images }) => images.length > 0).length;
  // A turn is longer than this batch, so that it adds less than one swap.
  const promised = TWO_MODELS.length * used;
  return [
    absoluteRow({
      ...{ id: 'B5', name: '40 jobs of two models: model changes', value: swapCount, unit: 'swaps', most: SWAP_GATE },
      reference: `the same jobs dealt to the hosts in turn: ${blind} swaps`,
      note: `makespan ${figure(run.makespanMs / 1000)} s; a swap ends one server and starts another`,
    }),
    absoluteRow({
      ...{ id: 'B9 swaps', name: 'the same batch: model changes', value: swapCount, unit: 'swaps', most: promised },
      reference: `models x hosts used: ${promised}`,
    }),
  ];
}

async function ratesOf(directory: string, signal: AbortSignal): Promise<number[]> {
  await using engines = await BareEngines.start(directory, signal);
  return await engines.rates(signal);
}

function ofModels(models: readonly string[]) {
  const jobs = uniformJobs(models.length);
  return jobs.map((job, index) => ({ ...job, model: models[index] ?? '' }));
}

/** The model each host worked for last; `preloaded` where it has not worked. */
function lastModels(
  hosts: readonly { host: string; images: readonly { model: string; arrivedMs: number }[] }[],
  preloaded: string,
): Map<string, string> {
  const last = new Map<string, { model: string; atMs: number }>();
  for (const { host, images } of hosts) {
    const image = images.at(-1);
    const before = last.get(host) ?? { model: preloaded, atMs: 0 };
    last.set(
      host,
      image !== undefined && image.arrivedMs > before.atMs ? { model: image.model, atMs: image.arrivedMs } : before,
    );
  }
  return new Map([...last].map(([host, { model }]) => [host, model]));
}
