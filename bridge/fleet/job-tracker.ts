import { performance } from 'node:perf_hooks';
import { AppError } from '../../shared/errors.ts';
import type { JobError } from '../../shared/job.ts';
import type { AgentJob } from '../../shared/protocol.ts';
import { estimateMs } from '../../shared/service-time.ts';
import type { BatchBook } from './batch-book.ts';
import { serviceOnHost } from './batch-report.ts';
import { JobFetcher } from './job-fetcher.ts';
import type { Fetched } from './job-fetcher.ts';
import { findAttempt, openAttempts } from './job-record.ts';
import type { Attempt, JobRecord } from './job-record.ts';
import { JobSettler } from './job-settler.ts';
import { isAt, isFetching, isOver, placeOf } from './job-state.ts';
import type { Place } from './job-state.ts';
import { JobTaker } from './job-taker.ts';
import type { Taking } from './job-taker.ts';
import type { ManifestLine } from './manifest-lines.ts';
import { largestFree } from './host-forecast.ts';
import { afterFailure, MAX_FAILURES } from './retry-policy.ts';
import { UnsureJobs } from './unsure-jobs.ts';

export type Progress = { jobId: string; attempt: number; step: number; steps: number; detail: string };

/**
 * Follows the jobs of one batch through what hosts say of them: hellos, replies, notifications, lost links, silence. What
 * is to be done about it is done by the taker, the fetcher and the settler.
 */
export class JobTracker {
  readonly #book: BatchBook;
  readonly #taker: JobTaker;
  readonly #fetcher: JobFetcher;
  readonly #settler: JobSettler;
  readonly #unsure: UnsureJobs;
  /** One more job is over. */
  readonly #onOver: () => Promise<void>;

