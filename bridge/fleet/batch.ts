import { randomUUID } from 'node:crypto';
import { mkdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { pause, untilAborted } from '../../shared/abort.ts';
import { backoffMs } from '../../shared/backoff.ts';
import { AppError, toAppError } from '../../shared/errors.ts';
import type { JobError, JobResult } from '../../shared/job.ts';
import type { Log } from '../../shared/log.ts';
import type { AgentJob, Params } from '../../shared/protocol.ts';
import { estimateMs, workUnits } from '../../shared/service-time.ts';
import { sweepParts } from '../output/image-file.ts';
import type { AgentLink } from './agent-link.ts';
import { BatchLock } from './batch-lock.ts';
import type { LockHolder } from './batch-lock.ts';
import type { BatchOrder } from './batch-order.ts';
import { forecastMs } from './batch-plan.ts';
import type { PlanJob, PlanRules } from './batch-plan.ts';
import { batchQuality } from './batch-quality.ts';
import type { BatchQuality } from './batch-quality.ts';
import { batchState, countEnds, jobView } from './batch-view.ts';
import type { BatchView } from './batch-view.ts';
import { capableHost, serviceOn } from './host-forecast.ts';
import type { BridgeTimes, HostView } from './host-view.ts';
import { enterState, findAttempt, newRecord, nextAttempt, openAttempts } from './job-record.ts';
import type { Attempt, Holding, JobRecord } from './job-record.ts';
import { isInFlight, isOver, placeOf } from './job-state.ts';
import type { JobState, Place } from './job-state.ts';
import { ManifestState } from './manifest-lines.ts';
import type { ManifestHeader, ManifestLine } from './manifest-lines.ts';
import { Manifest } from './manifest.ts';
import { Permits } from './permits.ts';
import { expectedFinishes, refusalText } from './placement.ts';
import { planSlots } from './plan-slots.ts';
import { fetchResult, hasContent, previewPathOf } from './result-fetch.ts';
import { afterFailure, hostsToAvoid, MAX_FAILURES } from './retry-policy.ts';

/** What a batch needs of its fleet. */
export type FleetSide = {
  readonly times: BridgeTimes;
  readonly log: Log;
  hosts: () => readonly HostView[];
  link: (host: string) => AgentLink | undefined;
  /** This bridge's jobs on slots, of all batches. */
  holdings: () => readonly Holding[];
  /** Offers depend on something that changed. */
  changed: () => void;
  /** The host refused something for a reason that may pass: no offers to it for a while. */
  holdOff: (host: string, error: AppError) => void;
  /** The refusal because of which the host gets no offers now. */
  heldOff: (host: string) => AppError | undefined;
};

/** A grant the plan said yes to. */
export type Taking = {
  host: string;
  grantId: string;
  slotId: string;
  endsInMs: number;
  routing: string;
};

/** A timer this late means that the laptop slept: silences are counted anew. */
const SLEPT_MS = 20_000;
const CANCEL_LOOK_MS = 1_000;
/** Saving waits this long at first, and this long at most, after the disk refused. */
const SAVE_RETRY = { firstMs: 500, maxMs: 30_000 };
const MAX_DAMAGED = 3;
const UPLOAD_TRIES = 3;
const FETCHES_AT_A_TIME = 4;
/** An engine that was told to cancel is shown as busy at least this long, until the host's status tells. */
const CANCEL_SEEN_MS = 1_000;

/**
 * The jobs of one call, from waiting to done, and the only writer of their manifest. It holds the batch's lock; disposing
 * leaves the batch for the next bridge, with accepted jobs running on.
 */
export class Batch implements AsyncDisposable {
  readonly header: ManifestHeader;
  readonly #directory: string;
  readonly #jobs: readonly JobRecord[];
  /** The same in the order of the plan. */
  readonly #inOrder: readonly JobRecord[];
  readonly #byId: ReadonlyMap<string, JobRecord>;
  readonly #manifest: Manifest;
  readonly #lock: BatchLock;
  readonly #side: FleetSide;
  readonly #startedMs: number;
  readonly #life = new AbortController();
  readonly #work = new Set<Promise<void>>();
  readonly #fetches = new Map<string, AbortController>();
  readonly #settling = new Set<Attempt>();
  /** Attempts whose cancel was answered, but whose engine is still busy. */
  readonly #stopping = new Set<Attempt>();
  readonly #listeners = new Set<() => void>();
  readonly #permits = new Permits(FETCHES_AT_A_TIME);
  readonly #rules: PlanRules;
  readonly #whenEnded: Promise<void>;
  #markEnded: () => void = () => undefined;
  #end: { elapsedMs: number; quality: BatchQuality | undefined } | undefined;
  #isLost = false;
  #closing: Promise<void> | undefined;
  #lastTickMs = performance.now();
  #lastLookMs = 0;
  /** Why no new work is asked for: results cannot be saved, or the manifest cannot be written. */
  #pausedBy: AppError | undefined;

  private constructor(o: {
    directory: string;
    header: ManifestHeader;
    jobs: readonly JobRecord[];
    manifest: Manifest;
    lock: BatchLock;
    side: FleetSide;
    ageMs: number;
  }) {
    this.header = o.header;
    this.#directory = o.directory;
    this.#jobs = o.jobs;
    this.#inOrder = o.header.order === 'fifo' ? o.jobs : longestFirst(o.jobs);
    this.#byId = new Map(o.jobs.map((job) => [job.jobId, job]));
    this.#manifest = o.manifest;
    this.#lock = o.lock;
    this.#side = o.side;
    this.#startedMs = performance.now() - o.ageMs;
    this.#rules = { only: o.header.host ?? undefined, avoid: [], spread: o.header.maxConcurrent ?? undefined };
    this.#whenEnded = new Promise((resolve) => {
      this.#markEnded = resolve;
    });
  }

  /** A new batch. When this resolves it is durable: it survives this process. */
  static async create(order: BatchOrder, o: { root: string; side: FleetSide }): Promise<Batch> {
    const batchId = randomUUID();
    const directory = join(o.root, batchId);
    await mkdir(directory, { recursive: true, mode: 0o700 });
    const lock = await BatchLock.acquire(directory, { pid: process.pid, client: order.client });
    if (!(lock instanceof BatchLock)) throw new Error(`the lock of the new batch ${batchId} is taken`);
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
    const jobs = order.jobs.map((job) =>
      newRecord({ ...job, jobId: randomUUID(), inputFiles: job.inputFiles ?? [], name: job.name }),
    );
    try {
      const manifest = await Manifest.create(join(directory, 'manifest.jsonl'), [header, ...jobs.map(jobLine)]);
      return new Batch({ directory, header, jobs, manifest, lock, side: o.side, ageMs: 0 });
    } catch (error) {
      await lock[Symbol.asyncDispose]();
      throw new AppError('SAVE_FAILED', `The batch could not be written to ${directory}: ${messageOf(error)}.`, {
        cause: error,
      });
    }
  }

  /** Goes on with a batch nobody works on. What is done is not done again. Undefined when another process has its lock. */
  static async resume(directory: string, o: { side: FleetSide; holder: LockHolder }): Promise<Batch | undefined> {
    const lock = await BatchLock.acquire(directory, o.holder);
    if (!(lock instanceof BatchLock)) return undefined;
    const { manifest, lines, damaged } = await Manifest.resume(join(directory, 'manifest.jsonl'));
    const state = new ManifestState();
    for (const line of lines) state.apply(line);
    const { header } = state;
    if (header === undefined || state.ended !== undefined) {
      await manifest[Symbol.asyncDispose]();
      await lock[Symbol.asyncDispose]();
      return undefined;
    }
    if (damaged > 0) o.side.log.warn({ event: 'manifest-damaged', batchId: header.batchId, lines: damaged });
    const ageMs = Math.max(0, Date.now() - Date.parse(header.createdAt));
    const batch = new Batch({ directory, header, jobs: state.jobs, manifest, lock, side: o.side, ageMs });
    for (const job of state.jobs) await batch.#restore(job);
    for (const target of new Set(state.jobs.map((job) => job.directory))) await sweepParts(target);
    o.side.log.info({ event: 'batch-resumed', batchId: header.batchId, jobs: state.jobs.length });
    await batch.#endIfOver();
    return batch;
  }

  get id(): string {
    return this.header.batchId;
  }

  get isEnded(): boolean {
    return this.#end !== undefined;
  }

  /** Another process has the lock: this one must not touch the batch any more. */
  get isLost(): boolean {
    return this.#isLost;
  }

  get isClosed(): boolean {
    return this.#closing !== undefined;
  }

  has(jobId: string): boolean {
    return this.#byId.has(jobId);
  }

  /** Jobs a host may be offered now: none while saving is impossible, and none over max_concurrent. */
  get waiting(): readonly JobRecord[] {
    if (this.#pausedBy !== undefined || this.isEnded) return [];
    const waiting = this.#inOrder.filter(({ state }) => state.kind === 'waiting');
    const { maxConcurrent } = this.header;
    return maxConcurrent === null ? waiting : waiting.slice(0, Math.max(0, maxConcurrent - this.inFlight.length));
  }

  get inFlight(): readonly JobRecord[] {
    return this.#jobs.filter(({ state }) => isInFlight(state));
  }

  /** All that waits, for the plan: which of them are offered is not its concern. */
  planJobs(model: string): (PlanJob & { index: number })[] {
    const { maxConcurrent } = this.header;
    if (this.#pausedBy !== undefined || this.isEnded) return [];
    if (maxConcurrent !== null && this.inFlight.length >= maxConcurrent) return [];
    const nowMs = performance.now();
    return this.#inOrder
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
    if (job.attempts.length === 0) return this.#rules;
    const avoid = hostsToAvoid(job.attempts, this.#capableHosts(job));
    return avoid.length === 0 ? this.#rules : { ...this.#rules, avoid };
  }

  markDeclined(jobId: string): void {
    const job = this.#byId.get(jobId);
    if (job !== undefined) job.declinedSinceMs ??= performance.now();
  }

  requestOf(jobId: string): JobRecord['request'] | undefined {
    return this.#byId.get(jobId)?.request;
  }

  /** Binds the job to the grant at once; what follows runs in the background. */
  take(jobId: string, taking: Taking): void {
    const job = this.#byId.get(jobId);
    if (job?.state.kind !== 'waiting') throw new Error(`job ${jobId} is not waiting`);
    const place: Place = { host: taking.host, attempt: nextAttempt(job) };
    const state: JobState = { kind: 'taking', at: place };
    enterState(job, state);
    job.attempts.push({ ...place });
    job.routing = taking.routing;
    job.startedInMs = this.#inMs();
    job.slotId = taking.slotId;
    job.holding = { host: taking.host, slotId: taking.slotId, endsAtMs: performance.now() + taking.endsInMs };
    job.progress = { step: 0, steps: 0, detail: `asking ${taking.host}` };
    job.missingInputs = [];
    this.#own(job, this.#take(job, { state, place, taking }));
    this.#changed();
  }

  /** What a host has of this batch, as its hello says. Jobs of other batches in it are ignored. */
  onHello(host: string, listed: readonly AgentJob[]): void {
    const ours = listed.filter(({ jobId }) => this.#byId.has(jobId));
    for (const attempt of [...this.#stopping]) if (attempt.host === host) this.#stopping.delete(attempt);
    for (const one of ours) this.onAgentJob(host, one);
    for (const job of this.#jobs) {
      for (const attempt of openAttempts(job)) {
        if (attempt.host !== host || isFetching(job.state)) continue;
        if (ours.some((one) => one.jobId === job.jobId && one.attempt === attempt.attempt)) continue;
        this.#lose(job, attempt);
      }
    }
  }

  /** One job's present state on a host: from a hello, a reply, or a notification. */
  onAgentJob(host: string, said: AgentJob): void {
    const job = this.#byId.get(said.jobId);
    if (job === undefined) return;
    const place: Place = { host, attempt: said.attempt };
    const attempt = findAttempt(job, place);
    if (attempt === undefined || attempt.end !== undefined || isOver(job.state)) {
      return this.#settle(job, attempt ?? place, said.state);
    }
    const isCurrent = samePlace(placeOf(job.state), place);
    switch (said.state) {
      case 'accepted':
      case 'running':
        return this.#onUnderWay(job, { place, attempt, state: said.state, isCurrent });
      case 'done':
        if (said.result === undefined) this.#ask(job, place);
        else if (!isFetching(job.state)) this.#startFetch(job, { place, result: said.result });
        return;
      case 'failed':
        return this.#onFailed(job, { place, attempt, isCurrent, error: said.error ?? UNEXPLAINED });
      case 'cancelled':
        return this.#onFailed(job, { place, attempt, isCurrent, error: cancelledThere(host) });
      case 'unknown':
        return;
    }
  }

  onProgress(
    host: string,
    said: { jobId: string; attempt: number; step: number; steps: number; detail: string },
  ): void {
    const job = this.#byId.get(said.jobId);
    if (job === undefined || !samePlace(placeOf(job.state), { host, attempt: said.attempt })) return;
    const { step, steps, detail } = said;
    if (job.progress.steps === 0 && steps > 0 && job.holding !== undefined) {
      const service = this.#serviceOn(host, job);
      if (service !== undefined) job.holding.endsAtMs = performance.now() + estimateMs(service, job.request);
    }
    job.progress = { step, steps, detail };
    this.#notify();
  }

  /** The link to a host is gone: what it has of ours is unsure until its next hello. */
  onDown(host: string): void {
    const sinceMs = this.#side.link(host)?.lastHeardMs ?? performance.now();
    for (const job of this.#jobs) {
      const { state } = job;
      if (state.kind !== 'taking' && state.kind !== 'accepted' && state.kind !== 'running') continue;
      if (state.at.host !== host) continue;
      this.#enter(job, { kind: 'unsure', at: state.at, sinceMs });
      job.progress = { ...job.progress, detail: `the link to ${host} is lost; waiting to hear what became of it` };
    }
    this.#changed();
  }

  /** Called a few times a second while the batch is not over. */
  tick(): void {
    const nowMs = performance.now();
    const hasSlept = nowMs - this.#lastTickMs > SLEPT_MS;
    this.#lastTickMs = nowMs;
    for (const job of this.#jobs) {
      const { state } = job;
      if (state.kind !== 'unsure') continue;
      const link = this.#side.link(state.at.host);
      if (hasSlept) enterUnsureAgain(job, state, nowMs);
      else if (link?.isUp) this.#ask(job, state.at);
      else if (nowMs - Math.max(state.sinceMs, link?.lastHeardMs ?? 0) >= this.#side.times.silenceMs) {
        this.#enter(job, { kind: 'waiting' });
        job.progress = { step: 0, steps: 0, detail: '' };
        this.#changed();
      }
    }
    if (nowMs - this.#lastLookMs < CANCEL_LOOK_MS || this.isEnded) return;
    this.#lastLookMs = nowMs;
    this.#own(undefined, this.#look());
  }

  view(): BatchView {
    const explain = this.#explainer();
    const jobs = this.#jobs.map((job) =>
      jobView(job, { detail: explain(job), stillRunningOn: this.#stillRunningOn(job) }),
    );
    return {
      batchId: this.id,
      kind: this.header.kind,
      state: this.isEnded ? batchState(this.#jobs) : 'running',
      createdAt: this.header.createdAt,
      jobs,
      ...countEnds(this.#jobs),
      total: this.#jobs.length,
      etaMs: this.#etaMs(),
      elapsedMs: this.#end?.elapsedMs ?? this.#inMs(),
      ...(this.#end?.quality !== undefined && { quality: this.#end.quality }),
      isOurs: true,
    };
  }

  /** Until all jobs are over. Rejects with the signal's reason, or INTERRUPTED when this bridge lets go of the batch. */
  async wait(signal: AbortSignal): Promise<BatchView> {
    if (!this.isEnded) await untilAborted(this.#whenEnded, AbortSignal.any([signal, this.#life.signal]));
    return this.view();
  }

  /** Called after each change; returns how to stop that. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Ends the batch, or the named jobs of it. At once here; a running engine finishes first, and its result is dropped. */
  async cancel(jobIds?: readonly string[]): Promise<BatchView> {
    const chosen = this.#jobs.filter(({ jobId }) => jobIds === undefined || jobIds.includes(jobId));
    const ending = chosen.filter(({ state }) => !isOver(state) && state.kind !== 'saving'); // done wins
    for (const job of ending) {
      const wasRunning = job.state.kind === 'running' || job.state.kind === 'unsure';
      const ranAt = wasRunning ? placeOf(job.state) : undefined;
      this.#fetches.get(job.jobId)?.abort(new AppError('INTERRUPTED', 'The job was cancelled.'));
      enterState(job, { kind: 'cancelled', ranAt });
      job.endedInMs = this.#inMs();
      this.#settleAll(job);
    }
    this.#changed();
    if (ending.length > 0) {
      const lines = ending.map(({ jobId, endedInMs }): ManifestLine => ({
        type: 'cancelled',
        jobId,
        endedInMs: endedInMs ?? 0,
      }));
      await this.#manifest.append(lines).catch((error: unknown) => this.#warn('cancel-not-written', error));
    }
    await this.#endIfOver();
    return this.view();
  }

  /** Lets go: nothing of it runs here afterwards, and another process may resume it. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#life.abort(
      new AppError('INTERRUPTED', 'This bridge ends. The batch goes on at the next start; nothing is lost.'),
    );
    await this.close();
    while (this.#work.size > 0) await Promise.all(this.#work); // what a late hello started after the end
  }

  /** Gives the lock and the manifest back when all that runs for the batch has ended. The view stays. */
  async close(): Promise<void> {
    this.#closing ??= this.#close();
    await this.#closing;
  }

  async #close(): Promise<void> {
    while (this.#work.size > 0) await Promise.all(this.#work);
    await this.#manifest[Symbol.asyncDispose]();
    await this.#lock[Symbol.asyncDispose]();
  }

  async #take(job: JobRecord, o: { state: JobState; place: Place; taking: Taking }): Promise<void> {
    const { place, taking } = o;
    const link = this.#side.link(place.host);
    const { signal } = this.#life;
    try {
      const sentInMs = job.startedInMs ?? this.#inMs();
      await this.#manifest.append([{ type: 'sent', jobId: job.jobId, ...place, sentInMs, routing: taking.routing }]);
      this.#resumeWork();
    } catch (error) {
      const why = `The manifest of batch ${this.id} cannot be written: ${messageOf(error)}. Free some space.`;
      this.#pauseWork(new AppError('DISK_FULL', why, { cause: error }));
      const attempt = findAttempt(job, place);
      if (attempt !== undefined) attempt.end = { kind: 'refused' };
      if (job.state === o.state) this.#enter(job, { kind: 'waiting' });
    }
    if (link === undefined) return;
    if (job.state !== o.state) {
      // Not written, cancelled, or the link was lost meanwhile: the slot need not wait for the grant to expire.
      await link.request('slot.decline', { grantId: taking.grantId }, signal).catch(() => undefined);
      return;
    }
    const params: Params<'job.take'> = {
      grantId: taking.grantId,
      job: { jobId: job.jobId, attempt: place.attempt, class: this.header.class, request: job.request },
    };
    try {
      const { job: said, missingInputs } = await link.request('job.take', params, signal);
      job.missingInputs = missingInputs;
      this.onAgentJob(place.host, said);
      if (missingInputs.length > 0) await this.#upload(job, place);
    } catch (error) {
      if (signal.aborted) return;
      const refused = toAppError(error);
      if (refused.code === 'TIMEOUT') link.restart('job.take was not answered');
      // The end of the link makes it unsure, and the next hello tells whether the host has it.
      else if (refused.code !== 'AGENT_UNREACHABLE') await this.#refuse(job, { ...o, error: refused });
    }
  }

  /** The host has not accepted it, that is sure. */
  async #refuse(job: JobRecord, o: { state: JobState; place: Place; error: AppError }): Promise<void> {
    const { place, error } = o;
    const attempt = findAttempt(job, place);
    if (attempt === undefined || attempt.end !== undefined) return;
    const isFinal = !error.retryable && FINAL_REFUSALS.has(error.code);
    if (isFinal && job.state === o.state) {
      return this.#onFailed(job, { place, attempt, isCurrent: true, error: jobError(error) });
    }
    attempt.end = { kind: 'refused' };
    if (job.state === o.state) this.#enter(job, { kind: 'waiting' });
    if (error.code !== 'GRANT_EXPIRED') this.#side.holdOff(place.host, error);
    this.#changed();
    await this.#manifest
      .note({ type: 'refused', jobId: job.jobId, ...place, code: error.code })
      .catch((failure: unknown) => this.#warn('refusal-not-written', failure));
  }

  #onUnderWay(
    job: JobRecord,
    o: { place: Place; attempt: Attempt; state: 'accepted' | 'running'; isCurrent: boolean },
  ): void {
    const { state } = job;
    const mayAdopt = o.isCurrent || state.kind === 'waiting'; // else it is a race: the first verified result wins
    if (!mayAdopt || isFetching(state) || state.kind === o.state || state.kind === 'running') return;
    const wasUnsure = state.kind === 'unsure' || state.kind === 'waiting';
    this.#enter(job, { kind: o.state, at: o.place });
    if (wasUnsure) {
      job.progress = { ...job.progress, detail: `${o.state} on ${o.place.host}` };
      if (o.state === 'accepted' && job.missingInputs.length > 0) this.#own(job, this.#upload(job, o.place));
    }
    this.#changed();
  }

  #onFailed(job: JobRecord, o: { place: Place; attempt: Attempt; isCurrent: boolean; error: JobError }): void {
    const { place, attempt, error } = o;
    const serverDied = error.code === 'MODEL_FAILED' && job.progress.steps > 0 && o.isCurrent;
    attempt.end = { kind: 'failed', error, serverDied };
    this.#side.log.info({ event: 'attempt-failed', jobId: job.jobId, ...place, code: error.code, serverDied });
    const lines: ManifestLine[] = [{ type: 'attempt-failed', jobId: job.jobId, ...place, error, serverDied }];
    if (o.isCurrent) {
      const next = afterFailure(job.attempts, this.#capableHosts(job));
      if (next.kind === 'failed') {
        this.#enter(job, { kind: 'failed', error: next.error });
        job.endedInMs = this.#inMs();
        lines.push({ type: 'failed', jobId: job.jobId, error: next.error, endedInMs: job.endedInMs });
      } else {
        this.#enter(job, { kind: 'waiting' });
        const failures = job.attempts.filter(({ end }) => end?.kind === 'failed').length;
        job.progress = { step: 0, steps: 0, detail: `attempt ${failures + 1} of ${MAX_FAILURES}: ${error.message}` };
      }
    }
    this.#changed();
    this.#own(job, this.#concludeFailure(job, { place, attempt, lines }));
  }

  async #concludeFailure(job: JobRecord, o: { place: Place; attempt: Attempt; lines: ManifestLine[] }): Promise<void> {
    await this.#manifest.append(o.lines).catch((error: unknown) => this.#warn('failure-not-written', error));
    this.#settle(job, o.attempt, 'failed');
    if (isOver(job.state)) this.#settleAll(job);
    await this.#endIfOver();
  }

  /** The host does not know the attempt (any more). */
  #lose(job: JobRecord, attempt: Attempt): void {
    attempt.end = { kind: 'lost' };
    if (samePlace(placeOf(job.state), attempt)) {
      this.#enter(job, { kind: 'waiting' });
      job.progress = { step: 0, steps: 0, detail: '' };
    }
    this.#changed();
    if (isOver(job.state)) return;
    const line: ManifestLine = { type: 'lost', jobId: job.jobId, host: attempt.host, attempt: attempt.attempt };
    this.#own(job, this.#manifest.note(line));
  }

  /** Unsure although the link is up: ask. */
  #ask(job: JobRecord, place: Place): void {
    const attempt = findAttempt(job, place);
    const link = this.#side.link(place.host);
    if (attempt === undefined || link === undefined || this.#settling.has(attempt)) return;
    this.#settling.add(attempt);
    const asking = link
      .request('job.get', { jobId: job.jobId }, this.#life.signal)
      .then(
        (said) => this.onAgentJob(place.host, said),
        (error: unknown) => {
          const isGone = toAppError(error).code === 'JOB_NOT_FOUND';
          if (isGone && attempt.end === undefined && !isFetching(job.state)) this.#lose(job, attempt);
        },
      )
      .finally(() => this.#settling.delete(attempt));
    this.#own(job, asking);
  }

  async #upload(job: JobRecord, place: Place): Promise<void> {
    const link = this.#side.link(place.host);
    const isWanted = (): boolean =>
      !this.#life.signal.aborted && link?.isUp === true && samePlace(placeOf(job.state), place);
    for (const sha256 of [...job.missingInputs]) {
      const path = job.inputFiles[job.request.kind === 'edit' ? job.request.inputs.indexOf(sha256) : -1];
      if (path === undefined) throw new Error(`job ${job.jobId} has no file for input ${sha256}`);
      for (let failures = 0; link !== undefined && isWanted();) {
        job.progress = { ...job.progress, detail: `sending an input image to ${place.host}` };
        try {
          await link.uploadInput(sha256, { path, signal: this.#life.signal });
          job.missingInputs = job.missingInputs.filter((one) => one !== sha256);
          break;
        } catch (error) {
          if (this.#life.signal.aborted) return;
          const failure = toAppError(error);
          failures += 1;
          if (!failure.retryable && isWanted()) return await this.#fail(job, failure);
          if (failures >= UPLOAD_TRIES) return; // the host will give the job back as INPUT_MISSING
          await pause(backoffMs(failures, { firstMs: 500, maxMs: 5_000, random: Math.random() }), this.#life.signal);
        }
      }
    }
  }

  #startFetch(job: JobRecord, o: { place: Place; result: JobResult }): void {
    enterState(job, { kind: 'fetching', at: o.place, result: o.result });
    job.progress = { ...job.progress, detail: `fetching the image from ${o.place.host}` };
    this.#changed();
    this.#own(job, this.#fetch(job, o));
  }

  async #fetch(job: JobRecord, { place, result }: { place: Place; result: JobResult }): Promise<void> {
    const cancelled = new AbortController();
    this.#fetches.set(job.jobId, cancelled);
    const signal = AbortSignal.any([this.#life.signal, cancelled.signal]);
    const onSaving = async (name: string): Promise<void> => {
      signal.throwIfAborted();
      if (job.state.kind === 'fetching') this.#enter(job, { kind: 'saving', at: place, result });
      job.savings.push({ ...place, name, result });
      const line: ManifestLine = { type: 'saving', jobId: job.jobId, ...place, name, sha256: result.sha256, result };
      await this.#manifest.append([line]);
    };
    try {
      for (let failures = 1, damaged = 0; !signal.aborted; failures += 1) {
        if (!isFetching(job.state) || !samePlace(placeOf(job.state), place)) return;
        const link = this.#side.link(place.host);
        if (link === undefined) return this.#backToUnsure(job, place);
        try {
          const before = await this.#findSaved(job);
          if (before !== undefined) return await this.#saved(job, before);
          const options = { link, record: job, result, batchDirectory: this.#directory, onSaving, signal };
          const saved = await this.#permits.use(() => fetchResult(options));
          return await this.#saved(job, { place, result, ...saved });
        } catch (error) {
          if (signal.aborted) return;
          const failure = toAppError(error, 'SAVE_FAILED');
          this.#side.log.warn({ event: 'fetch-failed', jobId: job.jobId, ...place, why: failure.message });
          if (job.state.kind === 'saving') this.#enter(job, { kind: 'fetching', at: place, result });
          const attempt = findAttempt(job, place);
          if (failure.code === 'JOB_NOT_FOUND' && attempt !== undefined) return this.#lose(job, attempt);
          if (failure.code === 'AGENT_UNREACHABLE' && !link.isUp) return this.#backToUnsure(job, place);
          if (isDamaged(failure)) damaged += 1;
          if (damaged >= MAX_DAMAGED && attempt !== undefined) {
            const lost = new AppError(
              'RESULT_INVALID',
              `The image arrived damaged ${damaged} times. ${failure.message}`,
            );
            return this.#onFailed(job, { place, attempt, isCurrent: true, error: jobError(lost) });
          }
          if (!isDamaged(failure) && failure.code !== 'AGENT_UNREACHABLE') this.#pauseWork(failure);
          job.progress = { ...job.progress, detail: failure.message };
          this.#notify();
          await pause(backoffMs(failures, { ...SAVE_RETRY, random: Math.random() }), signal);
        }
      }
    } finally {
      if (this.#fetches.get(job.jobId) === cancelled) this.#fetches.delete(job.jobId);
    }
  }

  #backToUnsure(job: JobRecord, place: Place): void {
    const sinceMs = this.#side.link(place.host)?.lastHeardMs ?? performance.now();
    this.#enter(job, { kind: 'unsure', at: place, sinceMs });
    this.#changed();
  }

  async #saved(
    job: JobRecord,
    o: { place: Place; result: JobResult; path: string; previewPath: string | undefined },
  ): Promise<void> {
    const endedInMs = this.#inMs();
    const { place, result, path, previewPath } = o;
    await this.#manifest.append([
      { type: 'saved', jobId: job.jobId, ...place, path, previewPath: previewPath ?? null, result, endedInMs },
    ]);
    this.#resumeWork();
    job.endedInMs = endedInMs;
    if (job.state.kind !== 'saving') job.state = { kind: 'saving', at: place, result }; // found on the disk, not fetched
    enterState(job, { kind: 'done', at: place, result, path, previewPath });
    job.progress = { ...job.progress, detail: '' };
    const attempt = findAttempt(job, place);
    if (attempt !== undefined) {
      attempt.end = { kind: 'saved' };
      this.#settle(job, attempt, 'done');
    }
    this.#settleAll(job);
    this.#changed();
    await this.#endIfOver();
  }

  async #fail(job: JobRecord, error: AppError): Promise<void> {
    this.#enter(job, { kind: 'failed', error: jobError(error) });
    job.endedInMs = this.#inMs();
    this.#settleAll(job);
    this.#changed();
    const line: ManifestLine = { type: 'failed', jobId: job.jobId, error: jobError(error), endedInMs: job.endedInMs };
    await this.#manifest.append([line]).catch((failure: unknown) => this.#warn('failure-not-written', failure));
    await this.#endIfOver();
  }

  /** The job is over: whatever else still has it is told to drop it. */
  #settleAll(job: JobRecord): void {
    for (const attempt of openAttempts(job)) this.#settle(job, attempt, 'running');
  }

  /** Makes a host forget an attempt: cancelled if it still runs, then acknowledged. An unreachable one is told at its hello. */
  #settle(job: JobRecord, attempt: Attempt, state: AgentJob['state']): void {
    if (this.#settling.has(attempt)) return;
    const link = this.#side.link(attempt.host);
    if (link?.isUp !== true) return;
    this.#settling.add(attempt);
    const settled = this.#dropAt(link, { job, attempt, state })
      .catch(() => undefined) // the next hello lists it again
      .finally(() => this.#settling.delete(attempt));
    this.#own(job, settled);
  }

  async #dropAt(
    link: AgentLink,
    { job, attempt, state }: { job: JobRecord; attempt: Attempt; state: AgentJob['state'] },
  ): Promise<void> {
    const { jobId } = job;
    const signal = this.#life.signal;
    if (!isOverThere(state)) {
      if (this.#stopping.has(attempt)) return;
      const said = await link.request('job.cancel', { jobId }, signal);
      if (said.attempt === attempt.attempt && !isOverThere(said.state)) {
        this.#stopping.add(attempt); // its end is notified, and then acknowledged
        return;
      }
    }
    this.#stopping.delete(attempt);
    const wasSaved = job.state.kind === 'done' && samePlace(job.state.at, attempt);
    const sha256 = job.state.kind === 'done' && wasSaved ? { sha256: job.state.result.sha256 } : {};
    await link.request('job.ack', { jobId, attempt: attempt.attempt, ...sha256 }, signal);
    attempt.end ??= { kind: 'dropped' };
  }

  async #restore(job: JobRecord): Promise<void> {
    if (isOver(job.state)) return;
    const saved = await this.#findSaved(job);
    if (saved !== undefined) return await this.#saved(job, saved);
    const last = openAttempts(job).at(-1);
    const place = last && { host: last.host, attempt: last.attempt };
    // Not an event of this process' making, so not by #enter: the manifest tells where the job may be.
    job.state = place === undefined ? { kind: 'waiting' } : { kind: 'unsure', at: place, sinceMs: performance.now() };
    job.missingInputs = job.request.kind === 'edit' ? job.request.inputs : [];
  }

  /** A file with the name and content of a `saving` line is saved, even if the line that says so was never written. */
  async #findSaved(job: JobRecord) {
    for (const { name, result, host, attempt } of job.savings) {
      const path = join(job.directory, name);
      if (!(await hasContent(path, result.sha256))) continue;
      const preview = previewPathOf(this.#directory, job.jobId);
      const previewPath = (await stat(preview).catch(() => undefined)) && preview;
      return { place: { host, attempt }, result, path, previewPath };
    }
    return undefined;
  }

  /** Files by which other processes ask for an end, and the lock. */
  async #look(): Promise<void> {
    if (!this.#lock.isHeld) {
      this.#warn('lock-lost', 'another process has the lock of this batch; it goes on there');
      this.#isLost = true;
      this.#life.abort(new AppError('INTERRUPTED', 'Another process works on this batch now.'));
      return;
    }
    if ((await stat(join(this.#directory, 'cancel')).catch(() => undefined)) !== undefined) {
      await this.cancel();
      return;
    }
    const text = await readFile(join(this.#directory, 'cancel-jobs'), 'utf8').catch(() => '');
    const jobIds = text.slice(0, text.lastIndexOf('\n') + 1).split('\n');
    if (jobIds.some((id) => this.#byId.has(id))) await this.cancel(jobIds);
  }

  async #endIfOver(): Promise<void> {
    if (this.isEnded || !this.#jobs.every(({ state }) => isOver(state))) return;
    const elapsedMs = this.#inMs();
    const lastMs = Math.max(0, ...this.#jobs.map(({ endedInMs }) => endedInMs ?? 0));
    const quality = batchQuality(this.#jobs, { makespanMs: lastMs, hosts: this.#qualityHosts() });
    this.#end = { elapsedMs, quality };
    const state = batchState(this.#jobs);
    this.#side.log.info({ event: 'batch-ended', batchId: this.id, state, elapsedMs, ...quality });
    if (state !== 'running') {
      await this.#manifest
        .append([{ type: 'ended', state, elapsedMs, quality: quality ?? null }])
        .catch((error: unknown) => this.#warn('end-not-written', error));
    }
    this.#markEnded();
    this.#changed();
  }

  #qualityHosts() {
    const models = [...new Set(this.#jobs.map(({ request }) => request.model))];
    const [model] = models;
    if (model === undefined || models.length > 1) return [];
    const hosts = this.#side.hosts();
    return hosts.flatMap((host) => {
      const capable = capableHost(host, { model, class: this.header.class, kind: this.header.kind });
      const service = serviceOn(host, { model, hosts });
      if ('reason' in capable || service === undefined) return [];
      if (this.#rules.only !== undefined && this.#rules.only !== host.name) return [];
      return [{ host: host.name, slots: capable.slots.length, service }];
    });
  }

  #capableHosts(job: JobRecord): string[] {
    const { model, kind } = job.request;
    return this.#side.hosts().flatMap((host) => {
      if (this.#rules.only !== undefined && this.#rules.only !== host.name) return [];
      return 'reason' in capableHost(host, { model, class: this.header.class, kind }) ? [] : [host.name];
    });
  }

  #serviceOn(host: string, job: JobRecord) {
    const hosts = this.#side.hosts();
    const view = hosts.find(({ name }) => name === host);
    return view && serviceOn(view, { model: job.request.model, hosts });
  }

  /** Why each waiting job waits; the same sentence for all jobs of one model. */
  #explainer(): (job: JobRecord) => string | undefined {
    const known = new Map<string, string>();
    return (job) => {
      if (job.state.kind !== 'waiting') return undefined;
      if (this.#pausedBy !== undefined) return `paused: ${this.#pausedBy.message}`;
      const { model } = job.request;
      const sentence = known.get(model) ?? this.#explain(job);
      known.set(model, sentence);
      return job.progress.detail === '' ? sentence : `${job.progress.detail} ${sentence}`;
    };
  }

  #explain(job: JobRecord): string {
    const only = this.#rules.only;
    const hosts = this.#side.hosts();
    const placement = expectedFinishes(job.request, { hosts, class: this.header.class, only });
    const [best] = placement.ranked;
    if (best === undefined) return refusalText(job.request.model, placement.refused);
    if (this.header.maxConcurrent !== null && this.inFlight.length >= this.header.maxConcurrent) {
      return `waiting: ${this.header.maxConcurrent} at a time were asked for`;
    }
    const refusal = this.#side.heldOff(best.host);
    if (refusal !== undefined) return `waiting: ${best.host} refused the work for now: ${refusal.message}`;
    return `waiting for a slot, most likely on ${best.host}`;
  }

  #etaMs(): number | null {
    if (this.isEnded) return 0;
    const nowMs = performance.now();
    const hosts = this.#side.hosts();
    let lastMs = 0;
    for (const { holding, state } of this.#jobs) {
      if (state.kind === 'unsure') return null;
      if (holding !== undefined) lastMs = Math.max(lastMs, holding.endsAtMs - nowMs);
    }
    for (const model of new Set(this.#jobs.map(({ request }) => request.model))) {
      const waiting = this.#inOrder.filter((job) => job.state.kind === 'waiting' && job.request.model === model);
      if (waiting.length === 0) continue;
      const want = { model, class: this.header.class };
      const slots = planSlots(want, { hosts, holdings: this.#side.holdings(), nowMs });
      const jobs = waiting.map((job) => ({
        jobId: job.jobId,
        class: this.header.class,
        units: workUnits(job.request),
        rules: this.#rules,
        declinedForMs: 0,
      }));
      const ms = forecastMs(jobs, slots);
      if (ms === undefined) return null;
      lastMs = Math.max(lastMs, ms);
    }
    return Math.round(lastMs);
  }

  #stillRunningOn(job: JobRecord): string | undefined {
    if (job.state.kind !== 'cancelled' || job.state.ranAt === undefined) return undefined;
    const { host } = job.state.ranAt;
    if (this.#inMs() - (job.endedInMs ?? 0) < CANCEL_SEEN_MS) return host;
    const view = this.#side.hosts().find(({ name }) => name === host);
    const model = view?.snapshot?.models.find((one) => one.model === job.request.model);
    const slots = model?.slots.filter(({ slotId }) => job.slotId === undefined || slotId === job.slotId) ?? [];
    return slots.some(({ isCancelled }) => isCancelled) ? host : undefined;
  }

  #pauseWork(error: AppError): void {
    this.#pausedBy = error;
    this.#changed();
    // The manifest may be what cannot be written, so it is not asked; one more try decides.
    this.#own(
      undefined,
      pause(SAVE_RETRY.maxMs, this.#life.signal).then(() => {
        if (this.#pausedBy === error) this.#resumeWork();
      }),
    );
  }

  #resumeWork(): void {
    if (this.#pausedBy === undefined) return;
    this.#pausedBy = undefined;
    this.#changed();
  }

  #enter(job: JobRecord, next: JobState): void {
    const place = placeOf(next) ?? placeOf(job.state);
    enterState(job, next);
    this.#notify();
    if (place === undefined) return;
    const phase = next.kind;
    if (phase === 'accepted' || phase === 'running' || phase === 'unsure' || phase === 'waiting') {
      const line: ManifestLine = { type: 'phase', jobId: job.jobId, ...place, phase };
      this.#own(
        job,
        this.#manifest.note(line).catch((error: unknown) => this.#warn('phase-not-written', error)),
      );
    }
  }

  #changed(): void {
    this.#side.changed();
    this.#notify();
  }

  #notify(): void {
    for (const listener of this.#listeners) listener();
  }

  /** The owner of everything that runs for a job. What nobody foresaw ends that job, not the batch. */
  #own(job: JobRecord | undefined, work: Promise<unknown>): void {
    const owned: Promise<void> = work
      .then(
        () => undefined,
        async (error: unknown) => {
          if (this.#life.signal.aborted) return;
          this.#side.log.error({ event: 'job-work-failed', jobId: job?.jobId, err: error });
          if (job !== undefined && !isOver(job.state)) await this.#fail(job, toAppError(error));
        },
      )
      .finally(() => this.#work.delete(owned));
    this.#work.add(owned);
  }

  #warn(event: string, error: unknown): void {
    this.#side.log.warn({ event, batchId: this.id, why: messageOf(error) });
  }

  #inMs(): number {
    return Math.round(performance.now() - this.#startedMs);
  }
}

/** Refusals of a take that no other take will change. */
const FINAL_REFUSALS = new Set(['INVALID_ARGUMENT', 'JOB_CONFLICT', 'INPUT_INVALID', 'INTERNAL']);

const UNEXPLAINED: JobError = {
  code: 'ENGINE_FAILED',
  message: 'The host reported a failure without a reason.',
  retryable: true,
};

function cancelledThere(host: string): JobError {
  return { code: 'INTERRUPTED', message: `The job was cancelled on ${host}.`, retryable: true };
}

function jobError(error: AppError): JobError {
  return { code: error.code, message: error.message, retryable: error.retryable };
}

/** Bytes that were not those announced, as opposed to a directory that cannot be written. */
function isDamaged(error: AppError): boolean {
  return error.code === 'RESULT_INVALID' || (error.code === 'SAVE_FAILED' && error.cause === undefined);
}

function isOverThere(state: AgentJob['state']): boolean {
  return state === 'done' || state === 'failed' || state === 'cancelled';
}

function isFetching(state: JobState): boolean {
  return state.kind === 'fetching' || state.kind === 'saving';
}

function samePlace(a: Place | undefined, b: Place): boolean {
  return a !== undefined && a.host === b.host && a.attempt === b.attempt;
}

/** The clock of the silence starts anew: nobody could be heard while this machine slept. */
function enterUnsureAgain(job: JobRecord, state: Extract<JobState, { kind: 'unsure' }>, nowMs: number): void {
  job.state = { ...state, sinceMs: nowMs };
}

function longestFirst(jobs: readonly JobRecord[]): JobRecord[] {
  const units = new Map(jobs.map((job) => [job, workUnits(job.request)]));
  return [...jobs].sort((a, b) => (units.get(b) ?? 0) - (units.get(a) ?? 0) || a.index - b.index);
}

function jobLine(job: JobRecord): ManifestLine {
  const { jobId, index, request, inputFiles, directory, name } = job;
  return { type: 'job', jobId, index, request, inputFiles: [...inputFiles], directory, name: name ?? null };
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
