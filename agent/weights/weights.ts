import { untilAborted } from '../../shared/abort.ts';
import { backoffMs } from '../../shared/backoff.ts';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { ConfiguredModel } from '../configured-model.ts';
import { download } from './weights-download.ts';
import type { DownloadFailure, DownloadProblem } from './weights-failure.ts';
import { freeBytesAt } from './weights-files.ts';
import { forecast } from './weights-meter.ts';
import { findDownloader } from './weights-program.ts';
import { isWhole, snapshotOf, WeightsRecords } from './weights-records.ts';
import type { WeightsSource } from './weights-source.ts';
import { keyOf, sourceOf } from './weights-source.ts';

/** Where the weights of a model are. 'absent' also means that nobody has looked yet. */
export type WeightsState =
  | { kind: 'present' }
  | { kind: 'absent' }
  | { kind: 'queued'; behind: string }
  | {
      kind: 'downloading';
      doneMiB: number;
      totalMiB: number | null;
      /** The total is a guess by what is known of the model. */
      isEstimate: boolean;
      mibPerSecond: number | null;
      leftMs: number | null;
    }
  | { kind: 'failed'; problem: DownloadProblem; error: AppError; retry: { atMs: number } | 'never' };

export type WeightsOptions = {
  stateDir: string;
  logDir: string;
  stallMs: number;
  /** First pause after a failure; it doubles, up to ten minutes. */
  retryFirstMs: number;
  log: Log;
  /** The kind of a state has changed. */
  onChange: () => void;
  /** Only numbers have. */
  onProgress: () => void;
  everyMs?: number;
  reserveMiB?: number;
  freeBytes?: (directory: string) => Promise<number>;
};

type Pull = { state: WeightsState; failures: number; running: Promise<void> | undefined };

const EVERY_MS = 1_000;
const RESERVE_MIB = 2_048;
const RETRY_MAX_MS = 600_000;

/**
 * Which weights are on this host's disk. Downloads them before a server needs them, one repository after another, with the
 * engine environment's own program. No GPU is touched meanwhile, and whoever waits only joins.
 */
export class Weights implements AsyncDisposable {
  readonly #options: WeightsOptions;
  readonly #records: WeightsRecords;
  readonly #lifetime = new AbortController();
  /** By repository, revision and cache: models may share one. */
  readonly #pulls = new Map<string, Pull>();
  /** Those the engine fetches by itself: there is no program to do it here, or its result cannot be trusted. */
  readonly #leftToEngine = new Set<string>();
  /** By what agent.yaml says of the start: a reload may change that of a model. */
  readonly #sources = new WeakMap<ConfiguredModel['launch'], { source: WeightsSource | undefined }>();
  /** Seen with all their files. */
  readonly #whole = new Set<string>();
  #queue: Promise<void> = Promise.resolve();
  #current: string | undefined;

  constructor(options: WeightsOptions) {
    this.#options = options;
    this.#records = new WeightsRecords(options);
  }

  stateOf(model: ConfiguredModel): WeightsState {
    const source = this.#sourceOf(model);
    if (source === undefined) return { kind: 'present' };
    const key = keyOf(source);
    const pull = this.#pulls.get(key);
    if (pull?.running !== undefined) return pull.state;
    if (this.#leftToEngine.has(key) || this.#records.find(source) !== undefined) return { kind: 'present' };
    return pull?.state.kind === 'failed' ? pull.state : { kind: 'absent' };
  }

  /** Nothing here can fetch them, or say whether they are complete: the engine does, during its start. */
  isLeftToEngine(model: ConfiguredModel): boolean {
    const source = this.#sourceOf(model);
    return source !== undefined && this.#leftToEngine.has(keyOf(source));
  }

  /** A download would begin, were it asked for now. */
  isDue(model: ConfiguredModel): boolean {
    const state = this.stateOf(model);
    return state.kind === 'absent' || (state.kind === 'failed' && isOver(state.retry));
  }

  /**
   * Settles when they are there; joins a download under way. A caller that leaves does not end it. After a failure it is
   * refused until its time has come; `isAsked`: a person wants it, so that a failure before does not count.
   */
  async pull(model: ConfiguredModel, signal: AbortSignal, { isAsked = false } = {}): Promise<void> {
    const source = this.#sourceOf(model);
    if (source === undefined || this.#leftToEngine.has(keyOf(source))) return;
    const pull = this.#pullOf(source);
    if (pull.running === undefined) {
      if (await this.#isThere(source)) return;
      const { state } = pull;
      if (state.kind === 'failed' && !isAsked && !isOver(state.retry)) throw state.error;
    }
    pull.running ??= this.#enqueue(model, { source, pull });
    await untilAborted(pull.running, signal);
  }

  /**
   * What a server of this model gets in its environment, as the last `pull` found the files: it must not ask the network for
   * what is there.
   */
  environment(model: ConfiguredModel): Record<string, string> {
    const source = this.#sourceOf(model);
    if (source?.hub !== 'hugging-face') return {};
    return this.#whole.has(keyOf(source)) ? { HF_HUB_OFFLINE: '1' } : {};
  }

  /** The downloader ends with us; what has arrived stays for the next time. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#lifetime.abort(new AppError('INTERRUPTED', 'The agent stops. What was downloaded so far is kept.'));
    await this.#queue;
  }

  /** Looking at a path and at the environment for every snapshot would be a waste. */
  #sourceOf(model: ConfiguredModel): WeightsSource | undefined {
    const known = this.#sources.get(model.launch) ?? { source: sourceOf(model) };
    this.#sources.set(model.launch, known);
    return known.source;
  }

  #pullOf(source: WeightsSource): Pull {
    const key = keyOf(source);
    const known = this.#pulls.get(key) ?? { state: { kind: 'absent' }, failures: 0, running: undefined };
    this.#pulls.set(key, known);
    return known;
  }

  /** A record whose files are gone is forgotten, so that they are fetched again. */
  async #isThere(source: WeightsSource): Promise<boolean> {
    const record = this.#records.find(source);
    this.#whole.delete(keyOf(source));
    if (record === undefined) return false;
    if (record.snapshot === null) return true;
    if (await isWhole(record.snapshot)) {
      this.#whole.add(keyOf(source));
      return true;
    }
    this.#options.log.warn({ event: 'weights-damaged', repository: source.repository, snapshot: record.snapshot });
    await this.#records.remove(source);
    return false;
  }

