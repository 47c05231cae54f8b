import { expect, test, vi } from 'vitest';
import type { SwapCase } from './fewest-swaps.ts';
import { fewestSwaps, fits, subsets } from './fewest-swaps.ts';
import type { VirtualLine } from './virtual-host.ts';
import { VirtualHost } from './virtual-host.ts';

// Some seconds of computing, on whatever machine.
vi.setConfig({ testTimeout: 120_000 });

/**
 * The real choice and the real planner against the exhaustive optimum, in virtual time: every multiset of at most 8
 * requests for at most 4 models of the sizes below, all offered at once, on one GPU and on two. Jobs take 1 s and a turn
 * lasts 30 s at least, so that the queue of a case fits in one turn: where it does not, the end of a turn costs a swap,
 * which is the price of fairness.
 */
const MAX_JOBS = 8;
const MAX_MODELS = 4;
const RUN_MS = 1_000;
const GPU_MIB = 24_000;
/** Three go together, two go together, each of them needs a GPU nearly alone, and one spans two GPUs. */
const KINDS = {
  small: { needMiB: 8_000, gpuCount: 1 },
  half: { needMiB: 12_000, gpuCount: 1 },
  large: { needMiB: 20_000, gpuCount: 1 },
  double: { needMiB: 32_000, gpuCount: 2 },
};
type Kind = keyof typeof KINDS;
/** How long a swap takes: much less than a turn, a good part of it, or in proportion to the size. */
const SWAPS = { short: () => 5_000, long: () => 40_000, bySize: (needMiB: number) => needMiB };

/** One model and the requests for it. */
type Wanted = { kind: Kind; batch: number; interactive: number };
const NOTHING: readonly SwapCase['placed'][] = [new Map()];

type Row = {
  gpus: number;
  kinds: readonly Kind[];
  models: number;
  interactive: number;
  swapMs: (needMiB: number) => number;
  residueMiB?: number;
  /** Also from every set of models that is there at the start. */
  isPlaced?: true;
};

const ONE: Row = {
  gpus: 1,
  kinds: ['small', 'half', 'large'],
  models: MAX_MODELS,
  interactive: 0,
  swapMs: SWAPS.short,
};
const TWO: Row = { ...ONE, gpus: 2, kinds: ['small', 'half', 'large', 'double'] };
const ROWS: [what: string, row: Row][] = [
  ['batch work on one GPU', ONE],
  ['batch work on one GPU, with offload', { ...ONE, swapMs: SWAPS.bySize, residueMiB: 1_000 }],
  ['batch work on one GPU that is in use', { ...ONE, swapMs: SWAPS.long, models: 3, isPlaced: true }],
  ['batch work on two GPUs', TWO],
  ['batch work on two GPUs, with offload', { ...TWO, swapMs: SWAPS.bySize, residueMiB: 1_000 }],
  ['batch work on two GPUs that are in use', { ...TWO, kinds: ['half', 'large', 'double'], models: 3, isPlaced: true }],
  ['people and batch work on one GPU', { ...ONE, kinds: ['half', 'large'], interactive: 2 }],
  [
    'people and batch work on one GPU, slow swaps',
    { ...ONE, kinds: ['half', 'large'], interactive: 1, swapMs: SWAPS.long },
  ],
  ['people and batch work on two GPUs', { ...TWO, kinds: ['half', 'double'], interactive: 1, swapMs: SWAPS.bySize }],
];

test.each(ROWS)('%s: at most one swap more than the optimum', (_, row) => {
  let cases = 0;
  for (const wanted of multisets(choices(row), { models: row.models })) {
    const host = hostOf(row, wanted);
    for (const placed of row.isPlaced ? placements(host) : NOTHING) {
      const swaps = play({ ...host, placed }, { wanted, ...row });
      const fewest = fewestSwaps({ ...host, placed });
      cases += 1;
      if (swaps >= fewest && swaps <= fewest + 1) continue;
      expect.fail(`${swaps} swaps, ${fewest} would do: ${JSON.stringify({ wanted, placed: [...placed] })}`);
    }
  }
  expect(cases).toBeGreaterThan(800);
});

/** Multisets of these, with at most `MAX_JOBS` requests together. */
function* multisets(
  from: readonly Wanted[],
  { models, jobs = MAX_JOBS }: { models: number; jobs?: number },
): Generator<Wanted[]> {
  yield [];
  if (models === 0) return;
  for (const [at, first] of from.entries()) {
    const left = jobs - first.batch - first.interactive;
    if (left < 0) continue;
    for (const rest of multisets(from.slice(at), { models: models - 1, jobs: left })) yield [first, ...rest];
  }
}

/** Everything that may be wanted of one model. */
function choices({ kinds, interactive: people }: Row): Wanted[] {
  const upTo = (most: number): number[] => Array.from({ length: most + 1 }, (_, count) => count);
  return kinds.flatMap((kind) =>
    upTo(MAX_JOBS).flatMap((batch) =>
      upTo(people).flatMap((interactive) => (batch + interactive > 0 ? [{ kind, batch, interactive }] : [])),
    ),
  );
}

function hostOf({ gpus }: Row, wanted: readonly Wanted[]): Omit<SwapCase, 'placed'> {
  const models = wanted.map(({ kind, batch, interactive }, at) => {
    return { name: `m${at}`, ...KINDS[kind], jobs: batch + interactive };
  });
  return { gpus, gpuMiB: GPU_MIB, models };
}

/** Of each set of models the first way in which they fit together. */
function placements(given: Omit<SwapCase, 'placed'>): SwapCase['placed'][] {
  const gpus = Array.from({ length: given.gpus }, (_, gpu) => gpu);
  return subsets(given.models).flatMap((models) => {
    const ways = models.reduce<Map<string, number[]>[]>(
      (before, { name, gpuCount }) => {
        const sets = subsets(gpus).filter((on) => on.length === gpuCount);
        return before.flatMap((way) => sets.map((on) => new Map([...way, [name, on]])));
      },
      [new Map<string, number[]>()],
    );
    return ways.find((way) => fits({ ...given, placed: way }, way)) ?? [];
  });
}

/** How many swaps the product needs. */
function play(
  given: SwapCase,
  { wanted, swapMs, residueMiB }: Pick<Row, 'swapMs' | 'residueMiB'> & { wanted: readonly Wanted[] },
): number {
  const host = new VirtualHost({
    gpus: given.gpus,
    gpuMiB: GPU_MIB,
    models: given.models.map(({ name, needMiB, gpuCount }) => ({
      ...{ model: name, needMiB, gpuCount, swapMs: swapMs(needMiB) },
      ...(residueMiB !== undefined && { offloadedMiB: residueMiB }),
    })),
  });
  for (const [name, on] of given.placed)
    host.place(
      name,
      on.map((gpu) => `gpu-${gpu}`),
    );
  host.lines = wanted.flatMap(({ batch, interactive }, at) => {
    const line = { sessionId: 's', tokenId: 't', model: `m${at}`, runMs: RUN_MS };
    const lines: VirtualLine[] = [
      { ...line, class: 'batch', jobs: batch },
      { ...line, class: 'interactive', jobs: interactive },
    ];
    return lines.filter(({ jobs }) => jobs > 0);
  });
  host.run();
  expect(host.served).toHaveLength(wanted.reduce((sum, each) => sum + each.batch + each.interactive, 0));
  return host.swaps;
}
