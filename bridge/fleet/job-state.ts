import type { JobError, JobResult } from '../../shared/job.ts';

/** One attempt on one host. */
export type Place = { host: string; attempt: number };

/**
 * One job of a batch, as its bridge sees it. `unsure` means that the link to its host is lost: the next hello of that
 * host tells what became of it, and after the silence it may be taken elsewhere.
 */
export type JobState =
  | { kind: 'waiting' }
  | { kind: 'taking' | 'accepted' | 'running'; at: Place }
  | { kind: 'unsure'; at: Place; sinceMs: number }
  | { kind: 'fetching' | 'saving'; at: Place; result: JobResult }
  | { kind: 'done'; at: Place; result: JobResult; path: string; previewPath: string | undefined }
  | { kind: 'failed'; error: JobError }
  | { kind: 'cancelled'; ranAt: Place | undefined };

export type JobStateKind = JobState['kind'];

/** `waiting → accepted` and the like: a host that was given up comes back with the job. `done` wins over a later cancel. */
export const JOB_TRANSITIONS = {
  waiting: ['taking', 'accepted', 'running', 'unsure', 'fetching', 'failed', 'cancelled'],
  taking: ['accepted', 'running', 'fetching', 'unsure', 'waiting', 'failed', 'cancelled'],
  accepted: ['running', 'fetching', 'unsure', 'waiting', 'failed', 'cancelled'],
  running: ['fetching', 'unsure', 'waiting', 'failed', 'cancelled'],
  unsure: ['accepted', 'running', 'fetching', 'waiting', 'failed', 'cancelled'],
  fetching: ['saving', 'unsure', 'waiting', 'failed', 'cancelled'],
  saving: ['done', 'fetching', 'waiting', 'failed'],
  done: [],
  failed: [],
  cancelled: [],
} as const satisfies Record<JobStateKind, readonly JobStateKind[]>;

export function canEnter(from: JobStateKind, to: JobStateKind): boolean {
  const targets: readonly JobStateKind[] = JOB_TRANSITIONS[from];
  return targets.includes(to);
}

/** The attempt a state is bound to, while it is not over. */
export function placeOf(state: JobState): Place | undefined {
  switch (state.kind) {
    case 'taking':
    case 'accepted':
    case 'running':
    case 'unsure':
    case 'fetching':
    case 'saving':
      return state.at;
    case 'waiting':
    case 'done':
    case 'failed':
    case 'cancelled':
      return undefined;
  }
}

/** True while the job is bound to exactly this attempt. */
export function isAt(state: JobState, place: Place): boolean {
  const at = placeOf(state);
  return at !== undefined && at.host === place.host && at.attempt === place.attempt;
}

/** Its result is on the way to this machine. */
export function isFetching(state: JobState): boolean {
  return state.kind === 'fetching' || state.kind === 'saving';
}

export function isOver(state: JobState): boolean {
  return state.kind === 'done' || state.kind === 'failed' || state.kind === 'cancelled';
}

/** On a host's slot, or on its way there. */
export function isInFlight(state: JobState): boolean {
  return state.kind === 'taking' || state.kind === 'accepted' || state.kind === 'running' || state.kind === 'unsure';
}
