import { performance } from 'node:perf_hooks';
import { pause } from '../../shared/abort.ts';
import { backoffMs } from '../../shared/backoff.ts';
import { AppError, toAppError } from '../../shared/errors.ts';
import type { AgentJob, Params } from '../../shared/protocol.ts';
import type { AgentLink } from './agent-link.ts';
import type { BatchBook } from './batch-book.ts';
import { findAttempt, nextAttempt } from './job-record.ts';
import type { JobRecord } from './job-record.ts';
import { isAt } from './job-state.ts';
import type { JobState, Place } from './job-state.ts';

/** A grant the plan said yes to. */
export type Taking = { host: string; grantId: string; slotId: string; endsInMs: number; routing: string };

type TakerEvents = {
  onAgentJob: (host: string, said: AgentJob) => void;
  /** The attempt is over before the host accepted it, and no other take will change that. */
  onRefused: (job: JobRecord, o: { place: Place; error: AppError }) => void;
  /** The job cannot be done at all. */
  onHopeless: (job: JobRecord, error: AppError) => Promise<void>;
};

const UPLOAD_TRIES = 3;
const UPLOAD_RETRY = { firstMs: 500, maxMs: 5_000 };
/** Refusals of a take that no other take will change. */
const FINAL_REFUSALS = new Set(['INVALID_ARGUMENT', 'JOB_CONFLICT', 'INPUT_INVALID', 'INTERNAL']);

/** Binds jobs to granted slots: `sent` on the disk, then job.take, then the inputs that the host lacks. */
export class JobTaker {
  readonly #book: BatchBook;
  readonly #events: TakerEvents;

  constructor(book: BatchBook, events: TakerEvents) {
    this.#book = book;
    this.#events = events;
  }

  /** The job is taken at once, so that no other grant can get it; the rest runs in the background. */
  take(job: JobRecord, taking: Taking): void {
    const place: Place = { host: taking.host, attempt: nextAttempt(job) };
    const state: JobState = { kind: 'taking', at: place };
    this.#book.enter(job, state);
    const isSwap = this.#isSwap(job, taking.host);
    job.attempts.push({ ...place, ...(isSwap && { isSwap }) });
    job.routing = taking.routing;
    job.startedInMs = this.#book.inMs();
    job.slotId = taking.slotId;
    job.holding = { host: taking.host, slotId: taking.slotId, endsAtMs: performance.now() + taking.endsInMs };
    job.progress = { step: 0, steps: 0, detail: `asking ${taking.host}` };
    job.missingInputs = [];
    this.#book.own(job, this.#take(job, { state, place, taking, isSwap }));
  }

