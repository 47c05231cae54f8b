/** Models and GPUs of one case; `jobs` says how many requests there are for each model. */
export type SwapCase = {
  gpus: number;
  gpuMiB: number;
  models: readonly { name: string; needMiB: number; gpuCount: number; jobs: number }[];
  /** Where models are at the start: indices of GPUs. */
  placed: ReadonlyMap<string, readonly number[]>;
};

type State = { at: ReadonlyMap<string, readonly number[]>; open: ReadonlySet<string> };

/**
 * The fewest loads with which all requests can be served, in whatever order, by whatever evictions: breadth first over all
 * states. A model that is there serves all of its requests at once, which can only help.
 */
export function fewestSwaps(given: SwapCase): number {
  // How many requests there are for a model makes no difference, only whether there are any.
  const sizes = given.models.map(({ needMiB, gpuCount, jobs }) => `${needMiB}/${gpuCount}${jobs > 0 ? '!' : ''}`);
  const key = `${given.gpus}x${given.gpuMiB} ${sizes.join(' ')} ${keyOf({ at: given.placed, open: new Set() })}`;
  const known = KNOWN.get(key) ?? search(given);
  KNOWN.set(key, known);
  return known;
}

const KNOWN = new Map<string, number>();

function search(given: SwapCase): number {
  const { models, placed } = given;
  const first = served({ at: placed, open: new Set(models.filter(({ jobs }) => jobs > 0).map(({ name }) => name)) });
  const seen = new Set<string>();
  let layer = [first];
  for (let swaps = 0; layer.length > 0; swaps += 1) {
    if (layer.some(({ open }) => open.size === 0)) return swaps;
    const next = new Map<string, State>();
    for (const state of layer) {
      for (const after of loads(given, state).map(served)) {
        const key = keyOf(after);
        if (!seen.has(key)) next.set(key, after);
        seen.add(key);
      }
    }
    layer = [...next.values()];
  }
  throw new Error('no order of loads serves all requests');
}

function served({ at, open }: State): State {
  return { at, open: new Set([...open].filter((name) => !at.has(name))) };
}

/** Every model that is away, on every choice of GPUs, with every set of others gone that makes room. */
function loads(given: SwapCase, { at, open }: State): State[] {
  const { gpus, models } = given;
  const uuids = Array.from({ length: gpus }, (_, gpu) => gpu);
  return [...open].flatMap((name) => {
    const count = models.find((model) => model.name === name)?.gpuCount ?? 1;
    return subsets(uuids)
      .filter((on) => on.length === count)
      .flatMap((on) =>
        subsets([...at.keys()])
          .map((gone) => new Map([...[...at].filter(([other]) => !gone.includes(other)), [name, on] as const]))
          .filter((placed) => fits(given, placed))
          .map((placed) => ({ at: placed, open })),
      );
  });
}

export function fits({ gpus, gpuMiB, models }: SwapCase, at: ReadonlyMap<string, readonly number[]>): boolean {
  const usedMiB = (gpu: number): number =>
    models.reduce(
      (sum, { name, needMiB, gpuCount }) => sum + (at.get(name)?.includes(gpu) ? needMiB / gpuCount : 0),
      0,
    );
  return Array.from({ length: gpus }, (_, gpu) => usedMiB(gpu)).every((mib) => mib <= gpuMiB);
}

export function subsets<T>(items: readonly T[]): T[][] {
  return items.reduce<T[][]>((sets, item) => sets.flatMap((set) => [set, [...set, item]]), [[]]);
}

function keyOf({ at, open }: State): string {
  const where = [...at].map(([name, on]) => `${name}@${on.join('+')}`).sort();
  return `${where.join(',')} ${[...open].sort().join(',')}`;
}
