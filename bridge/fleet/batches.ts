import { existsSync, readdirSync } from 'node:fs';
import { appendFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { AppError } from '../../shared/errors.ts';
import { Uuid } from '../../shared/job.ts';
import type { FleetSide } from './batch-book.ts';
import { BatchIndex } from './batch-index.ts';
import { lockHolder, sweepDeadLocks } from './batch-lock.ts';
import type { LockHolder } from './batch-lock.ts';
import type { BatchOrder } from './batch-order.ts';
import { manifestView } from './batch-view.ts';
import type { BatchView } from './batch-view.ts';
import { Batch } from './batch.ts';
import type { JobRecord } from './job-record.ts';
import { removeOldBatches } from './old-batches.ts';

type BatchesOptions = {
  root: string;
  side: FleetSide;
  clientName: () => string;
  signal: AbortSignal;
  onResumed: (batch: Batch) => void;
  /** Called before the record of an old batch goes; a failure keeps it. */
  onRemoving?: ((batchId: string) => Promise<void>) | undefined;
  /** Whoever waits for what runs here, and sees its failure. */
  own: (work: Promise<void>) => void;
};

/** Ended batches that stay in memory, as long as they have no more jobs than this together. */
const ENDED_KEPT = 50;
const ENDED_JOBS_KEPT = 5_000;
/** What is no longer remembered goes at the start, and then so often: a bridge may run for weeks. */
const SWEEP_EVERY_MS = 3_600_000;

/**
 * All batches: those this process works on, and, read from the state directory, those of other processes and of earlier
 * ones. What nobody works on any more is taken up here.
 */
export class Batches {
  readonly #options: BatchesOptions;
  readonly #own = new Map<string, Batch>();
  readonly #index: BatchIndex;
  #sweptAtMs = Number.NEGATIVE_INFINITY;
  #isScanning = false;
  #scannedAtMs = Number.NEGATIVE_INFINITY;

  constructor(options: BatchesOptions) {
    this.#options = options;
    this.#index = new BatchIndex(options.root);
  }

  /** Those of this process, in the order in which it began with them. */
  get own(): ReadonlyMap<string, Batch> {
    return this.#own;
  }

  /** A new batch, durable when this resolves. */
  async start(order: BatchOrder): Promise<Batch> {
    const { root, side } = this.#options;
    const batch = await Batch.create(order, { root, side });
    this.#own.set(batch.id, batch);
    return batch;
  }

  /** The batch with this id, or with the job of this id, while this process works on it. */
  batch(id: string): Batch | undefined {
    return this.#own.get(id) ?? [...this.#own.values()].find((batch) => batch.has(id));
  }

  /** As `batch`, and also what other processes have and had. */
  find(id: string): BatchView | undefined {
    const own = this.batch(id);
    if (own !== undefined) return own.view();
    const found = this.#index.find(id);
    if (found === undefined) refuseUnreadable(this.#options.root, id);
    return found && manifestView(found.state);
  }

  /** The job as the manifest of an ended batch has it; undefined while somebody works on it. */
  endedJob(jobId: string): JobRecord | undefined {
    return this.#index.findEnded(jobId)?.state.job(jobId);
  }

  /** Newest first, at most so many. */
  list(limit: number): BatchView[] {
    const others = this.#index.newest(limit + this.#own.size).filter(({ batchId }) => !this.#own.has(batchId));
    const views = [
      ...[...this.#own.values()].map((batch) => batch.view()),
      ...others.flatMap(({ state }) => manifestView(state) ?? []),
    ];
    return views.sort((a, b) => (a.createdAt < b.createdAt ? 1 : -1)).slice(0, limit);
  }

  /** Which process works on a batch; undefined when none does. */
  async holder(batchId: string): Promise<LockHolder | undefined> {
    return await lockHolder(join(this.#options.root, batchId));
  }

  /** Ends a batch or one job of it. Another process that holds it is asked by a file, and looks every second. */
  async cancel(id: string): Promise<BatchView> {
    const own = this.batch(id);
    if (own !== undefined) return await own.cancel(own.id === id ? undefined : [id]);
    const found = this.#index.find(id);
    const view = found && manifestView(found.state);
    if (found === undefined || view === undefined) {
      throw new AppError('JOB_NOT_FOUND', `No job or batch has the id ${id}. Nothing was stopped. Check the id.`);
    }
    if (found.state.ended !== undefined) return view;
    const directory = join(this.#options.root, found.batchId);
    if (found.batchId === id) await writeFile(join(directory, 'cancel'), '');
    else await appendFile(join(directory, 'cancel-jobs'), `${id}\n`);
    return view;
  }

  /** Called a few times a second. */
  tick(): void {
    for (const batch of this.#own.values()) {
      if (!batch.isEnded && !batch.isLost) batch.tick();
      else if (!batch.isClosed) this.#options.own(batch.close());
      if (batch.isLost) this.#own.delete(batch.id);
    }
    this.#forgetOldest();
  }

  /** Takes up batches nobody works on, at most every `everyMs`; undefined when that is not due. */
  rescan(everyMs: number): Promise<void> | undefined {
    const nowMs = performance.now();
    if (this.#isScanning || nowMs - this.#scannedAtMs < everyMs || this.#options.signal.aborted) return undefined;
    this.#isScanning = true;
    this.#scannedAtMs = nowMs;
    return this.#resumeAll().finally(() => {
      this.#isScanning = false;
    });
  }

  /** Lets go of all; another process may resume them. */
  async close(): Promise<void> {
    await Promise.all([...this.#own.values()].map((batch) => batch[Symbol.asyncDispose]()));
  }

  async #resumeAll(): Promise<void> {
    const { root, side, clientName, signal, onRemoving } = this.#options;
    if (performance.now() - this.#sweptAtMs > SWEEP_EVERY_MS) {
      this.#sweptAtMs = performance.now();
      const removed = await removeOldBatches(root, { nowMs: Date.now(), onRemoving }).catch((error: unknown) => {
        side.log.error({ event: 'old-batches-not-removed', err: error }); // tried again at the next sweep
        return 0;
      });
      if (removed > 0) side.log.info({ event: 'old-batches-removed', count: removed });
      await sweepDeadLocks({ nowMs: Date.now() });
    }
    for (const batchId of this.#index.unfinished({ but: this.#own })) {
      if (this.#own.has(batchId) || signal.aborted) continue;
      const holder = { pid: process.pid, client: clientName() };
      const batch = await Batch.resume(join(root, batchId), { side, holder }).catch((error: unknown) => {
        side.log.error({ event: 'batch-not-resumed', batchId, err: error }); // the others are, and this one is tried again
        return undefined;
      });
      if (batch === undefined) continue;
      this.#own.set(batchId, batch);
      if (signal.aborted) await batch[Symbol.asyncDispose]();
      else this.#options.onResumed(batch);
    }
  }

  /** The oldest ended batches are from then on read from their manifests. */
  #forgetOldest(): void {
    const ended = [...this.#own.values()].filter((batch) => batch.isEnded && batch.isClosed);
    let jobs = ended.reduce((sum, { header }) => sum + header.total, 0);
    for (let left = ended.length; left > 1 && (left > ENDED_KEPT || jobs > ENDED_JOBS_KEPT); left -= 1) {
      const oldest = ended[ended.length - left];
      if (oldest === undefined) return;
      jobs -= oldest.header.total;
      this.#own.delete(oldest.id);
    }
  }
}

/** Of a batch whose manifest cannot be read at all something is left: what its file was moved to. */
function refuseUnreadable(root: string, id: string): void {
  if (!Uuid.safeParse(id).success) return;
  const directory = join(root, id);
  const kept = existsSync(directory) ? readdirSync(directory).find((name) => name.includes('.corrupt-')) : undefined;
  if (kept === undefined || existsSync(join(directory, 'manifest.jsonl'))) return;
  const what = `The record of the batch ${id} was damaged so that nothing of it can be read; it is kept as ${join(directory, kept)}.`;
  throw new AppError(
    'JOB_NOT_FOUND',
    `${what} Images that were finished are where they were saved. Ask for the others again.`,
  );
}
