import { performance } from 'node:perf_hooks';
import { untilAborted } from '../../shared/abort.ts';
import type { JobRequest } from '../../shared/job.ts';
import type { AgentJob } from '../../shared/protocol.ts';
import { sweepParts } from '../output/image-file.ts';
import type { BatchBook, FleetSide, PlannedJob } from './batch-book.ts';
import { createBook, readWishes, resumeBook } from './batch-directory.ts';
import type { LockHolder } from './batch-lock.ts';
import type { BatchOrder } from './batch-order.ts';
import { HORIZON_JOBS, mayGo } from './batch-plan.ts';
import type { PlanJob } from './batch-plan.ts';
import { batchQuality } from './batch-quality.ts';
import type { BatchQuality } from './batch-quality.ts';
import { explainer, lastEndMs, outlooks, qualityHosts, stillRunningOn } from './batch-report.ts';
import { batchState, jobView, repairNotes } from './batch-view.ts';
import type { BatchView, EndCounts } from './batch-view.ts';
import type { JobRecord } from './job-record.ts';
import { isOver } from './job-state.ts';
import { JobTracker } from './job-tracker.ts';
import type { Progress } from './job-tracker.ts';
import type { Taking } from './job-taker.ts';
import type { ManifestHeader, ManifestLine } from './manifest-lines.ts';
import { HopelessJobs, jobRules } from './job-rules.ts';
import { groupWaiting } from './offers.ts';
import type { OfferGroup } from './offers.ts';

/** A timer this late means that the laptop slept, and so does half of a silence that is set shorter. */
const SLEPT_MS = 20_000;
const LOOK_MS = 1_000;

/**
 * The jobs of one call, from waiting to done. It holds the batch's lock and is the only writer of its manifest; disposing
 * it leaves the batch for the next bridge, with accepted jobs running on.
 */
export class Batch implements AsyncDisposable {
  readonly #book: BatchBook;
  readonly #tracker: JobTracker;
  readonly #hopeless: HopelessJobs;
  readonly #whenEnded: Promise<void>;
  #markEnded: () => void = () => undefined;
  #end: { elapsedMs: number; quality: BatchQuality | undefined } | undefined;
  #isLost = false;
  #lastTickMs = performance.now();
  /** Since when this machine has not slept, as far as the timers of this batch tell: none has told so before the first. */
  #awakeSinceMs = -Infinity;
  #lastLookMs = 0;

