import { AppError, toAppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { VramMeasure } from '../gpu/vram-measure.ts';
import type { ConfiguredModel } from './configured-model.ts';
import type { Call, Engine, ServerFacts } from './engines/engine.ts';
import { HOST } from './engines/engine.ts';
import { HeldVram } from './held-vram.ts';
import type { ModelState, ServerRef } from './model-state.ts';
import { canEnter } from './model-state.ts';
import { untilReady } from './readiness.ts';
import type { Failures } from './restart-policy.ts';
import { afterReady, retryAfter } from './restart-policy.ts';
import { deathNews, died, withLog } from './server-failure.ts';
import type { ServerLog } from './server-log.ts';
import type { ServerProcess } from './server-process.ts';
import { describeExit } from './server-process.ts';
import type { ServerRecords } from './server-records.ts';
import { startServer } from './server-start.ts';
import type { Look, VramClaim } from './vram-verifier.ts';
import { pollMsFor, untilBack } from './vram-verifier.ts';

export type ModelTimes = {
  stopGraceMs: number;
  vramBackMs: number;
  /** The same for a server that had more than 16 GiB in pinned host RAM: that is returned slowly. */
  vramBackOffloadedMs: number;
  startDeadlineMs: number;
  /** A start without a log line or more VRAM for so long has failed. */
  stallMs: number;
  healthPollMs: number;
  retryFirstMs: number;
};

export type ServerLifeOptions = {
  slotId: string;
  model: ConfiguredModel;
  engine: Engine;
  look: Look;
  records: ServerRecords;
  logDir: string;
  times: ModelTimes;
  log: Log;
  /** What it is thought to hold when loaded. */
  loadedMiB: () => number;
  onChange: () => void;
  /** The memory of this server did not come back in time after its death. */
  onVramMissing: (claim: VramClaim) => void;
};

/** What it held before its end, and nvidia-smi before and after that. */
export type Burial = { before: VramMeasure | undefined; after: VramMeasure | undefined; heldMiB: number };

const HEALTH_MS = 5_000;
/** Pinned host memory is returned slowly: a server that was offloaded with more than this gets longer. */
const SLOW_RELEASE_MIB = 16 * 1024;
const KEPT_FAILURES = 20;

/** One server's process and state, from its start to its end and the return of its memory. Knows nothing of jobs. */
export class ServerLife {
  readonly #options: ServerLifeOptions;
  readonly #lifetime = new AbortController();
  readonly vram: HeldVram;
  #state: ModelState = { kind: 'released' };
  #enteredMs = performance.now();
  #gpus: readonly string[] = [];
  #process: ServerProcess | undefined;
  #facts: ServerFacts | undefined;
  #readySinceMs: number | undefined;
  #failures: Failures = [];
  #burial: Promise<Burial> | undefined;
  #death: AppError | undefined;
  #missedHealth = 0;
  #isChecking = false;

  constructor(options: ServerLifeOptions) {
    this.#options = options;
    this.vram = new HeldVram(options.look);
  }

  get state(): ModelState {
    return this.#state;
  }

  /** How long it has been in its present state. */
  get inStateMs(): number {
    return performance.now() - this.#enteredMs;
  }

  get gpus(): readonly string[] {
    return this.#gpus;
  }

  get process(): ServerProcess | undefined {
    return this.#process;
  }

  get log(): ServerLog | undefined {
    return this.#process?.log;
  }

  get version(): string | undefined {
    return this.#facts?.version;
  }

  /** Why it died, as long as no other one was started. */
  get death(): AppError | undefined {
    return this.#death;
  }

  /** Settles when its death, if one is under way, is over. */
  get burial(): Promise<unknown> | undefined {
    return this.#burial;
  }

  /** Aborts when the agent stops. */
  get signal(): AbortSignal {
    return this.#lifetime.signal;
  }

  /** Live processes of its tree. */
  pids(): number[] {
    return this.#process?.tree() ?? [];
  }

  /** Starts the process on these GPUs, or turns to the one that somebody else runs. From then on it is loading. */
  async begin(gpus: readonly string[], before: VramMeasure | undefined): Promise<void> {
    const { launch } = this.#options.model;
    const server: ServerRef =
      launch.kind === 'attached'
        ? { kind: 'attached', url: launch.url.replace(/\/$/, '') }
        : await this.#startProcess(gpus);
    this.vram.begin(before);
    this.#readySinceMs = undefined;
    this.#death = undefined;
    this.#enter({ kind: 'loading', server });
  }

  /** Settles when the server answers as this model, or rejects when it died, or is too late. */
  async untilAnswering(): Promise<void> {
    const { engine, model, times } = this.#options;
    const { signal } = this;
    const server = this.#server();
    const url = urlOf(server);
    if (server.kind === 'owned' && this.#process !== undefined) {
      const common = { deadlineMs: times.startDeadlineMs, pollMs: times.healthPollMs, signal };
      this.#facts = await untilReady({ process: this.#process, engine, model, port: server.port, url, ...common });
      return;
    }
    this.#facts = await engine.probe({ url, model, signal, deadlineMs: HEALTH_MS });
    if (this.#facts !== undefined) return;
    const message = `No server of ${model.alias} answers at ${url}. Start it, or correct \`attach\`.`;
    throw new AppError('MODEL_FAILED', message);
  }

  /** The same server in another state. */
  becomes(kind: 'loading' | 'ready' | 'offloading' | 'offloaded'): void {
    if (kind === 'ready') this.#readySinceMs ??= performance.now();
    this.#enter({ kind, server: this.#server() });
  }

  /** Throws where it died meanwhile, once that is settled. */
  async throwIfDead(): Promise<void> {
    await this.#burial;
    if (this.#state.kind === 'failed') throw this.#state.error;
  }

  /** As `throwIfDead`, for a call that failed: the news of a death may come after the cut of the connection. */
  async throwIfCutByDeath(error: unknown): Promise<void> {
    await deathNews(error, this.#process);
    await this.throwIfDead();
  }

  call(deadlineMs: number): Call {
    if (this.#facts === undefined) throw new Error(`${this.#options.slotId} was never ready`);
    return { url: urlOf(this.#server()), facts: this.#facts, signal: this.signal, deadlineMs };
  }

  async isHealthy(): Promise<boolean> {
    if (!('server' in this.#state)) return false;
    const { signal } = this;
    try {
      return await this.#options.engine.isHealthy({ url: urlOf(this.#state.server), signal, deadlineMs: HEALTH_MS });
    } catch {
      return true; // the agent stops: nothing is known, and nothing is to be done
    }
  }

  /** Ends a server that does not answer twice running: one whose exit nobody sees, or that says so itself. */
  async checkHealth(isIdle: () => boolean): Promise<void> {
    if ((this.#state.kind !== 'ready' && this.#state.kind !== 'offloaded') || !isIdle() || this.#isChecking) return;
    const server = this.#server();
    this.#isChecking = true;
    const isHealthy = await this.isHealthy();
    this.#isChecking = false;
    this.#missedHealth = isHealthy ? 0 : this.#missedHealth + 1;
    if (this.#missedHealth < 2 || !isIdle() || !this.isStill(server)) return;
    await this.bury(died(this.#options.model.alias, 'does not answer its health check any more'));
  }

  /** False where the server has changed, or is on its way out. */
  isStill(server: ServerRef): boolean {
    return 'server' in this.#state && this.#state.server === server && this.#state.kind !== 'releasing';
  }

  /** What it holds now. The last look stays where nvidia-smi does not answer. */
  look(): Promise<VramMeasure | undefined> {
    return this.vram.look({ gpus: this.#gpus, pids: () => this.pids(), signal: this.signal });
  }

  /** A failure becomes as if it had never been. */
  forgive(): void {
    if (this.#state.kind !== 'failed') return;
    this.#failures = [];
    this.#enter({ kind: 'released' });
  }

  /** Ends what is left, waits for the VRAM, and says why. Every death comes through here, once. Never rejects. */
  bury(cause: 'asked' | AppError): Promise<Burial> {
    this.#burial ??= this.#buryNow(cause).finally(() => (this.#burial = undefined));
    return this.#burial;
  }

  /** As `bury`; returns the error with what is known after it. */
  async buriedFor(error: AppError): Promise<AppError> {
    await this.bury(error);
    return this.#state.kind === 'failed' ? this.#state.error : error;
  }

  /** Stops the process for good, without looking at its VRAM. `work`: what is under way with it, told by its signal. */
  async shutdown({ graceMs, work }: { graceMs: number; work: () => Promise<unknown> | undefined }): Promise<void> {
    this.#lifetime.abort(new AppError('INTERRUPTED', 'The agent stops.'));
    const survivors = await this.#process?.stop({ graceMs });
    await work();
    await this.#burial;
    if (survivors === undefined || survivors.length === 0) await this.#options.records.remove(this.#options.slotId);
  }

  async #startProcess(gpus: readonly string[]): Promise<ServerRef> {
    try {
      const { stopGraceMs } = this.#options.times;
      const { process, port } = await startServer({ ...this.#options, gpus, stopGraceMs, signal: this.signal });
      this.#process = process;
      this.#gpus = gpus;
      void process.exited.then((exit) => this.#onExit(process, describeExit(exit))); // never rejects; failures end in the state
      return { kind: 'owned', pid: process.pid, port };
    } catch (error) {
      const failure = toAppError(error, 'MODEL_FAILED');
      if (this.#state.kind === 'failed') this.#enter({ kind: 'released' });
      this.#enterFailed(failure, { isStart: failure.code !== 'DISK_FULL', isFatal: false });
      throw failure;
    }
  }

  #onExit(process: ServerProcess, how: string): void {
    if (this.#process !== process || this.#burial !== undefined || this.signal.aborted) return;
    switch (this.#state.kind) {
      case 'loading':
      case 'ready':
      case 'offloading':
      case 'offloaded': {
        const when = this.#readySinceMs === undefined ? `${how} before it was ready` : how;
        void this.bury(died(this.#options.model.alias, when)); // never rejects; the failure is in the state
        return;
      }
      case 'released':
      case 'releasing':
      case 'failed':
    }
  }

  async #buryNow(asked: 'asked' | AppError): Promise<Burial> {
    const state = this.#state;
    if (!('server' in state) || state.kind === 'releasing') return { before: undefined, after: undefined, heldMiB: 0 };
    const wasOffloaded = state.kind === 'offloaded';
    const isStart = this.#readySinceMs === undefined;
    // Before anything is awaited: from here on no job can begin on it.
    this.#enter({ kind: 'releasing', server: state.server, cause: asked });
    const process = this.#process;
    // After a crash there is nothing to look at any more: the last look has to do.
    if (asked === 'asked') await this.look();
    const logText = asked === 'asked' ? '' : ((await process?.log.lastLines()) ?? '');
    const cause = asked === 'asked' ? asked : withLog(asked, logText);
    if (cause !== 'asked') this.#death = cause;
    const { measure: before, heldMiB } = this.vram;
    const after = process && (await this.#endProcess(process, { before, heldMiB, wasOffloaded }));
    const exitCode = process?.exit?.code ?? null;
    this.#forgetServer();
    if (cause === 'asked') this.#enter({ kind: 'released' });
    else {
      const isFatal = isStart && this.#options.engine.isFatalStart({ exitCode, logText });
      this.#enterFailed(cause, { isStart, isFatal });
    }
    return { before, after, heldMiB };
  }

  async #endProcess(
    process: ServerProcess,
    { before, heldMiB, wasOffloaded }: { before: VramMeasure | undefined; heldMiB: number; wasOffloaded: boolean },
  ): Promise<VramMeasure | undefined> {
    const { look, times, records, slotId, log, loadedMiB, onVramMissing } = this.#options;
    const { signal } = this;
    const pids = process.tree();
    const survivors = await process.stop({ graceMs: times.stopGraceMs });
    if (survivors.length > 0) log.error({ event: 'server-not-killed', slotId, pids: survivors });
    else {
      await records.remove(slotId).catch((error: unknown) => {
        log.warn({ event: 'server-record-not-removed', slotId, error: String(error) });
      });
    }
    if (before === undefined) return undefined;
    const isSlow = wasOffloaded && loadedMiB() - heldMiB > SLOW_RELEASE_MIB;
    const deadlineMs = isSlow ? times.vramBackOffloadedMs : times.vramBackMs;
    const claim = { gpus: this.#gpus, pids: [...pids, process.pid], before, heldMiB };
    const verdict = await untilBack(claim, { look, deadlineMs, pollMs: pollMsFor(times), signal });
    if (!verdict.isBack && !signal.aborted) onVramMissing(claim);
    return verdict.after;
  }

  #forgetServer(): void {
    this.#process = undefined;
    this.#facts = undefined;
    this.#gpus = [];
    this.vram.begin(undefined);
    this.#missedHealth = 0;
  }

  #enterFailed(error: AppError, { isStart, isFatal }: { isStart: boolean; isFatal: boolean }): void {
    const atMs = performance.now();
    const readyMs = this.#readySinceMs === undefined ? 0 : atMs - this.#readySinceMs;
    // A server of somebody else may come up at any time: it is never given up.
    const isOurs = this.#options.model.launch.kind === 'owned';
    const failures = [...afterReady(this.#failures, readyMs), { atMs, isStart: isStart && isOurs }];
    this.#failures = failures.slice(-KEPT_FAILURES);
    const policy = { isFatal, random: Math.random(), firstMs: this.#options.times.retryFirstMs };
    this.#enter({ kind: 'failed', error, retry: retryAfter(this.#failures, policy) });
  }

  #server(): ServerRef {
    if (!('server' in this.#state)) throw new Error(`${this.#options.slotId} has no server: it is ${this.#state.kind}`);
    return this.#state.server;
  }

  /** The only place that changes the state. */
  #enter(state: ModelState): void {
    if (!canEnter(this.#state.kind, state.kind)) throw new Error(`no way from ${this.#state.kind} to ${state.kind}`);
    const from = this.#state.kind;
    this.#state = state;
    this.#enteredMs = performance.now();
    const { log, slotId, model } = this.#options;
    const facts = { event: `model-${state.kind}`, slotId, model: model.id, from, heldMiB: this.vram.heldMiB };
    if (state.kind === 'failed') log.error({ ...facts, error: state.error.message, retry: state.retry });
    else log.info(facts);
    this.#options.onChange();
  }
}

function urlOf(server: ServerRef): string {
  return server.kind === 'attached' ? server.url : `http://${HOST}:${server.port}`;
}
