import type { GpuSampler } from '../gpu/gpu-sampler.ts';

/** Watches the least free memory of these GPUs from now until disposed, at the rate of the samples. */
export type PeakWatch = Disposable & {
  /** The most that was taken since the start, in MiB; includes what others took. */
  usedMiB(): number;
  /** What is taken now compared with the start. */
  grownMiB(): number;
  /** False for what was over before anybody looked: then the figures say nothing. */
  isSeen(): boolean;
};

export function watchPeak(sampler: GpuSampler, gpus: readonly string[]): PeakWatch {
  const startMiB = freeOn(sampler, gpus);
  let leastMiB = startMiB;
  let looks = 0;
  const stop = sampler.onReadings(() => {
    leastMiB = Math.min(leastMiB, freeOn(sampler, gpus));
    looks += 1;
  });
  return {
    usedMiB: () => Math.max(0, startMiB - leastMiB),
    isSeen: () => looks > 0,
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
