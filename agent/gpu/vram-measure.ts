import type { GpuReading } from './gpu-sampler.ts';
import type { ComputeApp } from './nvidia-smi.ts';

/** One look with nvidia-smi: what is free, and who holds what. */
export type VramLook = { readings: readonly GpuReading[]; apps: readonly ComputeApp[] };

/** VRAM of a set of GPUs at one moment, as nvidia-smi shows it. */
export type VramMeasure = {
  freeMiB: number;
  /** Of the processes asked about, and of all others, by their rows. */
  mineMiB: number;
  othersMiB: number;
  /** False where the driver shows no row with memory for them: another pid namespace, WSL, or they hold none. */
  isListed: boolean;
  /** In use, and by no process that the driver lists; null where the size of a GPU is not known. */
  unexplainedMiB: number | null;
};

/** Undefined where a GPU shows no free memory: then nothing can be said. */
export function measureVram(
  { readings, apps }: VramLook,
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
  const here = apps.filter(({ gpuUuid }) => gpus.includes(gpuUuid));
  const mine = here.filter(({ pid }) => pids.includes(pid));
  return {
    freeMiB,
    mineMiB: sum(mine),
    othersMiB: sum(here.filter(({ pid }) => !pids.includes(pid))),
    isListed: mine.some(({ usedMiB }) => usedMiB !== null),
    unexplainedMiB: totalMiB === null ? null : Math.max(0, totalMiB - freeMiB - sum(here)),
  };
}

/**
 * What came free between two moments by the processes asked about: the rise of free memory, less what others gave back,
 * plus what they took meanwhile.
 */
export function freedMiB(before: VramMeasure, after: VramMeasure): number {
  return after.freeMiB - before.freeMiB + (after.othersMiB - before.othersMiB);
}

function sum(apps: readonly ComputeApp[]): number {
  return apps.reduce((total, { usedMiB }) => total + (usedMiB ?? 0), 0);
}
