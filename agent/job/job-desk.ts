import { performance } from 'node:perf_hooks';
import { pause } from '../../shared/abort.ts';
import { AppError, toAppError } from '../../shared/errors.ts';
import type { Job, JobResult } from '../../shared/job.ts';
import type { Log } from '../../shared/log.ts';
import type { AgentJob, Notification, Params, Result } from '../../shared/protocol.ts';
import { estimateMs } from '../../shared/service-time.ts';
import { ActiveJob } from './active-job.ts';
import { Attempts, jobNotFound } from './attempts.ts';
import type { InputStore } from './input-store.ts';
import type { JobEvents } from './job-runner.ts';
import { runJob } from './job-runner.ts';
import { JobTally } from './job-tally.ts';
import type { Journal } from './journal.ts';
import type { JobEnd } from './journal-lines.ts';
import type { ResultStore } from './result-store.ts';
import type { Servers } from './servers.ts';
import { sweep } from './sweep.ts';
import type { OpenGrant } from './slot-board.ts';

export type JobDeskOptions = {
  residency: Servers;
  journal: Journal;
  results: ResultStore;
  inputs: InputStore;
  inputSilenceMs: number;
  isSimulated: () => boolean;
  hostname: string;
  log: Log;
  /** To every session of the token. */
  notify: (tokenId: string, notification: Notification) => void;
  onStarted: (slotId: string, active: ActiveJob) => void;
  /** The engine was used for so long, whatever came of it. */
  onServed: (active: ActiveJob, runMs: number) => void;
  /** The slot is free of the job. Comes once or more. */
  onLeft: (slotId: string, active: ActiveJob) => void;
  onChange: () => void;
};

/** How often a line that a full disk refused is tried again. */
const RETRY_EVERY_MS = 2_000;

/**
 * The attempts of this agent: accepted, run, ended, asked for, acknowledged; each known by (token, jobId, attempt).
 * An attempt is accepted once its line is on disk, and done once its result and the line that says so are.
 */
export class JobDesk implements AsyncDisposable {
  readonly #options: JobDeskOptions;
  readonly #attempts: Attempts;
  readonly #background = new Set<Promise<void>>();
  readonly #closing = new AbortController();
  readonly tally = new JobTally();
  #isStopping = false;

  constructor(options: JobDeskOptions) {
    this.#options = options;
    this.#attempts = new Attempts(options.journal);
    this.#keep(sweep(options, this.#closing.signal));
  }

  isKnown(tokenId: string, job: Job): boolean {
    return this.#attempts.jobOf(tokenId, job) !== undefined;
  }