  #enqueue(model: ConfiguredModel, { source, pull }: { source: WeightsSource; pull: Pull }): Promise<void> {
    if (this.#current !== undefined) this.#enter(pull, { kind: 'queued', behind: this.#current });
    const running = this.#queue
      .then(() => this.#run(model, { source, pull }))
      .finally(() => {
        pull.running = undefined;
        this.#options.onChange();
      });
    this.#current ??= source.repository;
    this.#queue = running.catch(() => undefined); // its callers see the failure, if any are left
    return running;
  }

  async #run(model: ConfiguredModel, { source, pull }: { source: WeightsSource; pull: Pull }): Promise<void> {
    this.#lifetime.signal.throwIfAborted();
    const { log } = this.#options;
    const { repository, revision } = source;
    this.#current = repository;
    const unknown = { mibPerSecond: null, leftMs: null };
    this.#enter(pull, { kind: 'downloading', doneMiB: 0, totalMiB: null, isEstimate: true, ...unknown });
    const startMs = performance.now();
    log.info({ event: 'weights-download', model: model.alias, repository, revision });
    try {
      const failure = await this.#fetch(model, { source, pull });
      if (failure !== undefined) throw this.#fail(pull, failure);
      pull.failures = 0;
      pull.state = { kind: 'absent' }; // what is there now is in the records
      const tookMs = Math.round(performance.now() - startMs);
      log.info({ event: 'weights-there', model: model.alias, repository, revision, tookMs });
    } catch (error) {
      if (!this.#lifetime.signal.aborted) {
        log.error({ event: 'weights-failed', model: model.alias, repository, revision, error: String(error) });
      }
      throw error;
    } finally {
      this.#current = undefined;
    }
  }

  /** Undefined when they are there, or when the engine will see to it. */
  async #fetch(
    model: ConfiguredModel,
    { source, pull }: { source: WeightsSource; pull: Pull },
  ): Promise<DownloadFailure | undefined> {
    const {
      log,
      logDir,
      stallMs,
      everyMs = EVERY_MS,
      reserveMiB = RESERVE_MIB,
      freeBytes = freeBytesAt,
    } = this.#options;
    const downloader = await findDownloader(model, source);
    if (downloader === undefined) {
      const message =
        `No downloader is beside the engine of ${model.alias} or on the PATH: the engine fetches ${source.repository} by itself, ` +
        'within its start deadline and without progress. Install huggingface_hub there, or set `download`.';
      log.warn({ event: 'weights-left-to-engine', model: model.alias, repository: source.repository, message });
      this.#leftToEngine.add(keyOf(source));
      return undefined;
    }
    const result = await download({
      ...{ model, source, downloader, logDir, stallMs, everyMs, reserveMiB, freeBytes },
      onMeter: (meter, total) => {
        this.#enter(pull, {
          kind: 'downloading',
          doneMiB: meter.doneMiB,
          ...total,
          ...forecast(meter, total.totalMiB),
        });
      },
      signal: this.#lifetime.signal,
    });
    if (result.kind === 'failed') return result.failure;
    await this.#keep(model, { source, isDoubtful: !result.brought && result.hasPartials });
    return undefined;
  }

  /**
   * On record, when it is known to be complete. Older versions of the downloader also end well when the hub cannot be reached
   * and a part of the files is there: with nothing fetched and partial files about, the engine has to look by itself.
   */
  async #keep(
    model: ConfiguredModel,
    { source, isDoubtful }: { source: WeightsSource; isDoubtful: boolean },
  ): Promise<void> {
    const { log } = this.#options;
    const { repository } = source;
    const snapshot = source.hub === 'hugging-face' ? snapshotOf(source) : undefined;
    if (isDoubtful || (snapshot !== undefined && !(await isWhole(snapshot)))) {
      log.warn({ event: 'weights-doubtful', model: model.alias, repository, snapshot });
      this.#leftToEngine.add(keyOf(source));
      return;
    }
    if (snapshot !== undefined) this.#whole.add(keyOf(source));
    try {
      await this.#records.put(source, snapshot);
    } catch (error) {
      log.error({ event: 'weights-not-recorded', model: model.alias, repository, error: String(error) });
      this.#leftToEngine.add(keyOf(source)); // they are there all the same
    }
  }

  #fail(pull: Pull, { problem, error, isFatal }: DownloadFailure): AppError {
    pull.failures += 1;
    const limits = { firstMs: this.#options.retryFirstMs, maxMs: RETRY_MAX_MS, random: Math.random() };
    const retry = isFatal ? 'never' : { atMs: performance.now() + backoffMs(pull.failures, limits) };
    this.#enter(pull, { kind: 'failed', problem, error, retry });
    return error;
  }

  #enter(pull: Pull, state: WeightsState): void {
    const isNews = pull.state.kind !== state.kind;
    pull.state = state;
    if (isNews) this.#options.onChange();
    else this.#options.onProgress();
  }
}

function isOver(retry: { atMs: number } | 'never'): boolean {
  return retry !== 'never' && retry.atMs <= performance.now();
}
