import { AppError } from '../../shared/errors.ts';
import type { Job } from '../../shared/job.ts';
import type { AgentJob } from '../../shared/protocol.ts';
import type { ActiveJob } from './active-job.ts';
import { agentJob } from './active-job.ts';
import type { Journal } from './journal.ts';
import type { Attempt, JobEnd } from './journal-lines.ts';

type Key = { jobId: string; attempt: number };

/** What a hello tells of earlier jobs at most, as JSON: a reply has to fit into a frame of 1 MiB. */
const TOLD_CHARS = 700_000;

/** Every attempt this agent knows, by (token, jobId, attempt): those under way, and the journal for what has ended. */
export class Attempts {
  readonly #journal: Journal;
  readonly #active = new Map<string, ActiveJob>();
  /** Acknowledged, but the disk has not yet taken the line that says so. */
  readonly #acked = new Set<string>();

  constructor(journal: Journal) {
    this.#journal = journal;
  }

  add(active: ActiveJob): void {
    this.#active.set(keyOf(active.tokenId, active.job), active);
  }

  /** Its end is on disk, or it was never accepted: the journal alone knows about it from now on. */
  remove(active: ActiveJob): void {
    this.#active.delete(keyOf(active.tokenId, active.job));
  }

  /** At once, whenever the line that says so is `kept`. */
  acknowledge(tokenId: string, key: Key, kept: Promise<void>): void {
    const id = keyOf(tokenId, key);
    this.#acked.add(id);
    // When the agent stops before it is kept, the bridge is asked again at the next start.
    void kept.then(
      () => this.#acked.delete(id),
      () => undefined,
    );
  }

  isActive(active: ActiveJob): boolean {
    return this.#active.has(keyOf(active.tokenId, active.job));
  }

  active(): ActiveJob[] {
    return [...this.#active.values()];
  }

  activeOf(tokenId: string, key: Key): ActiveJob | undefined {
    return this.#active.get(keyOf(tokenId, key));
  }

  /** The job as it was first sent under this key. */
  jobOf(tokenId: string, key: Key): Job | undefined {
    return this.activeOf(tokenId, key)?.job ?? this.#journal.find(tokenId, key.jobId, key.attempt)?.job;
  }

  endOf(tokenId: string, key: Key): JobEnd | undefined {
    return this.activeOf(tokenId, key)?.end ?? this.#journal.find(tokenId, key.jobId, key.attempt)?.end;
  }

  stateOf(tokenId: string, job: Job): AgentJob {
    const isRunning = this.activeOf(tokenId, job)?.startedMs !== undefined;
    return agentJob({ job, end: this.endOf(tokenId, job) }, { isRunning });
  }

  /** Present state of the latest attempt. */
  latest(tokenId: string, jobId: string): AgentJob {
    const [latest] = this.#journal
      .attempts(tokenId)
      .filter((attempt) => attempt.job.jobId === jobId)
      .sort((a, b) => b.job.attempt - a.job.attempt);
    if (latest === undefined) throw jobNotFound();
    return this.stateOf(tokenId, latest.job);
  }

  /**
   * What the token's bridges have not acknowledged; under way first, then the newest. What does not fit into a frame is
   * not told: its bridge takes the job again, and what was made of it is deleted when it is too old.
   */
  unacknowledged(tokenId: string): AgentJob[] {
    const open = this.#journal
      .attempts(tokenId)
      .filter(({ isAcked, job }) => !isAcked && !this.#acked.has(keyOf(tokenId, job)));
    const told: AgentJob[] = [];
    let chars = 0;
    for (const { job } of [...open].sort(byImportance)) {
      const state = this.stateOf(tokenId, job);
      chars += JSON.stringify(state).length;
      if (chars > TOLD_CHARS) break;
      told.push(state);
    }
    return told;
  }
}

/** One text for unknown jobs and for those of another token. */
export function jobNotFound(): AppError {
  return new AppError('JOB_NOT_FOUND', 'There is no such job here. It was never accepted, or it was long ago.');
}

function byImportance(a: Attempt, b: Attempt): number {
  if (a.end === undefined || b.end === undefined) return Number(a.end !== undefined) - Number(b.end !== undefined);
  return b.end.atMs - a.end.atMs;
}

function keyOf(tokenId: string, { jobId, attempt }: Key): string {
  return `${tokenId}/${jobId}/${attempt}`;
}
