import type { AgentJob } from '../../shared/protocol.ts';
import type { AgentLink } from './agent-link.ts';
import type { BatchBook } from './batch-book.ts';
import { openAttempts } from './job-record.ts';
import type { Attempt, JobRecord } from './job-record.ts';

/**
 * Makes hosts forget attempts that are over for the bridge: cancelled if they still run, then acknowledged. A host that
 * cannot be reached lists the attempt in its next hello, and is told then.
 */
export class JobSettler {
  readonly #book: BatchBook;
  readonly #settling = new Set<Attempt>();
  /** Cancelled, but the engine is still busy: its end is notified, and then acknowledged. */
  readonly #stopping = new Set<Attempt>();

  constructor(book: BatchBook) {
    this.#book = book;
  }

  /** The host said hello: whatever was told it before may be lost. */
  renew(host: string): void {
    for (const attempt of [...this.#stopping]) if (attempt.host === host) this.#stopping.delete(attempt);
  }

  /** The job is over: whoever else may still have it is told. */
  settleAll(job: JobRecord): void {
    for (const attempt of openAttempts(job)) this.settle(job, attempt, 'running');
  }

  /** `state` is what the host last said of the attempt. */
  settle(job: JobRecord, attempt: Attempt, state: AgentJob['state']): void {
    const link = this.#book.side.link(attempt.host);
    if (link?.isUp !== true || this.#settling.has(attempt)) return;
    this.#settling.add(attempt);
    const settled = this.#drop(link, { job, attempt, state })
      .catch(() => undefined) // the next hello lists it again
      .finally(() => this.#settling.delete(attempt));
    this.#book.own(job, settled);
  }

  async #drop(
    link: AgentLink,
    { job, attempt, state }: { job: JobRecord; attempt: Attempt; state: AgentJob['state'] },
  ): Promise<void> {
    const { jobId } = job;
    const signal = this.#book.life;
    if (!isOverThere(state)) {
      if (this.#stopping.has(attempt)) return;
      const said = await link.request('job.cancel', { jobId }, signal);
      if (said.attempt === attempt.attempt && !isOverThere(said.state)) {
        this.#stopping.add(attempt);
        return;
      }
    }
    this.#stopping.delete(attempt);
    const isWinner =
      job.state.kind === 'done' && job.state.at.host === attempt.host && job.state.at.attempt === attempt.attempt;
    const sha256 = job.state.kind === 'done' && isWinner ? { sha256: job.state.result.sha256 } : {};
    await link.request('job.ack', { jobId, attempt: attempt.attempt, ...sha256 }, signal);
    attempt.end ??= { kind: 'dropped' };
  }
}

function isOverThere(state: AgentJob['state']): boolean {
  return state === 'done' || state === 'failed' || state === 'cancelled';
}
