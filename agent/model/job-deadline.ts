/** From so many jobs on, what they took says more than a guess. */
const ENOUGH = 5;
/** A job may take so many times what all but one in twenty like it took. */
const FACTOR = 3;
/** Before that, and for the first job after a load, which may compile kernels: generous. */
const FIRST_FACTOR = 10;

/**
 * PURE. How long a job may go without a new step before its server counts as hung. `ratios` are what earlier jobs of the
 * model took, as multiples of their estimates, so that jobs of all sizes and steps speak for each other.
 */
export function jobDeadlineMs(o: {
  ratios: readonly number[];
  estimateMs: number;
  floorMs: number;
  /** Never longer than this. */
  limitMs: number;
  isFirst: boolean;
}): number {
  return Math.min(o.limitMs, fromExperienceMs(o));
}

function fromExperienceMs(o: {
  ratios: readonly number[];
  estimateMs: number;
  floorMs: number;
  isFirst: boolean;
}): number {
  const { ratios, estimateMs, floorMs, isFirst } = o;
  if (isFirst || ratios.length < ENOUGH) return FIRST_FACTOR * Math.max(floorMs, estimateMs);
  return Math.max(floorMs, FACTOR * percentile95(ratios) * estimateMs);
}

function percentile95(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.ceil(0.95 * sorted.length) - 1] ?? 1;
}
