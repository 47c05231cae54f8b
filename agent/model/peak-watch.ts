import type { GpuSampler } from '../gpu/gpu-sampler.ts';

/** Watches the least free memory of these GPUs from now until disposed, at the rate of the samples. */
export type PeakWatch = Disposable & {
  /** The most that was taken since the start, in MiB; includes what others took. */
  usedMiB(): number;
  /** The least that was free in any reading since the start. */
  leastFreeMiB(): number;
  /** What is taken now compared with the start. */
  grownMiB(): number;
  /** False for what was over before anybody looked: then the figures say nothing. */
  isSeen(): boolean;
};

export function watchPeak(sampler: GpuSampler, gpus: readonly string[]): PeakWatch {
  const startMiB = freeOn(sampler, gpus);
  // Not what was read before: that may still show the peak of another job.
  let leastMiB = Infinity;
  const stop = sampler.onReadings(() => {
    if (isReadable(sampler, gpus)) leastMiB = Math.min(leastMiB, freeOn(sampler, gpus));
  });
  return {
    usedMiB: () => Math.max(0, startMiB - leastMiB),
    leastFreeMiB: () => leastMiB,
    isSeen: () => leastMiB < Infinity,
    grownMiB: () => startMiB - freeOn(sampler, gpus),
    [Symbol.dispose]: stop,
  };
}

/** Free memory of these GPUs by the last readings. */
export function freeOn(sampler: GpuSampler, gpus: readonly string[]): number {
  return sampler
    .readings()
    .filter(({ uuid }) => gpus.includes(uuid))
    .reduce((sum, { freeMiB }) => sum + (freeMiB ?? 0), 0);
}

/** A GPU that shows nothing is no GPU on which everything is taken. */
function isReadable(sampler: GpuSampler, gpus: readonly string[]): boolean {
  const here = sampler.readings().filter(({ uuid, freeMiB }) => gpus.includes(uuid) && freeMiB !== null);
  return here.length === gpus.length;
}
