import type { AgentJob, Notification } from '../../shared/protocol.ts';
import type { AgentLink } from './agent-link.ts';
import type { Batch } from './batch.ts';
import type { Batches } from './batches.ts';
import { isOver } from './job-state.ts';
import type { WorkDesk } from './work-desk.ts';

type HostEventsOptions = {
  batches: Batches;
  desk: WorkDesk;
  link: (host: string) => AgentLink | undefined;
  changed: () => void;
  own: (work: Promise<void>) => void;
  signal: AbortSignal;
};

/** What hosts say, brought to whom it concerns: grants to the desk, jobs to their batches. */
export class HostEvents {
  readonly #options: HostEventsOptions;
  /** What each host had, at its hello, of batches that this process did not work on. */
  readonly #strangers = new Map<string, readonly AgentJob[]>();

  constructor(options: HostEventsOptions) {
    this.#options = options;
  }

  /** A new session: these are the jobs that the host has of this laptop, of all bridges on it. */
  onHello(host: string, jobs: AgentJob[]): void {
    const { batches, desk, changed, own } = this.#options;
    desk.forget(host);
    for (const batch of batches.own.values()) batch.onHello(host, jobs);
    const strangers = jobs.filter(({ jobId }) => batches.batch(jobId) === undefined);
    this.#strangers.set(host, strangers);
    if (strangers.length > 0) own(this.#settleStrangers(host, strangers));
    changed();
  }

  /** Hosts whose hello came before the batch was resumed: what is over is acknowledged, and `tick` asks for the rest. */
  onResumed(batch: Batch): void {
    for (const [host, jobs] of this.#strangers) {
      for (const said of jobs) if (batch.isJobOver(said.jobId)) batch.onAgentJob(host, said);
    }
    this.#options.changed();
    batch.tick();
  }

  onDown(host: string): void {
    const { batches, desk, changed } = this.#options;
    this.#strangers.delete(host);
    desk.forget(host);
    for (const batch of batches.own.values()) batch.onDown(host);
    changed();
  }

  onNotification(host: string, notification: Notification): void {
    const { batches, desk } = this.#options;
    switch (notification.method) {
      case 'slot.grant':
        return desk.onGrant(host, notification.params);
      case 'job.progress': {
        const { jobId, attempt, state } = notification.params;
        const batch = batches.batch(jobId);
        batch?.onAgentJob(host, { jobId, attempt, state });
        batch?.onProgress(host, notification.params);
        return;
      }
      case 'job.done':
        return batches.batch(notification.params.jobId)?.onAgentJob(host, { ...notification.params, state: 'done' });
      case 'job.failed':
        return batches.batch(notification.params.jobId)?.onAgentJob(host, { ...notification.params, state: 'failed' });
      case 'job.cancelled':
        return batches
          .batch(notification.params.jobId)
          ?.onAgentJob(host, { ...notification.params, state: 'cancelled' });
      case 'slot.revoke': // a late take is answered with GRANT_EXPIRED, which says the same
      case 'snapshot':
      case 'delta':
        return;
    }
  }

  /** Jobs of batches that ended, whose acknowledgement did not arrive. Those that others work on are left alone. */
  async #settleStrangers(host: string, jobs: readonly AgentJob[]): Promise<void> {
    const { batches, signal } = this.#options;
    const link = this.#options.link(host);
    for (const { jobId, attempt, state } of jobs) {
      const job = batches.endedJob(jobId);
      if (link === undefined || job === undefined || !isOver(job.state)) continue;
      if (state === 'accepted' || state === 'running') await link.request('job.cancel', { jobId }, signal);
      else await link.request('job.ack', { jobId, attempt }, signal);
    }
  }
}
