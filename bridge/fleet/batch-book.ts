import { setMaxListeners } from 'node:events';
import { performance } from 'node:perf_hooks';
import { AppError, toAppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { AgentLink } from './agent-link.ts';
import type { BatchLock } from './batch-lock.ts';
import type { PlanRules } from './batch-plan.ts';
import type { BatchView } from './batch-view.ts';
import { capableHost, roomMiB, sizeOf } from './host-forecast.ts';
import type { BridgeTimes, HostView } from './host-view.ts';
import { enterState } from './job-record.ts';
import type { Holding, JobRecord } from './job-record.ts';
import { isOver, placeOf } from './job-state.ts';
import type { JobState } from './job-state.ts';
import { JobTable } from './job-table.ts';
import type { ManifestHeader, ManifestLine, ManifestRepair } from './manifest-lines.ts';
import type { Manifest } from './manifest.ts';
import type { CapableHost } from './retry-policy.ts';
import { RoomWatch } from './room-watch.ts';

/** A job and where it may go. */
export type PlannedJob = { job: JobRecord; rules: PlanRules };

/** What a batch needs of its fleet. */
export type FleetSide = {
  readonly times: BridgeTimes;
  readonly log: Log;
  /** Whether images that cannot carry their parameters get a file that does. */
  readonly hasSideCars?: boolean;
  hosts: () => readonly HostView[];
  link: (host: string) => AgentLink | undefined;
  /** This bridge's jobs on slots, of all batches. */
  holdings: () => readonly Holding[];
  /** Waiting jobs of other batches of this process that the plan puts before those of this one. */
  waitingBefore: (batchId: string) => readonly PlannedJob[];
  /** Offers depend on something that changed. */
  changed: () => void;
  /** The host refused something for a reason that may pass: no offers to it for a while. */
  holdOff: (host: string, error: AppError) => void;
  /** All jobs of a batch are over, and it ends when this has resolved; `view` is how. */
  onEnding: (view: BatchView) => Promise<void>;
  /** The refusal because of which the host gets no offers now. */
  heldOff: (host: string) => AppError | undefined;
};

/**
 * The jobs of one batch with what makes their changes durable and known: the manifest, the lock, and the work that
 * runs for them. Only here is the kind of a state changed.
 */
export class BatchBook implements AsyncDisposable {
  readonly header: ManifestHeader;
  readonly directory: string;
  readonly table: JobTable;
  /** What happened to its manifest before this process had it. */
  readonly repairs: readonly ManifestRepair[];
  readonly side: FleetSide;
  readonly rules: PlanRules;
  readonly lock: BatchLock;
  /** Whether its images can still be saved. */
  readonly room: RoomWatch;
  /** What ends a job whose work failed in a way nobody foresaw. */
  onBroken: (job: JobRecord, error: AppError) => Promise<void> = () => Promise.resolve();
  readonly #manifest: Manifest;
  readonly #startedMs: number;
  readonly #life = new AbortController();
  readonly #work = new Set<Promise<void>>();
  #pausedBy: AppError | undefined;
  /** Lines that the disk refused, and that are still true. */
  #owed: readonly ManifestLine[] = [];
  #closing: Promise<void> | undefined;

  constructor(o: {
    directory: string;
    header: ManifestHeader;
    jobs: readonly JobRecord[];
    manifest: Manifest;
    lock: BatchLock;
    side: FleetSide;
    ageMs: number;
    isNew: boolean;
    repairs?: readonly ManifestRepair[];
  }) {
    this.header = o.header;
    this.directory = o.directory;
    this.table = new JobTable(o.jobs, o.header.order);
    this.repairs = o.repairs ?? [];
    this.side = o.side;
    this.rules = { only: o.header.host ?? undefined, avoid: [], spread: o.header.maxConcurrent ?? undefined };
    this.lock = o.lock;
    this.#manifest = o.manifest;
    this.#startedMs = performance.now() - o.ageMs;
    this.room = new RoomWatch(this, o);
    setMaxListeners(0, this.#life.signal); // one for each result that waits to be fetched: many are no leak
  }

  /** Aborts when this process lets go of the batch. */
  get life(): AbortSignal {
    return this.#life.signal;
  }

  /** Why no new work is asked for: results cannot be saved, or the manifest cannot be written. */
  get pausedBy(): AppError | undefined {
    return this.#pausedBy;
  }

  get isClosed(): boolean {
    return this.#closing !== undefined;
  }

  get jobs(): readonly JobRecord[] {
    return this.table.jobs;
  }

  job(jobId: string): JobRecord | undefined {
    return this.table.job(jobId);
  }

  /** Time since the batch was started, also by an earlier process. */
  inMs(): number {
    return Math.round(performance.now() - this.#startedMs);
  }

  enter(job: JobRecord, next: JobState): void {
    const place = placeOf(next) ?? placeOf(job.state);
    this.table.move(job, () => enterState(job, next));
    if (isOver(next)) job.endedInMs ??= this.inMs();
    this.changed();
    const phase = next.kind;
    if (place === undefined) return;
    if (phase !== 'accepted' && phase !== 'running' && phase !== 'unsure' && phase !== 'waiting') return;
    this.note({ type: 'phase', jobId: job.jobId, ...place, phase });
  }

  /** Where a job of an earlier process is, by its manifest: no event, so not by the table of transitions. */
  restore(job: JobRecord, state: JobState): void {
    this.table.move(job, () => {
      job.state = state;
    });
  }

  /** The hosts that could take the job now, with the VRAM that its model could have there. */
  capableHosts(job: JobRecord): CapableHost[] {
    const { model, kind } = job.request;
    const want = { model, class: this.header.class, kind, size: sizeOf(job.request) };
    return this.side.hosts().flatMap((host) => {
      if (this.rules.only !== undefined && this.rules.only !== host.name) return [];
      const found = capableHost(host, want);
      return 'reason' in found ? [] : [{ host: host.name, roomMiB: roomMiB(found.snapshot) }];
    });
  }

  /** Resolves when the lines are on the disk, and with them what it refused before. */
  async append(lines: readonly ManifestLine[]): Promise<void> {
    const owed = this.#owed;
    this.#owed = [];
    try {
      await this.#manifest.append([...owed, ...lines]);
    } catch (error) {
      this.#owed = [...owed, ...this.#owed];
      throw error;
    }
  }

  /** As `append`, for what is so already: a full disk only delays the lines, they go before the next ones. */
  async record(lines: readonly ManifestLine[]): Promise<void> {
    await this.append(lines).catch((error: unknown) => {
      this.#owed = [...this.#owed, ...lines];
      this.warn('manifest-not-written', error);
    });
  }

  /** Tells other processes, in the background. */
  note(line: ManifestLine): void {
    this.own(
      undefined,
      this.#manifest.note(line).catch((error: unknown) => this.warn('manifest-not-written', error)),
    );
  }

  /** No new work until `room` finds that something can be written again. */
  pauseBy(error: AppError): void {
    this.#pausedBy = error;
    this.changed();
  }

  goOn(): void {
    if (this.#pausedBy === undefined) return;
    this.#pausedBy = undefined;
    this.changed();
  }

  changed(): void {
    this.side.changed();
  }

  /** The owner of all that runs for a job. What nobody foresaw ends that job, not the batch. */
  own(job: JobRecord | undefined, work: Promise<unknown>): void {
    const owned: Promise<void> = work
      .then(
        () => undefined,
        async (error: unknown) => {
          if (this.life.aborted) return;
          this.side.log.error({ event: 'job-work-failed', jobId: job?.jobId, err: error });
          if (job !== undefined && !isOver(job.state)) await this.onBroken(job, toAppError(error));
        },
      )
      .finally(() => this.#work.delete(owned));
    this.#work.add(owned);
  }

  warn(event: string, error: unknown): void {
    const why = error instanceof Error ? error.message : String(error);
    this.side.log.warn({ event, batchId: this.header.batchId, why });
  }

  /** Ends what runs; nothing new is started. */
  letGo(why: string): void {
    this.#life.abort(new AppError('INTERRUPTED', why));
  }

  /** Gives the manifest and the lock back when all that runs has ended. The records stay readable. */
  async close(): Promise<void> {
    this.#closing ??= this.#close();
    await this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.letGo('This bridge ends. The batch goes on at the next start; nothing is lost.');
    await this.close();
    await this.#idle(); // what a late hello started after the end
  }

  async #close(): Promise<void> {
    await this.#idle();
    if (this.#owed.length > 0) await this.record([]);
    await this.#manifest[Symbol.asyncDispose]();
    await this.lock[Symbol.asyncDispose]();
  }

  async #idle(): Promise<void> {
    while (this.#work.size > 0) await Promise.all(this.#work);
  }
}
