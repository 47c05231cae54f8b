import type { GpuReading } from './gpu-sampler.ts';
import type { ComputeApp } from './smi-rows.ts';

/** One look with nvidia-smi: what is free, and who holds what. */
export type VramLook = {
  readings: readonly GpuReading[];
  apps: readonly ComputeApp[];
  /** False where the driver numbers processes otherwise than this machine: then nobody's row can be told. */
  isNumberedHere: boolean;
};

/** VRAM of a set of GPUs at one moment, as nvidia-smi shows it. */
export type VramMeasure = {
  freeMiB: number;
  /** Of the processes asked about, by their rows. */
  mineMiB: number;
  /** Of all others; null where it cannot be told who is whose. */
  othersMiB: number | null;
  /** One of the processes asked about has a row, with memory or without. */
  isPresent: boolean;
  /** False where the driver shows no row with memory for them: another pid namespace, WSL, or they hold none. */
  isListed: boolean;
  /** In use, and by no process that the driver lists; null where the size of a GPU is not known. */
  unexplainedMiB: number | null;
};

/** Undefined where a GPU shows no free memory: then nothing can be said. */
export function measureVram(
  { readings, apps, isNumberedHere }: VramLook,
  { gpus, pids }: { gpus: readonly string[]; pids: readonly number[] },
): VramMeasure | undefined {
  let freeMiB = 0;
  let totalMiB: number | null = 0;
  for (const uuid of gpus) {
    const reading = readings.find((candidate) => candidate.uuid === uuid);
    if (reading === undefined || reading.freeMiB === null) return undefined;
    freeMiB += reading.freeMiB;
    totalMiB = totalMiB === null || reading.totalMiB === null ? null : totalMiB + reading.totalMiB;
  }
  if (gpus.length === 0) return undefined;
  const here = isNumberedHere ? apps.filter(({ gpuUuid }) => gpus.includes(gpuUuid)) : [];
  const mine = here.filter(({ pid }) => pids.includes(pid));
  return {
    freeMiB,
    mineMiB: sum(mine),
    othersMiB: isNumberedHere ? sum(here.filter(({ pid }) => !pids.includes(pid))) : null,
    isPresent: mine.length > 0,
    isListed: mine.some(({ usedMiB }) => usedMiB !== null),
    unexplainedMiB: totalMiB === null || !isNumberedHere ? null : Math.max(0, totalMiB - freeMiB - sum(here)),
  };
}

/**
 * What came free between two moments by the processes asked about: the rise of free memory, less what others gave back,
 * plus what they took meanwhile. Negative where they took more.
 */
export function freedMiB(before: VramMeasure, after: VramMeasure): number {
  const rise = after.freeMiB - before.freeMiB;
  if (before.othersMiB === null || after.othersMiB === null) return rise;
  return rise + after.othersMiB - before.othersMiB;
}

function sum(apps: readonly ComputeApp[]): number {
  return apps.reduce((total, { usedMiB }) => total + (usedMiB ?? 0), 0);
}