  /** A repeated key is answered with its present state, other parameters with JOB_CONFLICT; it never starts anything. */
  async takeAgain(tokenId: string, job: Job): Promise<Result<'job.take'>> {
    if (JSON.stringify(this.#attempts.jobOf(tokenId, job)) !== JSON.stringify(job)) {
      throw new AppError(
        'JOB_CONFLICT',
        `Attempt ${job.attempt} of job ${job.jobId} is known with other parameters. Send what was sent first.`,
      );
    }
    await this.#attempts.activeOf(tokenId, job)?.journaled;
    return this.#taken(tokenId, job);
  }

  /**
   * Binds the job to the slot of its grant, at once; `bind` puts it there before anything is awaited. Resolves once it is
   * journaled, and then it runs. DISK_FULL: it was not accepted, and the slot is free again.
   */
  async take(
    slotId: string,
    { grant, job, bind }: { grant: OpenGrant; job: Job; bind: (active: ActiveJob) => void },
  ): Promise<Result<'job.take'>> {
    const { residency, journal, log } = this.#options;
    const { tokenId } = grant;
    const active = new ActiveJob({
      ...grant,
      job,
      expectedMs: estimateMs(residency.slotFacts(slotId).service, job.request),
      notify: (notification) => this.#options.notify(tokenId, notification),
    });
    bind(active);
    this.#attempts.add(active);
    active.journaled = journal.taken(tokenId, job);
    active.ended = this.#begin(slotId, active);
    this.#keep(active.ended);
    await active.journaled;
    log.info({ event: 'job-accepted', ...keyFields(job), slotId });
    return this.#taken(tokenId, job);
  }

  /** At once for the bridge; a running engine, which nobody can interrupt, keeps the slot until it ends. */
  async cancel(tokenId: string, jobId: string): Promise<AgentJob> {
    for (const active of this.#attempts.active()) {
      if (active.tokenId === tokenId && active.job.jobId === jobId) await this.#cancelAttempt(active);
    }
    return this.get(tokenId, jobId);
  }

  /** Present state of the latest attempt. */
  get(tokenId: string, jobId: string): AgentJob {
    return this.#attempts.latest(tokenId, jobId);
  }

  /** Attempts whose end is not on disk yet. */
  get activeCount(): number {
    return this.#attempts.active().length;
  }

  /** Everything of the token that its bridge has not acknowledged. */
  jobs(tokenId: string): AgentJob[] {
    return this.#attempts.unacknowledged(tokenId);
  }

  /**
   * The bridge has what it wants of this attempt: once that is journaled, the result is deleted. Where the disk is too full
   * for the line, the result goes first, which makes room for it, and the line follows as soon as the disk takes it: the
   * bridge does not say it twice while the link is up.
   */
  async ack(tokenId: string, { jobId, attempt, sha256 }: Params<'job.ack'>): Promise<void> {
    const { journal, results } = this.#options;
    const known = journal.find(tokenId, jobId, attempt);
    if (known === undefined) throw jobNotFound();
    const end = this.#attempts.endOf(tokenId, known.job);
    if (end === undefined) {
      throw new AppError('INVALID_ARGUMENT', 'The job has not ended. Cancel it first, or wait for its result.');
    }
    if (end.state === 'done' && sha256 !== undefined && sha256 !== end.result.sha256) {
      throw new AppError('INVALID_ARGUMENT', 'The SHA-256 is not that of the result. It is kept; fetch it again.');
    }
    const line = known.isAcked ? Promise.resolve() : journal.acked(tokenId, { jobId, attempt });
    const isKept = await line.then(
      () => true,
      () => false,
    );
    await results.delete(tokenId, jobId, attempt);
    if (isKept) return;
    const kept = this.#untilKept(() => journal.acked(tokenId, { jobId, attempt }));
    this.#attempts.acknowledge(tokenId, { jobId, attempt }, kept);
    this.#keep(kept.catch(() => undefined)); // only when the agent stops
  }

  /** Ends and deletes everything of a token. */
  async forget(tokenId: string): Promise<void> {
    const { journal, results, inputs } = this.#options;
    for (const active of this.#attempts.active()) if (active.tokenId === tokenId) await this.#cancelAttempt(active);
    await journal.forget(tokenId);
    await results.deleteToken(tokenId);
    await inputs.deleteToken(tokenId);
  }

  /** What has not started ends at once, what runs has its grace; both as INTERRUPTED. Nothing runs when it resolves. */
  async shutdown({ jobGraceMs }: { jobGraceMs: number }): Promise<void> {
    this.#isStopping = true;
    const active = this.#attempts.active();
    const reason = new AppError('INTERRUPTED', 'The agent is stopping. The job can be taken on another host.');
    for (const each of active) each.stop.abort(reason);
    const grace = new AbortController();
    const ended = Promise.all(active.map((each) => each.ended)).finally(() => grace.abort());
    await pause(active.length === 0 ? 0 : jobGraceMs, grace.signal);
    for (const each of active) each.abandon.abort(reason);
    await ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.shutdown({ jobGraceMs: 0 });
    this.#closing.abort();
    await Promise.all(this.#background);
  }

  async #begin(slotId: string, active: ActiveJob): Promise<void> {
    const { job } = active;
    try {
      await active.journaled;
      await this.#run(slotId, active);
      await active.cancelKept;
    } catch (error) {
      // A take that could not be journaled was refused to the bridge; nothing else comes through here but a full disk.
      this.#options.log.warn({ event: 'job-end-not-journaled', ...keyFields(job), reason: toAppError(error).message });
    } finally {
      this.#attempts.remove(active);
      this.#leave(slotId, active);
    }
  }

  async #run(slotId: string, active: ActiveJob): Promise<void> {
    const { tokenId, job } = active;
    const { residency, inputs, results, hostname, isSimulated, inputSilenceMs } = this.#options;
    const parts = { servers: residency, inputs, results, hostname, isSimulated, inputSilenceMs };
    try {
      const result = await runJob(parts, {
        job,
        tokenId,
        slotId,
        turn: active.ahead,
        beforeRun: active.stop.signal,
        always: active.abandon.signal,
        isDropped: () => active.isCancelled,
        on: this.#events(slotId, active),
      });
      if (result !== undefined) await this.#done(active, result);
    } catch (error) {
      this.#leave(slotId, active); // a full disk may delay the line that says so, but not the next job
      await this.#failed(active, error);
    }
  }

  #events(slotId: string, active: ActiveJob): JobEvents {
    return {
      detail: (detail) => active.progress({ detail }),
      started: () => {
        active.startedMs = performance.now();
        active.progress({ detail: '' });
        this.#options.onStarted(slotId, active);
      },
      step: (step, steps) => active.progress({ step, steps }),
      engineEnded: ({ runMs }) => {
        this.#options.onServed(active, runMs);
        this.#leave(slotId, active);
      },
    };
  }

