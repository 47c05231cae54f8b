import { AppError } from '../../shared/errors.ts';
import type { JobRequest } from '../../shared/job.ts';
import { megapixelsOf } from '../../shared/job.ts';
import { estimateMs } from '../../shared/service-time.ts';
import type { GpuSampler } from '../gpu/gpu-sampler.ts';
import type { Admission } from './admission.ts';
import { loadedMiB } from './footprint.ts';
import type { GpuLocks } from './gpu-locks.ts';
import type { Learned } from './learned.ts';
import { watchPeak } from './peak-watch.ts';
import type { Slot } from './slot.ts';
import { isAttached } from './slot.ts';

type RunOptions = { signal: AbortSignal; onStep: (step: number, steps: number) => void };
type Made = { image: Buffer; runMs: number; notes: string[] };

/** A server in use until disposed. */
export type Lease = Disposable & {
  gpuNames: string[];
  /**
   * Sends one request with one image. Throws ENGINE_FAILED, GPU_OUT_OF_MEMORY, RESULT_INVALID, INVALID_ARGUMENT, TIMEOUT,
   * or MODEL_FAILED where the server died. Aborting the signal abandons the answer, not the work.
   */
  run(request: JobRequest, inputs: readonly Buffer[], o: RunOptions): Promise<Made>;
};

export type LeaseParts = {
  sampler: GpuSampler;
  learned: Learned;
  locks: GpuLocks;
  admission: Admission;
  slots: () => readonly Slot[];
  /** Looks at everybody's VRAM in the background. */
  look: () => void;
};

/** A job takes at most so many times its expected time, and never less than the floor: then its server hangs. */
const HANG_FACTOR = 10;
const HANG_FLOOR_MS = 600_000;
/** Less than this is the driver's own coming and going. */
const NOISE_MIB = 64;

export function leaseOf(slot: Slot, { use, ...parts }: LeaseParts & { use: Disposable }): Lease {
  const { server, model } = slot;
  const readings = parts.sampler.readings().filter(({ uuid }) => server.gpus.includes(uuid));
  return {
    gpuNames: isAttached(model) ? ['attached server'] : readings.map(({ name }) => name),
    run: async (request, inputs, o) => {
      try {
        return await run(slot, { request, inputs, parts, ...o });
      } catch (error) {
        if (!(error instanceof AppError) || error.code !== 'GPU_OUT_OF_MEMORY') throw error;
        if (server.state.kind !== 'ready' || !(await parts.admission.evictIdleBeside(slot, o.signal))) throw error;
      }
      const made = await run(slot, { request, inputs, parts, ...o });
      return { ...made, notes: [...made.notes, 'Ran out of GPU memory once; idle models made room for a second try.'] };
    },
    [Symbol.dispose]: () => use[Symbol.dispose](),
  };
}

type Run = RunOptions & { request: JobRequest; inputs: readonly Buffer[]; parts: LeaseParts };

async function run(slot: Slot, { request, inputs, parts, signal, onStep }: Run): Promise<Made> {
  const { server, model } = slot;
  const { sampler, learned, look } = parts;
  const heldMiB = server.heldMiB;
  using peak = watchPeak(sampler, server.gpus);
  const wasAlone = isAlone(slot, parts);
  const deadlineMs = Math.max(HANG_FLOOR_MS, HANG_FACTOR * estimateMs(learned.service(model), request));
  const startMs = performance.now();
  const made = await server.run(request, inputs, { signal, onStep, deadlineMs });
  const runMs = performance.now() - startMs;
  // The change of free memory is this job's only where nothing else moved on its GPUs.
  if (wasAlone && isAlone(slot, parts) && server.gpus.length > 0) {
    const peakMiB = Math.max(heldMiB + peak.usedMiB(), loadedMiB(learned.of(model.id), model));
    learned.peak(model.id, { megapixels: megapixelsOf(request), peakMiB });
    if (server.isHeldInFlux || Math.abs(peak.grownMiB()) > NOISE_MIB) look();
  }
  return { ...made, runMs };
}

function isAlone(slot: Slot, { locks, slots }: LeaseParts): boolean {
  const { gpus } = slot.server;
  if (gpus.some((uuid) => locks.isHeld(uuid))) return false;
  return !slots().some(
    ({ server }) => server !== slot.server && server.inFlight > 0 && server.gpus.some((uuid) => gpus.includes(uuid)),
  );
}
