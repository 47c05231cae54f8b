import type { ModelProfile } from '../../shared/model-profile.ts';

/** VRAM of one server as measured on this host, in MiB over all its GPUs. Null until measured. */
export type Footprint = {
  loadedMiB: number | null;
  offloadedMiB: number | null;
  /** The highest VRAM seen while a job of this size ran. */
  peaks: readonly { megapixels: number; peakMiB: number }[];
  /** Jobs of this size ran out of memory when they had so much: this size, and every larger one, needs more. */
  shortages?: readonly { megapixels: number; aboveMiB: number }[];
};

/** Nothing is known about the model and nobody configured anything. */
const UNKNOWN_LOADED_MIB = 16_384;
/** CUDA context and library workspaces that stay on the GPU when the weights have gone. */
const RESIDUE_MIB = 2_048;
/** Without a published peak: activations of one megapixel as a share of the weights. */
const PEAK_SHARE = 0.15;
/** Sizes are learned in classes of a quarter megapixel, small ones in finer ones; more than this many are never kept. */
const CLASS_MEGAPIXELS = 0.25;
const SMALL_CLASS_MEGAPIXELS = 0.0625;
const MAX_CLASSES = 16;

/** What a job that ran out of memory had, and this, is what the next one gets. */
const SHORTAGE_STEP_MIB = 256;

type Guess = { vramMiB: number | null; profile: ModelProfile };
type JobSize = {
  megapixels: number;
  /** All that a server of this model can have here. What has run here cannot need more. */
  mostMiB?: number | undefined;
};

export function loadedMiB(footprint: Footprint, { vramMiB, profile }: Guess): number {
  return footprint.loadedMiB ?? vramMiB ?? profile.weightsMiB ?? UNKNOWN_LOADED_MIB;
}

export function offloadedMiB(footprint: Footprint, guess: Guess): number {
  return footprint.offloadedMiB ?? Math.min(RESIDUE_MIB, loadedMiB(footprint, guess) / 4);
}

/**
 * Peak for a job of this size: more than was too little for it, and as measured for it, else between what the nearest
 * measured size grew by and what the profile lets one expect. Activations scale with the size but have a fixed part, so a
 * small picture's growth times the size would demand far more than a large one needs. No measurement makes it more than
 * there is: a job that ran on nearly all of a GPU may run again, and one that was short of memory there may try once more.
 */
export function peakMiB(footprint: Footprint, { megapixels, mostMiB = Infinity, ...guess }: Guess & JobSize): number {
  const short = (footprint.shortages ?? []).filter((shortage) => shortage.megapixels <= sizeClass(megapixels));
  const least = short.map(({ aboveMiB }) => Math.min(aboveMiB + SHORTAGE_STEP_MIB, mostMiB));
  const expected = expectedPeakMiB(footprint, { ...guess, megapixels });
  const hasRun = footprint.peaks.some((peak) => megapixels <= peak.megapixels);
  return Math.max(hasRun ? Math.min(expected, mostMiB) : expected, ...least);
}

function expectedPeakMiB(footprint: Footprint, { megapixels, ...guess }: Guess & { megapixels: number }): number {
  const loaded = loadedMiB(footprint, guess);
  const farFrom = (peak: { megapixels: number }): number => Math.abs(peak.megapixels - megapixels);
  const nearest = [...footprint.peaks].sort((a, b) => farFrom(a) - farFrom(b) || b.megapixels - a.megapixels)[0];
  const expectedMiB = expectedGrowthMiB(loaded, { ...guess, megapixels });
  if (nearest === undefined) return loaded + expectedMiB;
  const growthMiB = Math.max(0, nearest.peakMiB - loaded);
  if (megapixels <= nearest.megapixels) return loaded + growthMiB;
  const scaledMiB = (growthMiB * megapixels) / nearest.megapixels;
  return loaded + Math.min(scaledMiB, Math.max(growthMiB, expectedMiB));
}

/** Growth over the weights before anything is measured. */
function expectedGrowthMiB(loaded: number, { profile, megapixels }: Guess & { megapixels: number }): number {
  const { weightsMiB, peakMiB: published } = profile;
  // Smaller than published means quantised or split: what it needs on top shrinks with it.
  const growthMiB =
    published !== null && weightsMiB !== null
      ? (published - weightsMiB) * Math.min(1, loaded / weightsMiB)
      : loaded * PEAK_SHARE;
  // Below one megapixel a job needs the fixed part of its growth all the same.
  return Math.max(0, growthMiB) * Math.max(1, megapixels);
}

/**
 * The most that a server held during a job. What it held and what was free must be of one moment: where the last look at it
 * fell into another job, that is the moment of that look, else the start of this one. Undefined for more than its GPUs have
 * beside what others hold there: then somebody else's memory is in it.
 */
export function jobPeakMiB(
  before: {
    heldMiB: number;
    freeMiB: number;
    measure: { freeMiB: number; othersMiB: number | null } | undefined;
    isHeldInFlux: boolean;
  },
  job: { leastFreeMiB: number; readings: readonly { usedMiB: number | null; freeMiB: number | null }[] },
): number | undefined {
  const { heldMiB, measure } = before;
  const freeMiB = before.isHeldInFlux ? measure?.freeMiB : before.freeMiB;
  if (freeMiB === undefined) return undefined;
  const seenMiB = heldMiB + freeMiB - job.leastFreeMiB;
  const thereMiB = job.readings.reduce((sum, each) => sum + (each.usedMiB ?? Infinity) + (each.freeMiB ?? 0), 0);
  return seenMiB <= thereMiB - (measure?.othersMiB ?? 0) ? Math.max(0, seenMiB) : undefined;
}

/**
 * The footprint after a job. A lower peak than before is believed slowly, a higher one at once. The size is kept as it was:
 * rounded up to its class, its growth per megapixel would seem smaller than it is.
 */
export function learnPeak(footprint: Footprint, seen: { megapixels: number; peakMiB: number }): Footprint {
  const before = footprint.peaks.find((peak) => sizeClass(peak.megapixels) === sizeClass(seen.megapixels));
  const megapixels = Math.max(seen.megapixels, before?.megapixels ?? 0);
  const peak =
    before === undefined || seen.peakMiB >= before.peakMiB
      ? seen.peakMiB
      : before.peakMiB + 0.2 * (seen.peakMiB - before.peakMiB);
  const others = footprint.peaks.filter((other) => other !== before);
  return { ...footprint, peaks: [{ megapixels, peakMiB: Math.round(peak) }, ...others].slice(0, MAX_CLASSES) };
}

/** The shortages that are still believed when a job of this size had enough: those of larger ones. */
export function shortagesAbove<T extends { megapixels: number }>(shortages: readonly T[], megapixels: number): T[] {
  return shortages.filter((shortage) => shortage.megapixels > sizeClass(megapixels));
}

/** The largest size of its class. */
export function sizeClass(megapixels: number): number {
  const step = megapixels > CLASS_MEGAPIXELS ? CLASS_MEGAPIXELS : SMALL_CLASS_MEGAPIXELS;
  return Math.max(1, Math.ceil(megapixels / step)) * step;
}