  #leave(slotId: string, active: ActiveJob): void {
    active.leave();
    this.#options.onLeft(slotId, active);
  }

  async #done(active: ActiveJob, result: JobResult): Promise<void> {
    const { tokenId, job } = active;
    const { results, notify, log } = this.#options;
    if (active.isCancelled) {
      await results.delete(tokenId, job.jobId, job.attempt);
      return;
    }
    active.isEnding = true;
    const end: JobEnd = { state: 'done', result };
    await this.#journalEnd(active, end);
    active.end = end;
    this.tally.done(job.request.model, result.runMs);
    log.info({ event: 'job-done', ...keyFields(job), runMs: Math.round(result.runMs), bytes: result.bytes });
    notify(tokenId, { method: 'job.done', params: { ...keyFields(job), result } });
  }

  async #failed(active: ActiveJob, cause: unknown): Promise<void> {
    if (active.isCancelled) return;
    const { job, tokenId } = active;
    const { notify, log } = this.#options;
    const stopped: unknown = active.startedMs === undefined ? active.stop.signal.reason : active.abandon.signal.reason;
    const error = toAppError(stopped ?? cause);
    if (error.code === 'INTERNAL') log.error({ event: 'job-defect', ...keyFields(job), err: cause });
    const { code, retryable } = error;
    const message = printable(error.message);
    active.end = { state: 'failed', error: { code, message, retryable } };
    this.tally.failed(job.request.model, code);
    log.warn({ event: 'job-failed', ...keyFields(job), code, reason: message });
    // Told before it is journaled: if the line is lost, a restart says INTERRUPTED, which means the same to the bridge.
    notify(tokenId, { method: 'job.failed', params: { ...keyFields(job), error: active.end.error } });
    await this.#journalEnd(active, active.end);
  }

  async #cancelAttempt(active: ActiveJob): Promise<void> {
    await active.journaled.catch(() => undefined); // its take was refused, and said why
    if (!this.#attempts.isActive(active)) return;
    if (active.isEnding) return await active.ended; // `done` wins over a later cancel
    if (active.end !== undefined) return;
    const { job, tokenId } = active;
    active.end = { state: 'cancelled' };
    active.stop.abort(new AppError('INTERRUPTED', 'The job was cancelled.'));
    this.#options.notify(tokenId, { method: 'job.cancelled', params: keyFields(job) });
    this.tally.cancelled(job.request.model);
    this.#options.log.info({ event: 'job-cancelled', ...keyFields(job) });
    this.#options.onChange();
    // A full disk delays the line, not the answer.
    active.cancelKept = this.#journalEnd(active, active.end);
    active.cancelKept.catch(() => undefined); // seen when the job leaves
  }

  async #journalEnd({ tokenId, job }: ActiveJob, end: JobEnd): Promise<void> {
    await this.#untilKept(() => this.#options.journal.ended(tokenId, job, end));
  }

  /** A full disk delays a line; it is not lost while the agent lives. */
  async #untilKept(write: () => Promise<void>): Promise<void> {
    for (;;) {
      try {
        return await write();
      } catch (error) {
        if (this.#isStopping) throw error;
        this.#options.onChange();
        await pause(RETRY_EVERY_MS, this.#closing.signal);
      }
    }
  }

  #taken(tokenId: string, job: Job): Result<'job.take'> {
    const inputs = job.request.kind === 'edit' ? job.request.inputs : [];
    const missingInputs = inputs.filter((sha256) => !this.#options.inputs.has(tokenId, sha256));
    return { job: this.#attempts.stateOf(tokenId, job), missingInputs };
  }

  /** Work that goes on beside the next job is awaited at the end. */
  #keep(work: Promise<void>): void {
    const kept = work.finally(() => this.#background.delete(kept));
    this.#background.add(kept);
  }
}

function keyFields({ jobId, attempt }: Job): { jobId: string; attempt: number } {
  return { jobId, attempt };
}

/** An engine's own words may be in it: nothing that a terminal would obey, and no more than a screen of it, leaves. */
function printable(text: string): string {
  return text.replace(/[^\P{Cc}\n]/gu, ' ').slice(0, 2_000);
}
