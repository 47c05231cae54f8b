import type { JobError, JobResult } from '../../shared/job.ts';
import type { BatchKind } from './batch-order.ts';
import type { BatchQuality } from './batch-quality.ts';
import type { Attempt, JobRecord } from './job-record.ts';
import { isOver } from './job-state.ts';
import type { JobStateKind } from './job-state.ts';
import type { ManifestRepair, ManifestState } from './manifest-lines.ts';

export type JobView = {
  jobId: string;
  index: number;
  /** The pictures that were given to be edited; absent where the picture is new. */
  inputFiles?: readonly string[];
  prompt: string;
  seed: number;
  model: string;
  state: JobStateKind;
  host?: string;
  attempt: number;
  /** Those that a host may have begun; a take that was refused is none. */
  attempts: { host: string; error?: JobError }[];
  progress: { step: number; steps: number; detail: string };
  /** Expected time until it is done; null where that cannot be said. */
  etaMs: number | null;
  /** How many of this bridge's jobs come before it, while it waits. */
  ahead: number | null;
  filePath?: string;
  previewPath?: string;
  result?: JobResult;
  error?: JobError;
  /** Why this host, in one sentence. */
  routing?: string;
  /** Cancelled, but the engine of this host cannot be interrupted and is still busy with it. */
  stillRunningOn?: string;
  /** Since the start of the batch. */
  timings?: { startedInMs: number; endedInMs: number };
};

export type BatchState = 'running' | 'success' | 'partial' | 'failed' | 'cancelled';

export type BatchView = {
  batchId: string;
  kind: BatchKind;
  state: BatchState;
  createdAt: string;
  jobs: JobView[];
  completed: number;
  failed: number;
  cancelled: number;
  total: number;
  etaMs: number | null;
  /** Why no new work is taken at the moment: the images cannot be saved. */
  pausedBy?: string;
  elapsedMs: number;
  quality?: BatchQuality;
  /** What a person should know about it: damage to its record. */
  notes: readonly string[];
  isOurs: boolean;
};

export type EndCounts = { completed: number; failed: number; cancelled: number };

/** `success` when all images are there; `cancelled` when somebody ended it early; else by what came out. */
export function batchState(counts: EndCounts, total: number): BatchState {
  if (counts.completed + counts.failed + counts.cancelled < total) return 'running';
  if (counts.completed === total) return 'success';
  if (counts.cancelled > 0) return 'cancelled';
  return counts.completed > 0 ? 'partial' : 'failed';
}

export function countEnds(jobs: readonly JobRecord[]): EndCounts {
  const counts = { completed: 0, failed: 0, cancelled: 0 };
  for (const { state } of jobs) {
    if (state.kind === 'done') counts.completed += 1;
    if (state.kind === 'failed') counts.failed += 1;
    if (state.kind === 'cancelled') counts.cancelled += 1;
  }
  return counts;
}

/** A batch of another process, or of an earlier one, as its manifest tells. */
export function manifestView({ header, ended, jobs, repairs, damaged }: ManifestState): BatchView | undefined {
  if (header === undefined) return undefined;
  return {
    batchId: header.batchId,
    kind: header.kind,
    state: ended?.state ?? 'running',
    createdAt: header.createdAt,
    jobs: jobs.map((job) => jobView(job)),
    ...countEnds(jobs),
    total: jobs.length,
    etaMs: ended === undefined ? null : 0,
    elapsedMs: ended?.elapsedMs ?? Math.max(0, Date.now() - Date.parse(header.createdAt)),
    ...(ended?.quality && { quality: ended.quality }),
    notes: [...repairNotes(repairs), ...damageNotes(damaged)],
    isOurs: false,
  };
}

/** For each time that its manifest was damaged. */
export function repairNotes(repairs: readonly ManifestRepair[]): string[] {
  return repairs.map(({ damaged, lost, keptAs }) => {
    const images = lost === 1 ? 'one image' : `${lost} images`;
    const loss =
      lost === 0
        ? 'No image is lost by it.'
        : `Of ${images} it is not known any more what was asked for: ask again for what is not there.`;
    return `${linesOf(damaged)} of the record of this batch could not be read. ${loss} The damaged file is kept as ${keptAs}.`;
  });
}

/** For lines that are still in it: nobody has had its lock since. */
function damageNotes(damaged: number): string[] {
  if (damaged === 0) return [];
  return [
    `${linesOf(damaged)} of the record of this batch could not be read, so what is said here may lack something.`,
  ];
}

function linesOf(count: number): string {
  return count === 1 ? 'One line' : `${count} lines`;
}

/** What only the process that works on a job knows of it. `detail` says why a waiting job waits. */
export type JobOutlook = {
  detail?: string | undefined;
  stillRunningOn?: string | undefined;
  etaMs?: number | null;
  ahead?: number | null;
};

/** One job as tools and commands show it. */
export function jobView(record: JobRecord, extra: JobOutlook = {}): JobView {
  const { state } = record;
  const last = record.attempts.at(-1);
  const host = isOver(state) && state.kind !== 'done' ? last?.host : 'at' in state ? state.at.host : undefined;
  return {
    jobId: record.jobId,
    index: record.index,
    ...(record.inputFiles.length > 0 && { inputFiles: record.inputFiles }),
    prompt: record.request.prompt,
    seed: record.request.seed,
    model: record.request.model,
    state: state.kind,
    ...(host !== undefined && { host }),
    attempt: 'at' in state ? state.at.attempt : (last?.attempt ?? 0),
    attempts: record.attempts.filter(isReal).map((attempt) => ({
      host: attempt.host,
      ...(attempt.end?.kind === 'failed' && { error: attempt.end.error }),
    })),
    progress: { ...record.progress, ...(extra.detail !== undefined && { detail: extra.detail }) },
    etaMs: isOver(state) ? 0 : (extra.etaMs ?? null),
    ahead: extra.ahead ?? null,
    ...(state.kind === 'done' && { filePath: state.path, result: state.result }),
    ...(state.kind === 'done' && state.previewPath !== undefined && { previewPath: state.previewPath }),
    ...(state.kind === 'failed' && { error: state.error }),
    ...(record.routing !== undefined && { routing: record.routing }),
    ...(extra.stillRunningOn !== undefined && { stillRunningOn: extra.stillRunningOn }),
    ...(record.startedInMs !== undefined &&
      record.endedInMs !== undefined && {
        timings: { startedInMs: record.startedInMs, endedInMs: record.endedInMs },
      }),
  };
}

function isReal({ end }: Attempt): boolean {
  return end?.kind !== 'refused';
}