  constructor(book: BatchBook, { onOver }: { onOver: () => Promise<void> }) {
    this.#book = book;
    this.#onOver = onOver;
    this.#settler = new JobSettler(book);
    this.#unsure = new UnsureJobs(book, { onAgentJob: (host, said) => this.onAgentJob(host, said) });
    this.#taker = new JobTaker(book, {
      onAgentJob: (host, said) => this.onAgentJob(host, said),
      onRefused: (job, { place, error }) => this.#onAttemptFailed(job, { place, error: jobError(error) }),
      onHopeless: (job, error) => this.fail(job, error),
    });
    this.#fetcher = new JobFetcher(book, {
      onSaved: (job, fetched) => this.#onSaved(job, fetched),
      onUnsure: (job, place) => this.#unsure.enter(job, place),
      onLost: (job, place) => this.#unsure.lose(job, place),
      onDamaged: (job, { place, error }) => this.#onAttemptFailed(job, { place, error: damaged(error) }),
    });
    book.onBroken = (job, error) => this.fail(job, error);
  }

  take(job: JobRecord, taking: Taking): void {
    this.#taker.take(job, taking);
  }

  /** At once for the bridge; its hosts are told. The caller writes it down. */
  cancel(job: JobRecord): void {
    const wasRunning = job.state.kind === 'running' || job.state.kind === 'unsure';
    const ranAt = wasRunning ? placeOf(job.state) : undefined;
    this.#fetcher.stop(job);
    this.#book.enter(job, { kind: 'cancelled', ranAt });
    this.#settler.settleAll(job);
  }

  /** Finds out what became of a job of another process: saved, perhaps still on a host, or waiting. */
  async restore(job: JobRecord): Promise<void> {
    if (isOver(job.state)) return;
    const last = openAttempts(job).at(-1);
    const place = last && { host: last.host, attempt: last.attempt };
    const saved = await this.#fetcher.findSaved(job);
    if (saved !== undefined) {
      this.#book.restore(job, { kind: 'saving', at: saved.place, result: saved.result });
      return await this.#fetcher.finish(job, saved);
    }
    // The host's silence began when this process last heard it, not when it took up the batch.
    const sinceMs = (place && this.#book.side.link(place.host)?.lastHeardMs) ?? performance.now();
    this.#book.restore(job, place === undefined ? { kind: 'waiting' } : { kind: 'unsure', at: place, sinceMs });
    job.missingInputs = job.request.kind === 'edit' ? job.request.inputs : [];
  }

  /** What a host has of this batch, as its hello says. Jobs of other batches in it are ignored. */
  onHello(host: string, listed: readonly AgentJob[]): void {
    const ours = listed.filter(({ jobId }) => this.#book.job(jobId) !== undefined);
    this.#settler.renew(host);
    for (const one of ours) this.onAgentJob(host, one);
    for (const job of this.#book.jobs) {
      for (const attempt of openAttempts(job)) {
        if (attempt.host !== host || isFetching(job.state)) continue;
        if (ours.some((one) => one.jobId === job.jobId && one.attempt === attempt.attempt)) continue;
        this.#unsure.lose(job, attempt);
      }
    }
  }

  /** One job's present state on a host: from a hello, a reply, or a notification. */
  onAgentJob(host: string, said: AgentJob): void {
    const job = this.#book.job(said.jobId);
    if (job === undefined) return;
    const place: Place = { host, attempt: said.attempt };
    const attempt = findAttempt(job, place);
    if (attempt === undefined || attempt.end !== undefined || isOver(job.state)) {
      return this.#settler.settle(job, attempt ?? place, said.state);
    }
    switch (said.state) {
      case 'accepted':
      case 'running':
        return this.#onUnderWay(job, { place, state: said.state });
      case 'done':
        if (said.result === undefined) this.#unsure.ask(job, place);
        else if (!isFetching(job.state)) this.#fetcher.start(job, { place, result: said.result });
        return;
      case 'failed':
        return this.#onAttemptFailed(job, { place, error: said.error ?? UNEXPLAINED });
      case 'cancelled':
        return this.#onAttemptFailed(job, { place, error: cancelledThere(host) });
      case 'unknown':
        return;
    }
  }

  onProgress(host: string, said: Progress): void {
    const job = this.#book.job(said.jobId);
    if (job === undefined || !isAt(job.state, { host, attempt: said.attempt })) return;
    const { step, steps, detail } = said;
    if (job.progress.steps === 0 && steps > 0 && job.holding !== undefined) {
      const service = serviceOnHost(this.#book, { host, model: job.request.model });
      if (service !== undefined) job.holding.endsAtMs = performance.now() + estimateMs(service, job.request);
    }
    job.progress = { step, steps, detail };
  }

  /** The link to a host is gone: what it has of ours is unsure until its next hello. */
  onDown(host: string): void {
    for (const job of [...this.#book.table.inFlight]) {
      const { state } = job;
      const isThere = state.kind === 'taking' || state.kind === 'accepted' || state.kind === 'running';
      if (isThere && state.at.host === host) this.#unsure.enter(job, state.at);
    }
  }

  tick(now: { nowMs: number; awakeSinceMs: number }): void {
    for (const job of [...this.#book.table.inFlight]) if (job.state.kind === 'unsure') this.#unsure.tick(job, now);
  }

  #onUnderWay(job: JobRecord, o: { place: Place; state: 'accepted' | 'running' }): void {
    const { state } = job;
    // Another attempt is under way elsewhere: a race, which the first verified result wins.
    if (state.kind !== 'waiting' && !isAt(state, o.place)) return;
    if (isFetching(state) || state.kind === 'running' || state.kind === o.state) return;
    const isBack = state.kind === 'unsure' || state.kind === 'waiting';
    this.#book.enter(job, { kind: o.state, at: o.place });
    if (!isBack) return;
    job.progress = { ...job.progress, detail: 'the link was lost and is back' };
    if (o.state === 'accepted' && job.missingInputs.length > 0) {
      this.#book.own(job, this.#taker.upload(job, o.place));
    }
  }

  #onAttemptFailed(job: JobRecord, { place, error }: { place: Place; error: JobError }): void {
    const attempt = findAttempt(job, place);
    if (attempt === undefined) throw new Error(`job ${job.jobId} has no attempt ${place.attempt} on ${place.host}`);
    const isCurrent = isAt(job.state, place);
    // Before the job ran, the server died while it was started, and not by this job.
    const serverDied = error.code === 'MODEL_FAILED' && isCurrent && job.state.kind === 'running';
    attempt.end = { kind: 'failed', error, serverDied };
    this.#book.side.log.info({ event: 'attempt-failed', jobId: job.jobId, ...place, code: error.code, serverDied });
    const lines: ManifestLine[] = [{ type: 'attempt-failed', jobId: job.jobId, ...place, error, serverDied }];
    // A job that waits lost this attempt before, with its host, and may have failed often enough now.
    if (isCurrent || job.state.kind === 'waiting') lines.push(...this.#decideAfterFailure(job, error));
    this.#book.own(job, this.#concludeFailure(job, { attempt, lines }));
  }

  #decideAfterFailure(job: JobRecord, error: JobError): ManifestLine[] {
    const capable = this.#book.capableHosts(job).map(({ host }) => host);
    const next = afterFailure(job.attempts, { capable, largestFree: largestFree(this.#book.side.hosts()) });
    if (next.kind === 'failed') {
      this.#book.enter(job, { kind: 'failed', error: next.error });
      return [{ type: 'failed', jobId: job.jobId, error: next.error, endedInMs: job.endedInMs ?? this.#book.inMs() }];
    }
    if (job.state.kind !== 'waiting') this.#book.enter(job, { kind: 'waiting' });
    const failures = job.attempts.filter(({ end }) => end?.kind === 'failed').length;
    const detail = `attempt ${failures + 1} of ${MAX_FAILURES}: ${error.message}`;
    job.progress = { step: 0, steps: 0, detail };
    return [];
  }

  async #concludeFailure(job: JobRecord, o: { attempt: Attempt; lines: ManifestLine[] }): Promise<void> {
    await this.#book.record(o.lines);
    this.#settler.settle(job, o.attempt, 'failed');
    if (isOver(job.state)) this.#settler.settleAll(job);
    await this.#onOver();
  }

  async #onSaved(job: JobRecord, { place, result, path, previewPath }: Fetched): Promise<void> {
    // A file found on the disk was saved by an earlier try or process: its job goes the same way, only quicker.
    if (job.state.kind === 'fetching') this.#book.enter(job, { kind: 'saving', at: place, result });
    this.#book.enter(job, { kind: 'done', at: place, result, path, previewPath });
    job.progress = { ...job.progress, detail: '' };
    const attempt = findAttempt(job, place);
    if (attempt !== undefined) {
      attempt.end = { kind: 'saved' };
      this.#settler.settle(job, attempt, 'done');
    }
    this.#settler.settleAll(job);
    await this.#onOver();
  }

  /** The job can never be done. */
  async fail(job: JobRecord, error: AppError): Promise<void> {
    this.#book.enter(job, { kind: 'failed', error: jobError(error) });
    this.#settler.settleAll(job);
    const endedInMs = job.endedInMs ?? this.#book.inMs();
    await this.#book.record([{ type: 'failed', jobId: job.jobId, error: jobError(error), endedInMs }]);
    await this.#onOver();
  }
}

const UNEXPLAINED: JobError = {
  code: 'ENGINE_FAILED',
  message: 'The host reported a failure without a reason.',
  retryable: true,
};

function cancelledThere(host: string): JobError {
  return { code: 'INTERRUPTED', message: `The job was cancelled on ${host}.`, retryable: true };
}

function damaged(error: AppError): JobError {
  return jobError(new AppError('RESULT_INVALID', `The image arrived damaged again and again. ${error.message}`));
}

function jobError(error: AppError): JobError {
  return { code: error.code, message: error.message, retryable: error.retryable };
}
