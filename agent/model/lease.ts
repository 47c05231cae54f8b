import { AppError } from '../../shared/errors.ts';
import type { JobRequest } from '../../shared/job.ts';
import { megapixelsOf } from '../../shared/job.ts';
import type { GpuSampler } from '../gpu/gpu-sampler.ts';
import { OutOfStep } from '../engine/engine.ts';
import type { ImageSink } from '../engine/image-answer.ts';
import type { Evictor } from './evictor.ts';
import { jobPeakMiB, loadedMiB, peakMiB } from './footprint.ts';
import type { GpuLocks } from './gpu-locks.ts';
import type { Learned } from './learned.ts';
import { freeOn, watchPeak } from './peak-watch.ts';
import type { Slot } from './slot.ts';
import { isAttached } from './slot.ts';

/** Where the picture goes while it arrives; `begin` is told for how long the request had run by then. */
export type PictureSink = Omit<ImageSink, 'begin'> & { begin: (runMs: number) => void };
type RunOptions = { signal: AbortSignal; onStep: (step: number, steps: number) => void; sink: PictureSink };
/** `isSecondTry`: the time says nothing about such a job. */
type Made = { runMs: number; notes: string[]; isSecondTry?: true };

/** A server in use until disposed. */
export type Lease = Disposable & {
  gpuNames: string[];
  /**
   * Sends one request with one image, which goes into the sink. Throws ENGINE_FAILED, GPU_OUT_OF_MEMORY, RESULT_INVALID, INVALID_ARGUMENT, TIMEOUT,
   * or MODEL_FAILED where the server died. Aborting the signal abandons the answer, not the work.
   */
  run(request: JobRequest, inputs: readonly Buffer[], o: RunOptions): Promise<Made>;
};

export type LeaseParts = {
  sampler: GpuSampler;
  learned: Learned;
  locks: GpuLocks;
  evictor: Evictor;
  slots: () => readonly Slot[];
  /** Looks at everybody's VRAM. Never rejects. */
  look: () => Promise<unknown>;
  /** Shortest time without a new step before a server counts as hung. */
  jobFloorMs: number;
  /** And the longest. */
  jobLimitMs: number;
};

/** Less than this is the driver's own coming and going. */
const NOISE_MIB = 64;

export function leaseOf(slot: Slot, { use, ...parts }: LeaseParts & { use: Disposable }): Lease {
  const { server, model } = slot;
  const readings = parts.sampler.readings().filter(({ uuid }) => server.gpus.includes(uuid));
  return {
    gpuNames: isAttached(model) ? ['attached server'] : readings.map(({ name }) => name),
    run: async (request, inputs, o) => {
      const job = { request, inputs, parts, ...o };
      try {
        return await run(slot, job);
      } catch (error) {
        if (!isOutOfMemory(error)) throw error;
        // The one repeat, where the server has survived it and others can make room.
        if (server.state.kind !== 'ready' || !(await parts.evictor.evictBeside(slot, o.signal))) {
          throw tooLarge(slot, job, error);
        }
      }
      try {
        const made = await run(slot, job);
        const note = 'Ran out of GPU memory once; idle models made room for a second try.';
        return { ...made, isSecondTry: true, notes: [...made.notes, note] };
      } catch (error) {
        throw isOutOfMemory(error) ? tooLarge(slot, job, error) : error;
      }
    },
    [Symbol.dispose]: () => use[Symbol.dispose](),
  };
}

type Run = RunOptions & { request: JobRequest; inputs: readonly Buffer[]; parts: LeaseParts };

