import type { JobError, JobRequest, JobResult } from '../../shared/job.ts';
import { canEnter, isOver } from './job-state.ts';
import type { JobState, Place } from './job-state.ts';

/**
 * One take of the job. Without an `end` the host may still have it: `refused` was never accepted, `lost` is unknown to
 * its host, `dropped` was cancelled and acknowledged unseen.
 */
export type Attempt = Place & {
  /** The host had to load or wake the model for it. */
  isSwap?: boolean;
  end?: { kind: 'refused' | 'lost' | 'dropped' | 'saved' } | { kind: 'failed'; error: JobError; serverDied: boolean };
};

/** Where and until when a job holds a slot, by this bridge's own reckoning. Monotonic times. */
export type Holding = { host: string; slotId: string; endsAtMs: number };

/** All that a bridge knows about one job of a batch; what must survive it is in the manifest. */
export type JobRecord = {
  readonly jobId: string;
  readonly index: number;
  readonly request: JobRequest;
  readonly inputFiles: readonly string[];
  readonly directory: string;
  readonly name: string | undefined;
  state: JobState;
  readonly attempts: Attempt[];
  progress: { step: number; steps: number; detail: string };
  routing: string | undefined;
  startedInMs: number | undefined;
  endedInMs: number | undefined;
  /** Names under which the image may already be visible, from `saving` lines without a `saved`. */
  savings: (Place & { name: string; result: JobResult })[];
  holding: Holding | undefined;
  /** The slot of the last take, as far as this process made it. */
  slotId: string | undefined;
  /** Since when grants for it are declined, monotonic. */
  declinedSinceMs: number | undefined;
  /** Inputs that the host still has to get. */
  missingInputs: readonly string[];
};

export function newRecord(
  job: Pick<JobRecord, 'jobId' | 'index' | 'request' | 'inputFiles' | 'directory' | 'name'>,
): JobRecord {
  return {
    ...job,
    state: { kind: 'waiting' },
    attempts: [],
    progress: { step: 0, steps: 0, detail: '' },
    routing: undefined,
    startedInMs: undefined,
    endedInMs: undefined,
    savings: [],
    holding: undefined,
    slotId: undefined,
    declinedSinceMs: undefined,
    missingInputs: [],
  };
}

/** The only way to change a state while the batch is ours. An illegal change is a defect, so it throws. */
export function enterState(record: JobRecord, next: JobState): void {
  if (!canEnter(record.state.kind, next.kind)) {
    throw new Error(`job ${record.jobId} cannot go from ${record.state.kind} to ${next.kind}`);
  }
  record.state = next;
  if (next.kind !== 'taking' && next.kind !== 'accepted' && next.kind !== 'running') record.holding = undefined;
  if (next.kind === 'taking' || isOver(next)) record.declinedSinceMs = undefined;
}

export function findAttempt(record: JobRecord, place: Place): Attempt | undefined {
  return record.attempts.findLast((one) => one.host === place.host && one.attempt === place.attempt);
}

/** Attempts whose host may still run the job or hold its result. */
export function openAttempts(record: JobRecord): Attempt[] {
  return record.attempts.filter((attempt) => attempt.end === undefined);
}

/** A number that no host has heard in an accepted take: one that was refused is used again. */
export function nextAttempt(record: JobRecord): number {
  return Math.max(0, ...record.attempts.filter(({ end }) => end?.kind !== 'refused').map((one) => one.attempt)) + 1;
}

/** When the slot of a running job is expected to be free: a job that is late by x is expected to be late by x more. */
export function remainingMs(holding: Holding, nowMs: number): number {
  return Math.abs(holding.endsAtMs - nowMs);
}
