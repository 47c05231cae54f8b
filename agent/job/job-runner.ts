import { performance } from 'node:perf_hooks';
import { untilAborted } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import type { Job, JobResult } from '../../shared/job.ts';
import { megapixelsOf } from '../../shared/job.ts';
import type { Lease } from '../model/lease.ts';
import { makeFinalImage } from './final-image.ts';
import type { InputStore } from './input-store.ts';
import type { ResultStore } from './result-store.ts';
import type { Servers } from './servers.ts';

export type JobParts = {
  servers: Servers;
  inputs: InputStore;
  results: ResultStore;
  hostname: string;
  isSimulated: () => boolean;
  /** Missing inputs without a byte for so long fail the attempt. */
  inputSilenceMs: number;
};

export type JobEvents = {
  /** What is done to get ready, for a person. */
  detail: (text: string) => void;
  started: () => void;
  step: (step: number, steps: number) => void;
  /** The engine's last byte is here, or it failed: the slot is free. Storing goes on beside the next job. */
  engineEnded: (ran: { runMs: number; isSuccess: boolean }) => void;
};

type RunOptions = {
  job: Job;
  tokenId: string;
  slotId: string;
  /** Settles when the job before it has left the slot. */
  turn: Promise<void>;
  /** Ends the job while it waits for inputs, for the slot or for the model. */
  beforeRun: AbortSignal;
  /** Abandons the running engine as well. */
  always: AbortSignal;
  /** A cancelled job runs to its end, because engines cannot be interrupted, but nothing of it is kept. */
  isDropped: () => boolean;
  on: JobEvents;
};

/** One accepted job: inputs, model, engine, final file, store. Resolves with the result on disk, undefined if dropped. */
export async function runJob(parts: JobParts, options: RunOptions): Promise<JobResult | undefined> {
  const { job, tokenId, slotId, turn } = options;
  const { request } = job;
  const waiting = AbortSignal.any([options.beforeRun, options.always]);
  const names = request.kind === 'edit' ? request.inputs : [];
  using _held = parts.inputs.hold(tokenId, names);

  await inputsArrived(parts, { tokenId, names, signal: waiting });
  const inputs = await Promise.all(names.map((sha256) => parts.inputs.read(tokenId, sha256)));
  await untilAborted(turn, waiting);
  const ran = await runOnEngine(parts, options, { inputs, waiting });
  if (options.isDropped()) return undefined;

  const origin = { job, hostname: parts.hostname, gpu: ran.gpu, runMs: ran.runMs, isSimulated: parts.isSimulated() };
  const final = await makeFinalImage(ran.image, origin);
  if (ran.isSecondTry !== true) parts.servers.learn(slotId, { request, runMs: ran.runMs });
  const stored = await parts.results.put(tokenId, job.jobId, job.attempt, final.image, final.preview);
  return {
    sha256: stored.sha256,
    bytes: stored.bytes,
    width: final.width,
    height: final.height,
    format: final.format,
    runMs: ran.runMs,
    gpu: ran.gpu,
    notes: [...ran.notes, ...final.notes],
  };
}

async function runOnEngine(
  { servers }: JobParts,
  { job, slotId, always, on }: RunOptions,
  { inputs, waiting }: { inputs: readonly Buffer[]; waiting: AbortSignal },
): Promise<Awaited<ReturnType<Lease['run']>> & { gpu: string }> {
  const megapixels = megapixelsOf(job.request);
  const lease = await servers.admit(slotId, { megapixels, signal: waiting, onDetail: on.detail });
  let startedMs: number | undefined;
  let isSuccess = false;
  try {
    waiting.throwIfAborted();
    on.started();
    startedMs = performance.now();
    const ran = await lease.run(job.request, inputs, { signal: always, onStep: on.step });
    isSuccess = true;
    return { ...ran, gpu: lease.gpuNames.join(', ') };
  } finally {
    lease[Symbol.dispose](); // before the slot is free: the next job is admitted at once
    on.engineEnded({ runMs: startedMs === undefined ? 0 : performance.now() - startedMs, isSuccess });
  }
}

/** Waits while bytes keep coming; a quiet minute ends it. */
async function inputsArrived(
  { inputs, inputSilenceMs }: JobParts,
  { tokenId, names, signal }: { tokenId: string; names: readonly string[]; signal: AbortSignal },
): Promise<void> {
  const sinceMs = performance.now();
  for (;;) {
    const missing = names.filter((sha256) => !inputs.has(tokenId, sha256));
    if (missing.length === 0) return;
    const lastMs = Math.max(sinceMs, ...missing.map((sha256) => inputs.lastByteMs(tokenId, sha256) ?? 0));
    const leftMs = lastMs + inputSilenceMs - performance.now();
    if (leftMs <= 0) {
      throw new AppError(
        'INPUT_MISSING',
        `${missing.length} of ${names.length} input images did not arrive: no byte came for ${inputSilenceMs} ms. The job can be taken again.`,
      );
    }
    await inputs.nextArrival(leftMs, signal);
  }
}