async function run(slot: Slot, { request, inputs, parts, signal, onStep, sink: picture }: Run): Promise<Made> {
  const { server, model } = slot;
  const { sampler, learned, look, jobFloorMs, jobLimitMs } = parts;
  const { gpus } = server;
  const before = {
    ...{ heldMiB: server.heldMiB, freeMiB: freeOn(sampler, gpus), measure: server.measure },
    isHeldInFlux: server.isHeldInFlux,
  };
  using peak = watchPeak(sampler, gpus);
  const wasAlone = isAlone(slot, parts);
  // Somebody else's server may work for them first, so there nothing learned says when this job should have ended.
  const isFirst = server.isFirst || isAttached(model);
  const deadlineMs = learned.deadlineMs(model, { request, floorMs: jobFloorMs, limitMs: jobLimitMs, isFirst });
  const startMs = performance.now();
  const megapixels = megapixelsOf(request);
  try {
    const sink = {
      begin: () => picture.begin(performance.now() - startMs),
      write: (bytes: Buffer) => picture.write(bytes),
    };
    const limits = { deadlineMs, outOfMemoryMs: jobFloorMs / 2 };
    const made = await server.run(request, inputs, { signal, onStep, sink, ...limits });
    const runMs = performance.now() - startMs;
    // The change of free memory is this job's only where nothing else moved on its GPUs.
    if (wasAlone && isAlone(slot, parts) && gpus.length > 0 && peak.isSeen()) {
      const readings = sampler.readings().filter(({ uuid }) => gpus.includes(uuid));
      const seenMiB = jobPeakMiB(before, { leastFreeMiB: peak.leastFreeMiB(), readings });
      const atLeastMiB = loadedMiB(learned.of(model.id), model);
      if (seenMiB !== undefined) learned.peak(model.id, { megapixels, peakMiB: Math.max(seenMiB, atLeastMiB) });
      if (server.isHeldInFlux || Math.abs(peak.grownMiB()) > NOISE_MIB) void look(); // the accounts follow
    }
    return { ...made, runMs };
  } catch (error) {
    if (!isOutOfMemory(error) || !wasAlone || gpus.length === 0) throw error;
    await look();
    // What others took meanwhile, it did not have.
    const othersMiB = (server.measure?.othersMiB ?? 0) - (before.measure?.othersMiB ?? 0);
    const hadMiB = before.heldMiB + before.freeMiB - Math.max(0, othersMiB);
    if (isAlone(slot, parts)) learned.ranShort(model.id, { megapixels, aboveMiB: hadMiB });
    throw error;
  }
}

/** Memory was short, as opposed to a CUDA context that broke. */
function isOutOfMemory(error: unknown): error is AppError {
  return error instanceof AppError && error.code === 'GPU_OUT_OF_MEMORY' && !(error instanceof OutOfStep);
}

function tooLarge(slot: Slot, { request, parts }: Run, error: AppError): AppError {
  const { model } = slot;
  const { learned, sampler } = parts;
  const megapixels = megapixelsOf(request);
  const needMiB = Math.round(peakMiB(learned.of(model.id), { ...model, megapixels }));
  const largestMiB = Math.max(0, ...sampler.readings().map(({ freeMiB }) => freeMiB ?? 0));
  const { width, height } = request;
  const size = width === undefined || height === undefined ? 'this size' : `${width}x${height}`;
  return new AppError(
    'GPU_OUT_OF_MEMORY',
    `${model.alias} ran out of GPU memory: it needs about ${needMiB} MiB at ${size}, of which it held ` +
      `${Math.round(slot.server.heldMiB)}; the most that is free on one GPU is ${Math.round(largestMiB)} MiB. ` +
      `Try ${smaller(slot, request)}, or a host with more free VRAM. ${error.message}`,
    { cause: error },
  );
}

/** Half of the pixels, in the multiples of the model. */
function smaller({ model }: Slot, request: JobRequest): string {
  const { width, height } = request;
  if (request.kind === 'edit' && (request.sizeLevel ?? 0) > 512) return 'a smaller size_level';
  if (width === undefined || height === undefined) return 'a smaller picture';
  const { multiple } = model.profile;
  const less = (side: number): number => Math.max(multiple, Math.floor((side * Math.SQRT1_2) / multiple) * multiple);
  return `${less(width)}x${less(height)}`;
}

function isAlone(slot: Slot, { locks, slots }: LeaseParts): boolean {
  const { gpus } = slot.server;
  if (gpus.some((uuid) => locks.isHeld(uuid))) return false;
  return !slots().some(({ server }) => server !== slot.server && server.isWorkingOn(gpus));
}
