import { performance } from 'node:perf_hooks';
import { toAppError } from '../../shared/errors.ts';
import type { AgentJob } from '../../shared/protocol.ts';
import type { BatchBook } from './batch-book.ts';
import { findAttempt } from './job-record.ts';
import type { Attempt, JobRecord } from './job-record.ts';
import { isAt, isFetching, isOver } from './job-state.ts';
import type { Place } from './job-state.ts';

/** Finds out what became of jobs whose host cannot be heard: by asking when it is back, or by its silence. */
export class UnsureJobs {
  readonly #book: BatchBook;
  readonly #onAgentJob: (host: string, said: AgentJob) => void;
  readonly #asking = new Set<Attempt>();

  constructor(book: BatchBook, { onAgentJob }: { onAgentJob: (host: string, said: AgentJob) => void }) {
    this.#book = book;
    this.#onAgentJob = onAgentJob;
  }

  enter(job: JobRecord, place: Place): void {
    const sinceMs = this.#book.side.link(place.host)?.lastHeardMs ?? performance.now();
    this.#book.enter(job, { kind: 'unsure', at: place, sinceMs });
    const detail = `the link to ${place.host} is lost; waiting to hear what became of it`;
    job.progress = { ...job.progress, detail };
  }

  /** After the silence the job may be taken elsewhere; the attempt stays open, because its host may still come back with it. */
  tick(job: JobRecord, { nowMs, awakeSinceMs }: { nowMs: number; awakeSinceMs: number }): void {
    const { state } = job;
    if (state.kind !== 'unsure') return;
    const link = this.#book.side.link(state.at.host);
    if (link?.isUp) return this.ask(job, state.at);
    // Nobody could be heard while this machine slept, so the clock of the silence starts anew when it wakes.
    const silentSinceMs = Math.max(state.sinceMs, link?.lastHeardMs ?? 0, awakeSinceMs);
    if (nowMs - silentSinceMs >= this.#book.side.times.silenceMs) {
      this.#book.enter(job, { kind: 'waiting' });
      job.progress = { step: 0, steps: 0, detail: '' };
    }
  }

  /** Unsure although the link is up, or a result that was not told. */
  ask(job: JobRecord, place: Place): void {
    const attempt = findAttempt(job, place);
    const link = this.#book.side.link(place.host);
    if (attempt === undefined || link === undefined || this.#asking.has(attempt)) return;
    this.#asking.add(attempt);
    const asking = link
      .request('job.get', { jobId: job.jobId }, this.#book.life)
      .then(
        (said) => this.#onAgentJob(place.host, said),
        (error: unknown) => {
          const isGone = toAppError(error).code === 'JOB_NOT_FOUND';
          if (isGone && attempt.end === undefined && !isFetching(job.state)) this.lose(job, place);
        },
      )
      .finally(() => this.#asking.delete(attempt));
    this.#book.own(job, asking);
  }

  /** The host does not know the attempt (any more). */
  lose(job: JobRecord, place: Place): void {
    const attempt = findAttempt(job, place);
    if (attempt !== undefined) attempt.end ??= { kind: 'lost' };
    if (isOver(job.state)) return;
    if (isAt(job.state, place)) {
      this.#book.enter(job, { kind: 'waiting' });
      job.progress = { step: 0, steps: 0, detail: '' };
    }
    this.#book.note({ type: 'lost', jobId: job.jobId, host: place.host, attempt: place.attempt });
  }
}
