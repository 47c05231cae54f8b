import type { VramCapacity } from '../../shared/host-snapshot.ts';

/** The size up to which everything fits is found in such steps: a job just above it may be refused although it just fits. */
const STEP_MEGAPIXELS = 1 / 64;
/** Larger ones are refused, whatever a model allows. */
const MOST_MEGAPIXELS = 64;
const SHOWN_MEGAPIXELS = [0.25, 1, 2, 4];

/** PURE. Up to which size a job can ever fit into `mostMiB`, with what some sizes need. A larger one never needs less. */
export function vramCapacity(o: {
  mostMiB: number;
  /** The largest that the model draws. */
  largestMegapixels: number;
  needMiB: (megapixels: number) => number;
}): VramCapacity {
  const { mostMiB, needMiB } = o;
  const fits = (steps: number): boolean => needMiB(steps * STEP_MEGAPIXELS) <= mostMiB;
  const peaks = SHOWN_MEGAPIXELS.map((megapixels) => ({ megapixels, peakMiB: Math.round(needMiB(megapixels)) }));
  let low = 0;
  let high = Math.ceil(Math.min(o.largestMegapixels, MOST_MEGAPIXELS) / STEP_MEGAPIXELS) + 1;
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (fits(middle)) low = middle;
    else high = middle;
  }
  return { mostMiB: Math.floor(mostMiB), fitsMegapixels: low * STEP_MEGAPIXELS, peaks };
}