  private constructor(book: BatchBook) {
    this.#book = book;
    this.#tracker = new JobTracker(book, { onOver: () => this.#endIfOver() });
    this.#hopeless = new HopelessJobs(book);
    this.#whenEnded = new Promise((resolve) => {
      this.#markEnded = resolve;
    });
  }

  /** A new batch. When this resolves it is durable: it survives this process. */
  static async create(order: BatchOrder, o: { root: string; side: FleetSide }): Promise<Batch> {
    return new Batch(await createBook(order, o));
  }

  /** Goes on with a batch nobody works on. What is done is not done again. Undefined when another process has its lock. */
  static async resume(
    directory: string,
    { side, holder }: { side: FleetSide; holder: LockHolder },
  ): Promise<Batch | undefined> {
    const book = await resumeBook(directory, { side, holder });
    if (book === undefined) return undefined;
    const batch = new Batch(book);
    for (const job of book.jobs) await batch.#tracker.restore(job);
    for (const target of new Set(book.jobs.map((job) => job.directory))) await sweepParts(target);
    side.log.info({ event: 'batch-resumed', batchId: batch.id, jobs: book.jobs.length });
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

  isJobOver(jobId: string): boolean {
    const job = this.#book.job(jobId);
    return job !== undefined && isOver(job.state);
  }

  /** What may be offered now, added up: nothing while saving is impossible, and nothing over max_concurrent. */
  offerGroups(): OfferGroup[] {
    const free = this.#free;
    if (free <= 0) return [];
    const rulesOf = jobRules(this.#book);
    if (free < this.#book.table.count('waiting')) {
      return groupWaiting(
        this.#book.table
          .waiting()
          .slice(0, free)
          .map((job) => ({ class: this.header.class, request: job.request, rules: rulesOf.job(job) })),
      );
    }
    return this.#book.table.waitingShapes().map(({ shape, count, retried }) => ({
      model: shape.request.model,
      class: this.header.class,
      rules: retried === undefined ? rulesOf.shape(shape) : rulesOf.job(retried),
      count,
      units: count * shape.units,
      longestUnits: shape.units,
      maxMegapixels: shape.megapixels,
    }));
  }

  /** All that waits, max_concurrent or not, with where it may go; nothing while saving is impossible. */
  get planned(): PlannedJob[] {
    if (this.#book.pausedBy !== undefined || this.isEnded) return [];
    const rulesOf = jobRules(this.#book);
    return this.#book.table.waiting().map((job) => ({ job, rules: rulesOf.job(job) }));
  }

  /** On slots, or on the way there. */
  get inFlight(): ReadonlySet<JobRecord> {
    return this.#book.table.inFlight;
  }

  /** All that waits for this model, in the order of the plan; nothing while no job may be taken. */
  planJobs(model: string): (PlanJob & { index: number })[] {
    if (this.#free <= 0) return [];
    const { table } = this.#book;
    const rulesOf = jobRules(this.#book);
    const nowMs = performance.now();
    return table.waitingFor(model).map((job) => ({
      jobId: job.jobId,
      index: job.index,
      class: this.header.class,
      units: table.shapeOf(job).units,
      rules: rulesOf.job(job),
      declinedForMs: job.declinedSinceMs === undefined ? 0 : nowMs - job.declinedSinceMs,
    }));
  }

  /** How many more jobs may be on slots: not over max_concurrent, and none while no result can be saved. */
  get #free(): number {
    if (this.#book.pausedBy !== undefined || this.isEnded) return 0;
    return (this.header.maxConcurrent ?? Number.POSITIVE_INFINITY) - this.inFlight.size;
  }

  /** A slot for this model was declined there. Jobs over max_concurrent could not have had it: they do not wait for it. */
  markDeclined(model: string, host: string): void {
    const { table } = this.#book;
    const free = this.#free;
    if (free <= 0) return;
    const isShort = free < table.count('waiting');
    const jobs = isShort
      ? table
          .waiting()
          .slice(0, free)
          .filter(({ request }) => request.model === model)
      : table.waitingFor(model);
    const rulesOf = jobRules(this.#book);
    for (const job of jobs.slice(0, HORIZON_JOBS)) {
      if (mayGo(rulesOf.job(job), host)) job.declinedSinceMs ??= performance.now();
    }
  }

  take(jobId: string, taking: Taking): void {
    const job = this.#book.job(jobId);
    if (job?.state.kind !== 'waiting') throw new Error(`job ${jobId} is not waiting`);
    this.#tracker.take(job, taking);
  }

  /** What a host has of this batch, as its hello says. Jobs of other batches in it are ignored. */
  onHello(host: string, listed: readonly AgentJob[]): void {
    this.#tracker.onHello(host, listed);
  }

  /** One job's present state on a host, from a notification. */
  onAgentJob(host: string, said: AgentJob): void {
    this.#tracker.onAgentJob(host, said);
  }

  onProgress(host: string, said: Progress): void {
    this.#tracker.onProgress(host, said);
  }

  onDown(host: string): void {
    this.#tracker.onDown(host);
  }

  /** Called a few times a second while the batch is not over. */
  tick(): void {
    const nowMs = performance.now();
    const sleptMs = Math.min(SLEPT_MS, this.#book.side.times.silenceMs / 2);
    if (nowMs - this.#lastTickMs > sleptMs) this.#awakeSinceMs = nowMs;
    this.#lastTickMs = nowMs;
    this.#tracker.tick({ nowMs, awakeSinceMs: this.#awakeSinceMs });
    if (nowMs - this.#lastLookMs < LOOK_MS || this.isEnded) return;
    this.#lastLookMs = nowMs;
    this.#book.own(undefined, this.#look());
  }

  view(): BatchView {
    const book = this.#book;
    const explain = explainer(book);
    const outlook = outlooks(book);
    return {
      batchId: this.id,
      kind: this.header.kind,
      state: this.isEnded ? batchState(this.#ends, book.jobs.length) : 'running',
      createdAt: this.header.createdAt,
      jobs: book.jobs.map((job) =>
        jobView(job, { detail: explain(job), stillRunningOn: stillRunningOn(book, job), ...outlook.get(job) }),
      ),
      ...this.#ends,
      total: book.jobs.length,
      etaMs: lastEndMs(outlook),
      ...(book.pausedBy !== undefined && !this.isEnded && { pausedBy: book.pausedBy.message }),
      elapsedMs: this.#end?.elapsedMs ?? book.inMs(),
      ...(this.#end?.quality !== undefined && { quality: this.#end.quality }),
      notes: repairNotes(book.repairs),
      isOurs: true,
    };
  }

  /** Until all jobs are over. Rejects with the signal's reason, or INTERRUPTED when this bridge lets go of the batch. */
  async wait(signal: AbortSignal): Promise<BatchView> {
    if (!this.isEnded) await untilAborted(untilAborted(this.#whenEnded, this.#book.life), signal);
    return this.view();
  }

  /** Ends the batch, or the named jobs of it. At once here; a running engine finishes first, and its result is dropped. */
  async cancel(jobIds?: readonly string[]): Promise<BatchView> {
    const book = this.#book;
    const chosen = book.jobs.filter(({ jobId }) => jobIds === undefined || jobIds.includes(jobId));
    const lines: ManifestLine[] = [];
    for (const job of chosen) {
      if (isOver(job.state) || job.state.kind === 'saving') continue; // done wins
      this.#tracker.cancel(job);
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

  /** Files by which other processes ask for an end, and whether the lock is still ours. */
  async #look(): Promise<void> {
    const { directory, lock } = this.#book;
    if (!lock.isHeld) {
      this.#book.warn('lock-lost', 'another process has the lock of this batch; it goes on there');
      this.#isLost = true;
      this.#book.letGo('Another process works on this batch now.');
      return;
    }
    for (const { job, error } of this.#hopeless.find()) this.#book.own(job, this.#tracker.fail(job, error));
    await this.#book.room.look();
    const wishes = await readWishes(directory);
    if (wishes === 'cancel all') await this.cancel();
    else if (wishes.some((id) => this.has(id))) await this.cancel(wishes);
  }

  get #ends(): EndCounts {
    const { table } = this.#book;
    return { completed: table.count('done'), failed: table.count('failed'), cancelled: table.count('cancelled') };
  }

  async #endIfOver(): Promise<void> {
    const book = this.#book;
    const state = batchState(this.#ends, book.jobs.length);
    if (this.isEnded || state === 'running') return;
    const elapsedMs = book.inMs();
    const makespanMs = book.jobs.reduce((latest, { endedInMs = 0 }) => Math.max(latest, endedInMs), 0);
    const quality = batchQuality(book.jobs, { makespanMs, hosts: qualityHosts(book) });
    this.#end = { elapsedMs, quality };
    await book.side.onEnding(this.view()).catch((error: unknown) => book.warn('results-not-written', error));
    book.side.log.info({ event: 'batch-ended', batchId: this.id, state, elapsedMs, ...quality });
    await book.record([{ type: 'ended', state, elapsedMs, quality: quality ?? null }]);
    this.#markEnded();
    book.changed();
  }
}
