import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { pause } from '../../shared/abort.ts';
import { backoffMs } from '../../shared/backoff.ts';
import { syncDirectory } from '../../shared/durable-file.ts';
import { AppError, toAppError } from '../../shared/errors.ts';
import type { JobResult } from '../../shared/job.ts';
import { roomProblem } from '../output/disk-room.ts';
import type { AgentLink } from './agent-link.ts';
import type { BatchBook } from './batch-book.ts';
import type { JobRecord } from './job-record.ts';
import { isAt } from './job-state.ts';
import type { Place } from './job-state.ts';
import { Permits } from './permits.ts';
import { fetchResult, hasContent, previewPathOf } from './result-fetch.ts';
import { writeSideCar } from './side-car.ts';

export type Fetched = { place: Place; result: JobResult; path: string; previewPath: string | undefined };

type FetcherEvents = {
  /** The file is final and `saved` is on the disk. */
  onSaved: (job: JobRecord, fetched: Fetched) => Promise<void>;
  /** The link went down on the way; the next hello lists the result again. */
  onUnsure: (job: JobRecord, place: Place) => void;
  /** The host no longer has the result. */
  onLost: (job: JobRecord, place: Place) => void;
  onDamaged: (job: JobRecord, o: { place: Place; error: AppError }) => void;
};

/** Waits between tries, while a transfer breaks or a directory cannot be written. */
const RETRY = { firstMs: 500, maxMs: 30_000 };
const MAX_DAMAGED = 3;
const AT_A_TIME = 4;
/** A transfer that broke or was given up, as opposed to a directory that cannot be written. */
const NETWORK_CODES = new Set([
  'ABORT_ERR',
  'ECONNRESET',
  'EPIPE',
  'ECONNREFUSED',
  'ETIMEDOUT',
  'ERR_STREAM_PREMATURE_CLOSE',
]);

/** Brings results to their files: GET, part, `saving` on the disk, link, `saved` on the disk. Never two files for one job. */
export class JobFetcher {
  readonly #book: BatchBook;
  readonly #events: FetcherEvents;
  readonly #permits = new Permits(AT_A_TIME);
  readonly #running = new Map<string, AbortController>();
  /** The transfers under way. */
  readonly #transfers = new Map<string, AbortController>();

  constructor(book: BatchBook, events: FetcherEvents) {
    this.#book = book;
    this.#events = events;
  }

  start(job: JobRecord, o: { place: Place; result: JobResult }): void {
    this.#book.enter(job, { kind: 'fetching', at: o.place, result: o.result });
    job.progress = { ...job.progress, detail: `fetching the image from ${o.place.host}` };
    this.#book.own(job, this.#run(job, o));
  }

  /** For a job that is cancelled while it is fetched. One that is being saved is left alone: done wins. */
  stop(job: JobRecord): void {
    this.#running.get(job.jobId)?.abort(new AppError('INTERRUPTED', 'The job was cancelled.'));
  }

  /** The link to this host is gone: a transfer that got stuck is not waited for. What is being saved is here already. */
  breakOff(host: string): void {
    for (const [jobId, transfer] of this.#transfers) {
      const state = this.#book.job(jobId)?.state;
      if (state?.kind !== 'fetching' || state.at.host !== host) continue;
      transfer.abort(new AppError('AGENT_UNREACHABLE', `The link to ${host} is lost.`));
    }
  }

