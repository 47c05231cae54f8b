import { performance } from 'node:perf_hooks';
import type { Job } from '../../shared/job.ts';
import type { AgentJob, Notification } from '../../shared/protocol.ts';
import { Alarm } from './alarm.ts';
import type { Attempt, JobEnd } from './journal-lines.ts';

const PROGRESS_EVERY_MS = 250;

type ActiveJobOptions = {
  tokenId: string;
  /** Which bridge took it. */
  sessionId: string;
  job: Job;
  gpus: readonly string[];
  grantedMs: number;
  /** It was granted while its model had to be brought in, so that its start begins a turn. */
  bringsModelIn: boolean;
  /** It was granted ahead: the time to its start says nothing about the way of a grant. */
  isLead: boolean;
  expectedMs: number;
  notify: (notification: Notification) => void;
};

/** One attempt between its take and the moment its end is on disk. The exchange alone changes it. */
export class ActiveJob {
  readonly kind = 'job';
  readonly tokenId: string;
  readonly sessionId: string;
  readonly job: Job;
  readonly gpus: readonly string[];
  readonly grantedMs: number;
  readonly bringsModelIn: boolean;
  readonly isLead: boolean;
  readonly expectedMs: number;
  /** Ends it before the engine has it; once it runs, only `abandon` does. */
  readonly stop = new AbortController();
  readonly abandon = new AbortController();
  /** Settles once the journal line `taken` is on disk, or could not be written. */
  journaled: Promise<void> = Promise.resolve();
  /** Settles once the end is known to everybody. */
  ended: Promise<void> = Promise.resolve();
  /** Settles once the journal line `cancelled` is on disk; at once where there is none. */
  cancelKept: Promise<void> = Promise.resolve();
  /** Settles when the job before it has left the slot. */
  ahead: Promise<void> = Promise.resolve();
  startedMs: number | undefined;
  end: JobEnd | undefined;
  /** Its `done` line is being written: it is too late to cancel. */
  isEnding = false;
  readonly #left: { promise: Promise<void>; resolve: () => void };
  readonly #notify: (notification: Notification) => void;
  readonly #alarm = new Alarm();
  #progress = { step: 0, steps: 0, detail: '' };
  #sentMs = -Infinity;
  #toldState: 'accepted' | 'running' = 'accepted';

  constructor(options: ActiveJobOptions) {
    this.tokenId = options.tokenId;
    this.sessionId = options.sessionId;
    this.job = options.job;
    this.gpus = options.gpus;
    this.grantedMs = options.grantedMs;
    this.bringsModelIn = options.bringsModelIn;
    this.isLead = options.isLead;
    this.expectedMs = options.expectedMs;
    this.#notify = options.notify;
    let resolve = (): void => undefined;
    const promise = new Promise<void>((settle) => (resolve = settle));
    this.#left = { promise, resolve };
  }

  get isCancelled(): boolean {
    return this.end?.state === 'cancelled';
  }

  /** Resolves when the slot is free of it. */
  get left(): Promise<void> {
    return this.#left.promise;
  }

  leave(): void {
    this.#left.resolve();
    this.#alarm.clear();
  }

  /** How much longer it will run, by the learned time; 0 when it is late. */
  remainingMs(): number {
    if (this.startedMs === undefined) return this.expectedMs;
    return Math.max(0, this.startedMs + this.expectedMs - performance.now());
  }

  /**
   * Tells every session of the token, at most four times a second; the latest always gets through. That it runs is told at
   * once: if its server dies in the next moment, the bridge has to know that it died of this job.
   */
  progress(change: Partial<{ step: number; steps: number; detail: string }>): void {
    if (this.end !== undefined) return;
    this.#progress = { ...this.#progress, ...change };
    const hasJustStarted = this.startedMs !== undefined && this.#toldState === 'accepted';
    const waitMs = hasJustStarted ? 0 : this.#sentMs + PROGRESS_EVERY_MS - performance.now();
    if (waitMs > 0) this.#alarm.set(waitMs, () => this.progress({}));
    else this.#send();
  }

  #send(): void {
    this.#sentMs = performance.now();
    const { jobId, attempt } = this.job;
    const state = this.startedMs === undefined ? 'accepted' : 'running';
    this.#toldState = state;
    this.#notify({ method: 'job.progress', params: { jobId, attempt, state, ...this.#progress } });
  }
}

/** The state of an attempt as its bridge may know it. */
export function agentJob(
  { job, end }: Pick<Attempt, 'job'> & { end: JobEnd | undefined },
  { isRunning }: { isRunning: boolean },
): AgentJob {
  const key = { jobId: job.jobId, attempt: job.attempt };
  if (end === undefined) return { ...key, state: isRunning ? 'running' : 'accepted' };
  if (end.state === 'done') return { ...key, state: 'done', result: end.result };
  if (end.state === 'failed') return { ...key, state: 'failed', error: end.error };
  return { ...key, state: 'cancelled' };
}
