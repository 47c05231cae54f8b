import { randomUUID } from 'node:crypto';
import { mkdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { untilAborted } from '../../shared/abort.ts';
import { AppError, toAppError } from '../../shared/errors.ts';
import type { JobError, JobRequest } from '../../shared/job.ts';
import type { AgentJob } from '../../shared/protocol.ts';
import { estimateMs, workUnits } from '../../shared/service-time.ts';
import { sweepParts } from '../output/image-file.ts';
import { BatchBook } from './batch-book.ts';
import type { FleetSide } from './batch-book.ts';
import { BatchLock } from './batch-lock.ts';
import type { LockHolder } from './batch-lock.ts';
import type { BatchOrder } from './batch-order.ts';
import type { PlanJob, PlanRules } from './batch-plan.ts';
import { batchQuality } from './batch-quality.ts';
import type { BatchQuality } from './batch-quality.ts';
import { etaMs, explainer, qualityHosts, serviceOnHost, stillRunningOn } from './batch-report.ts';
import { batchState, countEnds, jobView } from './batch-view.ts';
import type { BatchView } from './batch-view.ts';
import { JobFetcher } from './job-fetcher.ts';
import type { Fetched } from './job-fetcher.ts';
import { enterState, findAttempt, newRecord, openAttempts } from './job-record.ts';
import type { Attempt, JobRecord } from './job-record.ts';
import { JobSettler } from './job-settler.ts';
import { isAt, isFetching, isInFlight, isOver, placeOf } from './job-state.ts';
import type { Place } from './job-state.ts';
import { JobTaker } from './job-taker.ts';
import type { Taking } from './job-taker.ts';
import { ManifestState } from './manifest-lines.ts';
import type { ManifestHeader, ManifestLine } from './manifest-lines.ts';
import { Manifest } from './manifest.ts';
import { afterFailure, hostsToAvoid, MAX_FAILURES } from './retry-policy.ts';

/** A timer this late means that the laptop slept: silences are counted anew. */
const SLEPT_MS = 20_000;
const LOOK_MS = 1_000;

/**
 * The jobs of one call, from waiting to done. It holds the batch's lock and is the only writer of its manifest; disposing
 * it leaves the batch for the next bridge, with accepted jobs running on.
 */
export class Batch implements AsyncDisposable {
  readonly #book: BatchBook;
  readonly #taker: JobTaker;
  readonly #fetcher: JobFetcher;
  readonly #settler: JobSettler;
  readonly #asking = new Set<Attempt>();
  readonly #whenEnded: Promise<void>;
  #markEnded: () => void = () => undefined;
  #end: { elapsedMs: number; quality: BatchQuality | undefined } | undefined;
  #isLost = false;
  #lastTickMs = performance.now();
  #lastLookMs = 0;

  private constructor(book: BatchBook) {
    this.#book = book;
    this.#settler = new JobSettler(book);
    this.#taker = new JobTaker(book, {
      onAgentJob: (host, said) => this.onAgentJob(host, said),
      onRefused: (job, { place, error }) => this.#onAttemptFailed(job, { place, error: jobError(error) }),
      onHopeless: (job, error) => this.#fail(job, error),
    });
    this.#fetcher = new JobFetcher(book, {
      onSaved: (job, fetched) => this.#onSaved(job, fetched),
      onUnsure: (job, place) => this.#makeUnsure(job, place),
      onLost: (job, place) => this.#lose(job, place),
      onDamaged: (job, { place, error }) => this.#onAttemptFailed(job, { place, error: damaged(error) }),
    });
    book.onBroken = (job, error) => this.#fail(job, error);
    this.#whenEnded = new Promise((resolve) => {
      this.#markEnded = resolve;
    });
  }

  /** A new batch. When this resolves it is durable: it survives this process. */
  static async create(order: BatchOrder, { root, side }: { root: string; side: FleetSide }): Promise<Batch> {
    const batchId = randomUUID();
    const directory = join(root, batchId);
    const header: ManifestHeader = {
      type: 'batch',
      version: 1,
      batchId,
      kind: order.kind,
      class: order.class,
      order: order.order,
      maxConcurrent: order.maxConcurrent ?? null,
      host: order.host ?? null,
      client: order.client,
      createdAt: new Date().toISOString(),
      total: order.jobs.length,
    };
    const jobs = order.jobs.map((job) => newRecord({ ...job, jobId: randomUUID(), inputFiles: job.inputFiles ?? [] }));
    try {
      await mkdir(directory, { recursive: true, mode: 0o700 });
      const lock = await BatchLock.acquire(directory, { pid: process.pid, client: order.client });
      if (!(lock instanceof BatchLock)) throw new Error(`the lock of the new batch ${batchId} is taken`);
      const lines = [header, ...jobs.map(jobLine)];
      const manifest = await Manifest.create(join(directory, 'manifest.jsonl'), lines).catch(async (error: unknown) => {
        await lock[Symbol.asyncDispose]();
        throw error;
      });
      return new Batch(new BatchBook({ directory, header, jobs, manifest, lock, side, ageMs: 0 }));
    } catch (error) {
      throw notWritten(directory, error);
    }
  }

  /** Goes on with a batch nobody works on. What is done is not done again. Undefined when another process has its lock. */
  static async resume(
    directory: string,
    { side, holder }: { side: FleetSide; holder: LockHolder },
  ): Promise<Batch | undefined> {
    const lock = await BatchLock.acquire(directory, holder);
    if (!(lock instanceof BatchLock)) return undefined;
    const { manifest, lines, damaged: lost } = await Manifest.resume(join(directory, 'manifest.jsonl'));
    const state = new ManifestState();
    for (const line of lines) state.apply(line);
    const { header, jobs } = state;
    if (header === undefined || state.ended !== undefined) {
      await manifest[Symbol.asyncDispose]();
      await lock[Symbol.asyncDispose]();
      return undefined;
    }
    if (lost > 0) side.log.warn({ event: 'manifest-damaged', batchId: header.batchId, lines: lost });
    const ageMs = Math.max(0, Date.now() - Date.parse(header.createdAt));
    const batch = new Batch(new BatchBook({ directory, header, jobs, manifest, lock, side, ageMs }));
    for (const job of jobs) await batch.#restore(job);
    for (const target of new Set(jobs.map((job) => job.directory))) await sweepParts(target);
    side.log.info({ event: 'batch-resumed', batchId: header.batchId, jobs: jobs.length });
    await batch.#endIfOver();
    return batch;
  }

  get id(): string {
    return this.#book.header.batchId;
  }

  get header(): ManifestHeader {
    return this.#book.header;
  }

  get isEnded(): boolean {
    return this.#end !== undefined;
  }

  /** Another process has the lock: this one must not touch the batch any more. */
  get isLost(): boolean {
    return this.#isLost;
  }

  get isClosed(): boolean {
    return this.#book.isClosed;
  }

  has(jobId: string): boolean {
    return this.#book.job(jobId) !== undefined;
  }

  requestOf(jobId: string): JobRequest | undefined {
    return this.#book.job(jobId)?.request;
  }

  /** Jobs that may be offered now: none while saving is impossible, and none over max_concurrent. */
  get waiting(): readonly JobRecord[] {
    if (this.#book.pausedBy !== undefined || this.isEnded) return [];
    const waiting = this.#book.inOrder.filter(({ state }) => state.kind === 'waiting');
    const { maxConcurrent } = this.header;
    return maxConcurrent === null ? waiting : waiting.slice(0, Math.max(0, maxConcurrent - this.inFlight.length));
  }

  get inFlight(): readonly JobRecord[] {
    return this.#book.jobs.filter(({ state }) => isInFlight(state));
  }

  /** All that waits for this model, in the order of the plan; nothing while no job may be taken. */
  planJobs(model: string): (PlanJob & { index: number })[] {
    if (this.waiting.length === 0) return [];
    const nowMs = performance.now();
    return this.#book.inOrder
      .filter((job) => job.state.kind === 'waiting' && job.request.model === model)
      .map((job) => ({
        jobId: job.jobId,
        index: job.index,
        class: this.header.class,
        units: workUnits(job.request),
        rules: this.rulesOf(job),
        declinedForMs: job.declinedSinceMs === undefined ? 0 : nowMs - job.declinedSinceMs,
      }));
  }

  rulesOf(job: JobRecord): PlanRules {
    const { rules } = this.#book;
    if (job.attempts.length === 0) return rules;
    const avoid = hostsToAvoid(job.attempts, this.#book.capableHosts(job));
    return avoid.length === 0 ? rules : { ...rules, avoid };
  }

  markDeclined(jobId: string): void {
    const job = this.#book.job(jobId);
    if (job !== undefined) job.declinedSinceMs ??= performance.now();
  }

  take(jobId: string, taking: Taking): void {
    const job = this.#book.job(jobId);
    if (job?.state.kind !== 'waiting') throw new Error(`job ${jobId} is not waiting`);
    this.#taker.take(job, taking);
  }

  /** What a host has of this batch, as its hello says. Jobs of other batches in it are ignored. */
  onHello(host: string, listed: readonly AgentJob[]): void {
    const ours = listed.filter(({ jobId }) => this.has(jobId));
    this.#settler.renew(host);
    for (const one of ours) this.onAgentJob(host, one);
    for (const job of this.#book.jobs) {
      for (const attempt of openAttempts(job)) {
        if (attempt.host !== host || isFetching(job.state)) continue;
        if (ours.some((one) => one.jobId === job.jobId && one.attempt === attempt.attempt)) continue;
        this.#lose(job, attempt);
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
        if (said.result === undefined) this.#ask(job, place);
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

  onProgress(
    host: string,
    said: { jobId: string; attempt: number; step: number; steps: number; detail: string },
  ): void {
    const job = this.#book.job(said.jobId);
    if (job === undefined || !isAt(job.state, { host, attempt: said.attempt })) return;
    const { step, steps, detail } = said;
    if (job.progress.steps === 0 && steps > 0 && job.holding !== undefined) {
      const service = serviceOnHost(this.#book, { host, model: job.request.model });
      if (service !== undefined) job.holding.endsAtMs = performance.now() + estimateMs(service, job.request);
    }
    job.progress = { step, steps, detail };
    this.#book.notify();
  }

  /** The link to a host is gone: what it has of ours is unsure until its next hello. */
  onDown(host: string): void {
    for (const job of this.#book.jobs) {
      const { state } = job;
      const isThere = state.kind === 'taking' || state.kind === 'accepted' || state.kind === 'running';
      if (isThere && state.at.host === host) this.#makeUnsure(job, state.at);
    }
  }

  /** Called a few times a second while the batch is not over. */
  tick(): void {
    const nowMs = performance.now();
    const hasSlept = nowMs - this.#lastTickMs > SLEPT_MS;
    this.#lastTickMs = nowMs;
    for (const job of this.#book.jobs) if (job.state.kind === 'unsure') this.#tickUnsure(job, { nowMs, hasSlept });
    if (nowMs - this.#lastLookMs < LOOK_MS || this.isEnded) return;
    this.#lastLookMs = nowMs;
    this.#book.own(undefined, this.#look());
  }

  view(): BatchView {
    const book = this.#book;
    const explain = explainer(book);
    return {
      batchId: this.id,
      kind: this.header.kind,
      state: this.isEnded ? batchState(book.jobs) : 'running',
      createdAt: this.header.createdAt,
      jobs: book.jobs.map((job) => jobView(job, { detail: explain(job), stillRunningOn: stillRunningOn(book, job) })),
      ...countEnds(book.jobs),
      total: book.jobs.length,
      etaMs: this.isEnded ? 0 : etaMs(book),
      elapsedMs: this.#end?.elapsedMs ?? book.inMs(),
      ...(this.#end?.quality !== undefined && { quality: this.#end.quality }),
      isOurs: true,
    };
  }

  /** Until all jobs are over. Rejects with the signal's reason, or INTERRUPTED when this bridge lets go of the batch. */
  async wait(signal: AbortSignal): Promise<BatchView> {
    if (!this.isEnded) await untilAborted(untilAborted(this.#whenEnded, this.#book.life), signal);
    return this.view();
  }

  /** Called after each change; returns how to stop that. */
  onChange(listener: () => void): () => void {
    return this.#book.onChange(listener);
  }

  /** Ends the batch, or the named jobs of it. At once here; a running engine finishes first, and its result is dropped. */
  async cancel(jobIds?: readonly string[]): Promise<BatchView> {
    const book = this.#book;
    const chosen = book.jobs.filter(({ jobId }) => jobIds === undefined || jobIds.includes(jobId));
    const lines: ManifestLine[] = [];
    for (const job of chosen) {
      if (isOver(job.state) || job.state.kind === 'saving') continue; // done wins
      const wasRunning = job.state.kind === 'running' || job.state.kind === 'unsure';
      const ranAt = wasRunning ? placeOf(job.state) : undefined;
      this.#fetcher.stop(job);
      book.enter(job, { kind: 'cancelled', ranAt });
      this.#settler.settleAll(job);
      lines.push({ type: 'cancelled', jobId: job.jobId, endedInMs: job.endedInMs ?? book.inMs() });
    }
    if (lines.length > 0) await book.record(lines);
    await this.#endIfOver();
    return this.view();
  }

  /** Gives the lock back once the batch is over. The view stays. */
  async close(): Promise<void> {
    await this.#book.close();
  }

  /** Lets go: nothing of it runs here afterwards, and another process may resume it. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#book[Symbol.asyncDispose]();
  }

  #onUnderWay(job: JobRecord, o: { place: Place; state: 'accepted' | 'running' }): void {
    const { state } = job;
    // Another attempt is under way elsewhere: a race, which the first verified result wins.
    if (state.kind !== 'waiting' && !isAt(state, o.place)) return;
    if (isFetching(state) || state.kind === 'running' || state.kind === o.state) return;
    const isBack = state.kind === 'unsure' || state.kind === 'waiting';
    this.#book.enter(job, { kind: o.state, at: o.place });
    if (!isBack) return;
    job.progress = { ...job.progress, detail: `${o.state} on ${o.place.host}` };
    if (o.state === 'accepted' && job.missingInputs.length > 0) {
      this.#book.own(job, this.#taker.upload(job, o.place));
    }
  }

  #onAttemptFailed(job: JobRecord, { place, error }: { place: Place; error: JobError }): void {
    const attempt = findAttempt(job, place);
    if (attempt === undefined) throw new Error(`job ${job.jobId} has no attempt ${place.attempt} on ${place.host}`);
    const isCurrent = isAt(job.state, place);
    // Without a step done, the server died while it was started, and not by this job.
    const serverDied = error.code === 'MODEL_FAILED' && isCurrent && job.progress.steps > 0;
    attempt.end = { kind: 'failed', error, serverDied };
    this.#book.side.log.info({ event: 'attempt-failed', jobId: job.jobId, ...place, code: error.code, serverDied });
    const lines: ManifestLine[] = [{ type: 'attempt-failed', jobId: job.jobId, ...place, error, serverDied }];
    if (isCurrent) lines.push(...this.#decideAfterFailure(job, error));
    this.#book.own(job, this.#concludeFailure(job, { attempt, lines }));
  }

  #decideAfterFailure(job: JobRecord, error: JobError): ManifestLine[] {
    const next = afterFailure(job.attempts, this.#book.capableHosts(job));
    if (next.kind === 'failed') {
      this.#book.enter(job, { kind: 'failed', error: next.error });
      return [{ type: 'failed', jobId: job.jobId, error: next.error, endedInMs: job.endedInMs ?? this.#book.inMs() }];
    }
    this.#book.enter(job, { kind: 'waiting' });
    const failures = job.attempts.filter(({ end }) => end?.kind === 'failed').length;
    const detail = `attempt ${failures + 1} of ${MAX_FAILURES}: ${error.message}`;
    job.progress = { step: 0, steps: 0, detail };
    return [];
  }

  async #concludeFailure(job: JobRecord, o: { attempt: Attempt; lines: ManifestLine[] }): Promise<void> {
    await this.#book.record(o.lines);
    this.#settler.settle(job, o.attempt, 'failed');
    if (isOver(job.state)) this.#settler.settleAll(job);
    await this.#endIfOver();
  }

  async #onSaved(job: JobRecord, { place, result, path, previewPath }: Fetched): Promise<void> {
    // A file found on the disk was saved by an earlier try or process: its job goes the same way, only quicker.
    if (job.state.kind === 'fetching') enterState(job, { kind: 'saving', at: place, result });
    this.#book.enter(job, { kind: 'done', at: place, result, path, previewPath });
    job.progress = { ...job.progress, detail: '' };
    const attempt = findAttempt(job, place);
    if (attempt !== undefined) {
      attempt.end = { kind: 'saved' };
      this.#settler.settle(job, attempt, 'done');
    }
    this.#settler.settleAll(job);
    await this.#endIfOver();
  }

  async #fail(job: JobRecord, error: AppError): Promise<void> {
    this.#book.enter(job, { kind: 'failed', error: jobError(error) });
    this.#settler.settleAll(job);
    const endedInMs = job.endedInMs ?? this.#book.inMs();
    await this.#book.record([{ type: 'failed', jobId: job.jobId, error: jobError(error), endedInMs }]);
    await this.#endIfOver();
  }

  #makeUnsure(job: JobRecord, place: Place): void {
    const sinceMs = this.#book.side.link(place.host)?.lastHeardMs ?? performance.now();
    this.#book.enter(job, { kind: 'unsure', at: place, sinceMs });
    const detail = `the link to ${place.host} is lost; waiting to hear what became of it`;
    job.progress = { ...job.progress, detail };
  }

  /** After the silence the job may be taken elsewhere; the attempt stays open, because its host may still come back with it. */
  #tickUnsure(job: JobRecord, { nowMs, hasSlept }: { nowMs: number; hasSlept: boolean }): void {
    const { state } = job;
    if (state.kind !== 'unsure') return;
    const link = this.#book.side.link(state.at.host);
    if (link?.isUp) return this.#ask(job, state.at);
    // Nobody could be heard while this machine slept, so the clock of the silence starts anew.
    if (hasSlept) job.state = { ...state, sinceMs: nowMs };
    else if (nowMs - Math.max(state.sinceMs, link?.lastHeardMs ?? 0) >= this.#book.side.times.silenceMs) {
      this.#book.enter(job, { kind: 'waiting' });
      job.progress = { step: 0, steps: 0, detail: '' };
    }
  }

  /** Unsure although the link is up, or a result that was not told. */
  #ask(job: JobRecord, place: Place): void {
    const attempt = findAttempt(job, place);
    const link = this.#book.side.link(place.host);
    if (attempt === undefined || link === undefined || this.#asking.has(attempt)) return;
    this.#asking.add(attempt);
    const asking = link
      .request('job.get', { jobId: job.jobId }, this.#book.life)
      .then(
        (said) => this.onAgentJob(place.host, said),
        (error: unknown) => {
          const isGone = toAppError(error).code === 'JOB_NOT_FOUND';
          if (isGone && attempt.end === undefined && !isFetching(job.state)) this.#lose(job, place);
        },
      )
      .finally(() => this.#asking.delete(attempt));
    this.#book.own(job, asking);
  }

  /** The host does not know the attempt (any more). */
  #lose(job: JobRecord, place: Place): void {
    const attempt = findAttempt(job, place);
    if (attempt !== undefined) attempt.end ??= { kind: 'lost' };
    if (isOver(job.state)) return;
    if (isAt(job.state, place)) {
      this.#book.enter(job, { kind: 'waiting' });
      job.progress = { step: 0, steps: 0, detail: '' };
    }
    this.#book.note({ type: 'lost', jobId: job.jobId, host: place.host, attempt: place.attempt });
  }

  async #restore(job: JobRecord): Promise<void> {
    if (isOver(job.state)) return;
    const last = openAttempts(job).at(-1);
    const place = last && { host: last.host, attempt: last.attempt };
    const saved = await this.#fetcher.findSaved(job);
    // Not events, so not by the table: the manifest tells where the job was when the other process ended.
    if (saved !== undefined) {
      job.state = { kind: 'saving', at: saved.place, result: saved.result };
      return await this.#fetcher.finish(job, saved);
    }
    job.state = place === undefined ? { kind: 'waiting' } : { kind: 'unsure', at: place, sinceMs: performance.now() };
    job.missingInputs = job.request.kind === 'edit' ? job.request.inputs : [];
  }

  /** Files by which other processes ask for an end, and whether the lock is still ours. */
  async #look(): Promise<void> {
    const { directory, lock } = this.#book;
    if (!lock.isHeld) {
      this.#book.warn('lock-lost', 'another process has the lock of this batch; it goes on there');
      this.#isLost = true;
      this.#book.letGo('Another process works on this batch now.');
      return;
    }
    if ((await stat(join(directory, 'cancel')).catch(() => undefined)) !== undefined) {
      await this.cancel();
      return;
    }
    const text = await readFile(join(directory, 'cancel-jobs'), 'utf8').catch(() => '');
    const jobIds = text.slice(0, text.lastIndexOf('\n') + 1).split('\n');
    if (jobIds.some((id) => this.has(id))) await this.cancel(jobIds);
  }

  async #endIfOver(): Promise<void> {
    const book = this.#book;
    const state = batchState(book.jobs);
    if (this.isEnded || state === 'running') return;
    const elapsedMs = book.inMs();
    const makespanMs = Math.max(0, ...book.jobs.map(({ endedInMs }) => endedInMs ?? 0));
    const quality = batchQuality(book.jobs, { makespanMs, hosts: qualityHosts(book) });
    this.#end = { elapsedMs, quality };
    book.side.log.info({ event: 'batch-ended', batchId: this.id, state, elapsedMs, ...quality });
    await book.record([{ type: 'ended', state, elapsedMs, quality: quality ?? null }]);
    this.#markEnded();
    book.changed();
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

function jobLine(job: JobRecord): ManifestLine {
  const { jobId, index, request, inputFiles, directory, name } = job;
  return { type: 'job', jobId, index, request, inputFiles: [...inputFiles], directory, name: name ?? null };
}

function notWritten(directory: string, error: unknown): AppError {
  const { message } = toAppError(error);
  const isFull = error instanceof Error && 'code' in error && (error.code === 'ENOSPC' || error.code === 'EDQUOT');
  const why = `The batch could not be written to ${directory}: ${message}. Nothing was started; free some space or mend the directory.`;
  return new AppError(isFull ? 'DISK_FULL' : 'SAVE_FAILED', why, { cause: error });
}