  /** A file with the name and content of a `saving` line is saved, even if the line that says so was never written. */
  async findSaved(job: JobRecord): Promise<Fetched | undefined> {
    for (const { name, result, host, attempt } of job.savings) {
      const path = join(job.directory, name);
      if (!(await hasContent(path, result.sha256))) continue;
      await syncDirectory(job.directory); // whoever linked it may have died before that
      const preview = previewPathOf(this.#book.directory, job.jobId);
      const previewPath = (await stat(preview).catch(() => undefined)) && preview;
      return { place: { host, attempt }, result, path, previewPath };
    }
    return undefined;
  }

  /** Writes `saved`, then tells. */
  async finish(job: JobRecord, fetched: Fetched): Promise<void> {
    const { place, result, path, previewPath = null } = fetched;
    await this.#describe(job, fetched);
    const endedInMs = this.#book.inMs();
    await this.#book.append([{ type: 'saved', jobId: job.jobId, ...place, path, previewPath, result, endedInMs }]);
    job.endedInMs = endedInMs;
    if (this.#book.pausedBy !== undefined) await this.#book.room.check();
    await this.#events.onSaved(job, fetched);
  }

  /** Before `saved`: what dies in between does it again. An image without a description is still an image. */
  async #describe(job: JobRecord, fetched: Fetched): Promise<void> {
    if (this.#book.side.hasSideCars !== true) return;
    const createdAt = new Date().toISOString();
    await writeSideCar(job, { ...fetched, createdAt }).catch((error: unknown) =>
      this.#book.warn('side-car-not-written', toAppError(error, 'SAVE_FAILED')),
    );
  }

  async #run(job: JobRecord, o: { place: Place; result: JobResult }): Promise<void> {
    const cancelled = new AbortController();
    const onEnd = (): void => cancelled.abort(this.#book.life.reason);
    this.#book.life.addEventListener('abort', onEnd);
    this.#running.set(job.jobId, cancelled);
    try {
      await this.#untilSaved(job, { ...o, signal: cancelled.signal });
    } finally {
      this.#book.life.removeEventListener('abort', onEnd);
      if (this.#running.get(job.jobId) === cancelled) this.#running.delete(job.jobId);
    }
  }

  async #untilSaved(job: JobRecord, o: { place: Place; result: JobResult; signal: AbortSignal }): Promise<void> {
    const { place, result, signal } = o;
    for (let tries = 1, damaged = 0; !signal.aborted && isAt(job.state, place); tries += 1) {
      const link = this.#book.side.link(place.host);
      if (link === undefined) return this.#events.onUnsure(job, place);
      try {
        const fetched = (await this.findSaved(job)) ?? (await this.#fetch(job, { ...o, link }));
        return await this.finish(job, fetched);
      } catch (error) {
        if (signal.aborted) return;
        const failure = toAppError(error, 'SAVE_FAILED');
        this.#book.warn('fetch-failed', failure);
        if (job.state.kind === 'saving') this.#book.enter(job, { kind: 'fetching', at: place, result });
        if (!isAt(job.state, place)) return;
        if (failure.code === 'JOB_NOT_FOUND') return this.#events.onLost(job, place);
        const kind = kindOf(failure);
        if (kind === 'damaged') damaged += 1;
        if (damaged >= MAX_DAMAGED) return this.#events.onDamaged(job, { place, error: failure });
        if (kind !== 'disk' && !link.isUp) return this.#events.onUnsure(job, place);
        job.progress = { ...job.progress, detail: failure.message };
        if (kind === 'disk') {
          this.#book.pauseBy(failure);
          await this.#untilRoom(job, o);
        } else await pause(backoffMs(tries, { ...RETRY, random: Math.random() }), signal);
      }
    }
  }

  /** The image stays on its host, and is not sent for again before there is room for it. */
  async #untilRoom(job: JobRecord, { result, signal }: { result: JobResult; signal: AbortSignal }): Promise<void> {
    const maxMs = this.#book.side.times.diskCheckMs;
    for (let tries = 1; !signal.aborted; tries += 1) {
      await pause(backoffMs(tries, { firstMs: RETRY.firstMs, maxMs, random: Math.random() }), signal);
      if ((await roomProblem(job.directory, result.bytes)) === undefined) return;
    }
  }

  async #fetch(
    job: JobRecord,
    o: { place: Place; result: JobResult; link: AgentLink; signal: AbortSignal },
  ): Promise<Fetched> {
    const { place, result, link } = o;
    const transfer = new AbortController();
    const { signal } = transfer;
    const onAbort = (): void => transfer.abort(o.signal.reason);
    o.signal.addEventListener('abort', onAbort, { once: true });
    const onSaving = async (name: string): Promise<void> => {
      signal.throwIfAborted();
      if (job.state.kind === 'fetching') this.#book.enter(job, { kind: 'saving', at: place, result });
      job.savings.push({ ...place, name, result });
      await this.#book.append([{ type: 'saving', jobId: job.jobId, ...place, name, sha256: result.sha256, result }]);
    };
    const options = { link, record: job, result, batchDirectory: this.#book.directory, onSaving, signal };
    this.#transfers.set(job.jobId, transfer);
    try {
      return { place, result, ...(await this.#permits.use(() => fetchResult(options))) };
    } finally {
      o.signal.removeEventListener('abort', onAbort);
      if (this.#transfers.get(job.jobId) === transfer) this.#transfers.delete(job.jobId);
    }
  }
}

function kindOf(error: AppError): 'damaged' | 'network' | 'disk' {
  if (error.code === 'RESULT_INVALID' || (error.code === 'SAVE_FAILED' && error.cause === undefined)) return 'damaged';
  if (error.code === 'AGENT_UNREACHABLE' || error.code === 'TIMEOUT') return 'network';
  const { cause } = error;
  const code = cause instanceof Error && 'code' in cause ? String(cause.code) : '';
  return error.code === 'SAVE_FAILED' && NETWORK_CODES.has(code) ? 'network' : 'disk';
}