  /** Sends the inputs that the host of this attempt lacks, as long as it wants them. */
  async upload(job: JobRecord, place: Place): Promise<void> {
    for (const sha256 of [...job.missingInputs]) {
      const path = job.inputFiles[job.request.kind === 'edit' ? job.request.inputs.indexOf(sha256) : -1];
      if (path === undefined) throw new Error(`job ${job.jobId} has no file for input ${sha256}`);
      if (!(await this.#uploadOne(job, { place, sha256, path }))) return;
      job.missingInputs = job.missingInputs.filter((one) => one !== sha256);
    }
  }

  async #take(job: JobRecord, o: { state: JobState; place: Place; taking: Taking; isSwap: boolean }): Promise<void> {
    const { place, taking } = o;
    const { life, side } = this.#book;
    const isWritten = await this.#writeSent(job, o);
    const link = side.link(place.host);
    if (link === undefined) return;
    if (!isWritten || job.state !== o.state) {
      // Cancelled, or the link was lost meanwhile: the slot need not wait until the grant expires.
      await link.request('slot.decline', { grantId: taking.grantId }, life).catch(() => undefined);
      return;
    }
    const params: Params<'job.take'> = {
      grantId: taking.grantId,
      job: { jobId: job.jobId, attempt: place.attempt, class: this.#book.header.class, request: job.request },
    };
    try {
      const { job: said, missingInputs } = await link.request('job.take', params, life);
      job.missingInputs = missingInputs;
      this.#events.onAgentJob(place.host, said);
    } catch (error) {
      if (!life.aborted) this.#onTakeError(job, { ...o, link, error: toAppError(error) });
      return;
    }
    if (job.missingInputs.length > 0) await this.upload(job, place);
  }

  async #writeSent(
    job: JobRecord,
    o: { state: JobState; place: Place; taking: Taking; isSwap: boolean },
  ): Promise<boolean> {
    const { place, taking, isSwap } = o;
    const sentInMs = job.startedInMs ?? this.#book.inMs();
    const { routing } = taking;
    try {
      await this.#book.append([
        { type: 'sent', jobId: job.jobId, ...place, sentInMs, routing, ...(isSwap && { isSwap }) },
      ]);
      return true;
    } catch (error) {
      const { message } = toAppError(error);
      const why = `The manifest of the batch cannot be written in ${this.#book.directory}: ${message}. Free some space.`;
      this.#book.pauseBy(new AppError('DISK_FULL', why, { cause: error }));
      this.#giveBack(job, o);
      return false;
    }
  }

  /** A model that is not up gets one grant, so that its load or wake is counted once. */
  #isSwap(job: JobRecord, host: string): boolean {
    const view = this.#book.side.hosts().find(({ name }) => name === host);
    const model = view?.snapshot?.models.find((one) => one.model === job.request.model);
    return model !== undefined && model.state !== 'ready';
  }

  #onTakeError(job: JobRecord, o: { state: JobState; place: Place; link: AgentLink; error: AppError }): void {
    const { place, link, error } = o;
    if (error.code === 'TIMEOUT') link.restart('job.take was not answered');
    // The end of the link makes the job unsure, and the next hello tells whether the host has it.
    if (error.code === 'TIMEOUT' || error.code === 'AGENT_UNREACHABLE') return;
    if (FINAL_REFUSALS.has(error.code)) return this.#events.onRefused(job, { place, error });
    this.#giveBack(job, o);
    if (error.code !== 'GRANT_EXPIRED') this.#book.side.holdOff(place.host, error);
    this.#book.note({ type: 'refused', jobId: job.jobId, ...place, code: error.code });
  }

  /** The host has not accepted it, that is sure. */
  #giveBack(job: JobRecord, { state, place }: { state: JobState; place: Place }): void {
    const attempt = findAttempt(job, place);
    if (attempt !== undefined) attempt.end ??= { kind: 'refused' };
    // Where the link was lost meanwhile: nobody has it, and no hello would ever say so.
    const isUnsure = job.state.kind === 'unsure' && isAt(job.state, place);
    if (job.state !== state && !isUnsure) return;
    this.#book.enter(job, { kind: 'waiting' });
    job.progress = { step: 0, steps: 0, detail: '' };
  }

  async #uploadOne(job: JobRecord, o: { place: Place; sha256: string; path: string }): Promise<boolean> {
    const { life, side } = this.#book;
    for (let failures = 0; failures < UPLOAD_TRIES;) {
      const link = side.link(o.place.host);
      if (life.aborted || link?.isUp !== true || !isAt(job.state, o.place)) return false;
      job.progress = { ...job.progress, detail: `sending an input image to ${o.place.host}` };
      try {
        await link.transfers.uploadInput(o.sha256, { path: o.path, signal: life });
        return true;
      } catch (error) {
        if (life.aborted || !isAt(job.state, o.place)) return false;
        const failure = toAppError(error);
        if (!failure.retryable) {
          await this.#events.onHopeless(job, failure);
          return false;
        }
        failures += 1;
        await pause(backoffMs(failures, { ...UPLOAD_RETRY, random: Math.random() }), life);
      }
    }
    return false; // the host gives the job back as INPUT_MISSING
  }
}
