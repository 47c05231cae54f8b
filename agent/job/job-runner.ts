import { performance } from 'node:perf_hooks';
import { untilAborted } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import type { Job, JobResult } from '../../shared/job.ts';
import { megapixelsOf } from '../../shared/job.ts';
import type { Lease } from '../model/lease.ts';
import { sizeNotes, textChunks } from './final-image.ts';
import type { IncomingPicture } from './incoming-picture.ts';
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
  let gpu = '';
  await using picture = await parts.results.incoming(tokenId, {
    format: request.format,
    textOf: (made) => textChunks({ job, hostname: parts.hostname, gpu, isSimulated: parts.isSimulated() }, made),
  });
  await untilAborted(turn, waiting);
  const onAdmitted = (gpuNames: string): void => void (gpu = gpuNames);
  const ran = await runOnEngine(parts, options, { inputs, waiting, picture, onAdmitted });
  if (options.isDropped()) return undefined;

  const { sha256, bytes, width, height, format } = await parts.results.keep(tokenId, job.jobId, job.attempt, picture);
  if (ran.isSecondTry !== true) parts.servers.learn(slotId, { request, runMs: ran.runMs });
  const notes = [...ran.notes, ...sizeNotes(job, { width, height })];
  return { sha256, bytes, width, height, format, runMs: ran.runMs, gpu, notes };
}

type OnEngine = {
  inputs: readonly Buffer[];
  waiting: AbortSignal;
  picture: IncomingPicture;
  onAdmitted: (gpuNames: string) => void;
};

async function runOnEngine(
  { servers }: JobParts,
  { job, slotId, always, on }: RunOptions,
  { inputs, waiting, picture, onAdmitted }: OnEngine,
): ReturnType<Lease['run']> {
  const megapixels = megapixelsOf(job.request);
  const lease = await servers.admit(slotId, { megapixels, signal: waiting, onDetail: on.detail });
  let startedMs: number | undefined;
  let isSuccess = false;
  try {
    waiting.throwIfAborted();
    onAdmitted(lease.gpuNames.join(', '));
    on.started();
    startedMs = performance.now();
    const ran = await lease.run(job.request, inputs, { signal: always, onStep: on.step, sink: picture });
    isSuccess = true;
    return ran;
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
