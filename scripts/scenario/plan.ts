import type { ScenarioModel } from './models.ts';

/** One call of an assistant: a picture at once, an edit at once, or several pictures in a batch. */
export type Ask = {
  afterMs: number;
  kind: 'generate' | 'edit' | 'batch';
  model: ScenarioModel;
  /** Unique: each picture is found again by the prompt in its file. */
  prompts: readonly string[];
  side: number;
  seed: number;
};

export type PlanSize = { singles: number; batches: number; batchSize: number; peaks: number; calmMs: number };

/** The 60 jobs of the scenario: half of them single calls, half of them in batches. */
export const FULL: PlanSize = { singles: 30, batches: 6, batchSize: 5, peaks: 3, calmMs: 6_000 };

const EDIT_SHARE = 0.3;
const SIDES = [512, 768, 1024] as const;
/** Within a peak calls come this close together. */
const RUSH_MS = 150;

/** PURE. The calls in a random order that the seed fixes; they come in peaks, with calm between them. */
export function makePlan(seed: number, models: readonly ScenarioModel[], size: PlanSize): Ask[] {
  const random = randomOf(seed);
  const pick = <T>(items: readonly T[]): T => {
    const item = items[Math.floor(random() * items.length)];
    if (item === undefined) throw new Error('nothing to pick from');
    return item;
  };
  const able = (capability: 'generate' | 'edit') => models.filter((model) => model.capability === capability);
  const edits = Math.round(size.singles * EDIT_SHARE);
  const kinds: Ask['kind'][] = [
    ...Array<Ask['kind']>(edits).fill('edit'),
    ...Array<Ask['kind']>(size.singles - edits).fill('generate'),
    ...Array<Ask['kind']>(size.batches).fill('batch'),
  ];
  const order = shuffled(kinds, random);
  const perPeak = Math.ceil(order.length / size.peaks);
  let number = 0;
  let afterMs = 0;
  return order.map((kind, at) => {
    if (at > 0) afterMs += at % perPeak === 0 ? size.calmMs * (0.5 + random()) : RUSH_MS * 2 * random();
    const model = pick(able(kind === 'edit' ? 'edit' : 'generate'));
    const prompts = Array.from({ length: kind === 'batch' ? size.batchSize : 1 }, () => {
      number += 1;
      return `picture ${number} of the scenario`;
    });
    return {
      afterMs: Math.round(afterMs),
      kind,
      model,
      prompts,
      side: pick(SIDES),
      seed: Math.floor(random() * 2 ** 31),
    };
  });
}

/** mulberry32: small, and the same numbers everywhere for the same seed. */
function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function shuffled<T>(items: readonly T[], random: () => number): T[] {
  return items
    .map((item) => ({ item, at: random() }))
    .sort((a, b) => a.at - b.at)
    .map(({ item }) => item);
}
