import { AppError, toAppError } from '../../shared/errors.ts';
import type { ComputeApp } from '../gpu/smi-rows.ts';
import { settlesWithin } from '../gpu/nvidia-smi.ts';
import type { VramMeasure } from '../gpu/vram-measure.ts';
import { measureVram } from '../gpu/vram-measure.ts';
import { AttachedServer } from '../server/attached-server.ts';
import type { Call, ServerFacts } from '../engine/engine.ts';
import { HOST, OtherModel } from '../engine/engine.ts';
import { HeldVram } from './held-vram.ts';
import type { ModelState, ServerRef } from './model-state.ts';
import { canEnter } from './model-state.ts';
import { PortTaken, untilReady } from '../server/readiness.ts';
import type { Failures } from '../server/restart-policy.ts';
import { afterReady, isFatalExit, retryAfter } from '../server/restart-policy.ts';
import { endServer, settle } from '../server/server-end.ts';
import { deathNews, died, hadForeignGrowth, withLog } from '../server/server-failure.ts';
import type { ServerLog } from '../server/server-log.ts';
import type { ServerProcess } from '../server/server-process.ts';
import { ProgramMissing, describeExit } from '../server/server-process.ts';
import type { StartOptions, StartedServer } from '../server/server-start.ts';
import { startServer } from '../server/server-start.ts';
import type { Look, VramClaim } from '../gpu/vram-verifier.ts';
import { pollMsFor, untilBack } from '../gpu/vram-verifier.ts';
import { WorkerWatch, untilWorkerLost } from '../server/worker-watch.ts';

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

export type ServerLifeOptions = Omit<StartOptions, 'gpus' | 'stopGraceMs' | 'signal'> & {
  look: Look;
  /** In use on these GPUs by the last sample, by whomever. */
  usedMiB: (gpus: readonly string[]) => number;
  times: ModelTimes;
  /** What it is thought to hold when loaded. */
  loadedMiB: () => number;
  onChange: () => void;
  /** The memory of this server did not come back in time after its death. */
  onVramMissing: (claim: VramClaim) => void;
};

/** What it held before its end, and nvidia-smi before and after that. */
export type Burial = {
  before: VramMeasure | undefined;
  after: VramMeasure | undefined;
  heldMiB: number;
  /** Why a server of somebody else did not end when it was asked to. */
  error?: AppError;
};

const HEALTH_MS = 5_000;
const KEPT_FAILURES = 20;
/** One load tries so many ports before it has failed. */
const MAX_PORTS = 3;
/** Between the loss of a worker and the news that its leader died with it, which tells more. */
const LEADER_NEWS_MS = 1_000;

/** One server's process and state, from its start to its end and the return of its memory. Knows nothing of jobs. */
export class ServerLife {
  readonly #options: ServerLifeOptions;
  readonly #lifetime = new AbortController();
  readonly #attached: AttachedServer | undefined;
  readonly vram: HeldVram;
  #state: ModelState = { kind: 'released' };
  #enteredMs = performance.now();
  #gpus: readonly string[] = [];
  #started: StartedServer | undefined;
  /** Its start is being watched, exits included: a port that is taken is no death. */
  #isStarting = false;
  #facts: ServerFacts | undefined;
  #readySinceMs: number | undefined;
  #failures: Failures = [];
  #burial: Promise<Burial> | undefined;
  #death: AppError | undefined;
  /** nvidia-smi before it was started: what others took since then shows by it. */
  #began: VramMeasure | undefined;
  #lastApps: readonly ComputeApp[] = [];
  #missedHealth = 0;
  #isChecking = false;

  constructor(options: ServerLifeOptions) {
    this.#options = options;
    this.#attached = options.model.launch.kind === 'attached' ? new AttachedServer(options) : undefined;
    this.vram = new HeldVram(async (signal) => {
      const seen = await options.look(signal);
      if (seen !== undefined) this.#lastApps = seen.apps;
      return seen;
    });
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
    return this.#started?.process;
  }

  get log(): ServerLog | undefined {
    return this.process?.log;
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
    return this.process?.tree() ?? [];
  }

  /** Starts the process on these GPUs, or turns to the one that somebody else runs. From then on it is loading. */
  async begin(gpus: readonly string[], before: VramMeasure | undefined): Promise<void> {
    const server: ServerRef =
      this.#attached === undefined ? await this.#startFirst(gpus) : { kind: 'attached', url: this.#attached.url };
    this.vram.begin(before);
    this.#began = before;
    this.#readySinceMs = undefined;
    this.#death = undefined;
    this.#enter({ kind: 'loading', server });
  }

  /** Settles when the server answers as this model, or rejects when it died, or is too late. */
  async untilAnswering(): Promise<void> {
    this.#facts = await (this.#attached?.untilAnswering(this.signal) ?? this.#untilOwnAnswers());
  }

  /** Asks a server that is up again who it is: somebody may have started another one in its place. */
  async refresh(): Promise<void> {
    const { engine, model } = this.#options;
    const url = urlOf(this.#server());
    const facts = await engine.probe({ url, model, signal: this.signal, deadlineMs: HEALTH_MS });
    if (facts === undefined) throw died(model.alias, 'does not answer as this model any more');
    this.#facts = facts;
  }

  /** The same server in another state. */
  becomes(kind: 'loading' | 'ready' | 'offloading' | 'offloaded'): void {
    const isFirst = kind === 'ready' && this.#readySinceMs === undefined;
    if (isFirst) this.#readySinceMs = performance.now();
    this.#enter({ kind, server: this.#server() });
    if (isFirst && this.process !== undefined) void this.#watchWorkers(this.process); // never rejects; a loss ends in the state
  }

  /** Throws where it died meanwhile, once that is settled. */
  async throwIfDead(): Promise<void> {
    await this.#burial;
    if (this.#state.kind === 'failed') throw this.#state.error;
  }

  /** As `throwIfDead`, for a call that failed: the news of a death may come after the cut of the connection. */
  async throwIfCutByDeath(error: unknown): Promise<void> {
    await deathNews(error, this.process);
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
    // An end that has begun goes on as it began.
    const end = this.#burial === undefined ? await this.process?.stop({ graceMs }) : undefined;
    await this.#burial;
    await work();
    await this.#burial;
    await this.#attached?.letGo();
    if (end !== undefined) await settle(end, this.#options);
  }

  async #startFirst(gpus: readonly string[]): Promise<ServerRef> {
    try {
      return await this.#start(gpus);
    } catch (error) {
      const failure = toAppError(error, 'MODEL_FAILED');
      if (this.#state.kind === 'failed') this.#enter({ kind: 'released' });
      this.#enterFailed(failure, { isStart: failure.code !== 'DISK_FULL', isFatal: failure instanceof ProgramMissing });
      throw failure;
    }
  }

  async #start(gpus: readonly string[]): Promise<ServerRef> {
    const { stopGraceMs } = this.#options.times;
    const started = await startServer({ ...this.#options, gpus, stopGraceMs, signal: this.signal });
    this.#started = started;
    this.#gpus = gpus;
    const { process, port } = started;
    void process.exited.then(() => this.#onExit(process)); // never rejects; failures end in the state
    return { kind: 'owned', pid: process.pid, port: port.number };
  }

  /** Where somebody else has its port, the same start goes on with another one: that is not the fault of the server. */
  async #untilOwnAnswers(): Promise<ServerFacts> {
    const { log, slotId } = this.#options;
    this.#isStarting = true;
    try {
      for (let ports = 1; ; ports += 1) {
        const server = this.#server();
        try {
          return await this.#untilReady(server);
        } catch (error) {
          if (!(error instanceof PortTaken) || ports === MAX_PORTS || !this.isStill(server)) throw error;
          const { port, owner, message } = error;
          log.warn({ event: 'server-port-taken', slotId, port, ...(owner && { owner }), message });
          await this.#startElsewhere();
        }
      }
    } finally {
      this.#isStarting = false;
      const { process } = this;
      if (process?.exit !== undefined) this.#onExit(process); // in the moment in which it became ready
    }
  }

  #untilReady(server: ServerRef): Promise<ServerFacts> {
    const { process } = this;
    if (process === undefined || server.kind !== 'owned') throw new Error(`${this.#options.slotId} was not started`);
    const { engine, model, table, times } = this.#options;
    return untilReady({
      ...{ process, engine, model, table, port: server.port, url: urlOf(server), signal: this.signal },
      ...{ deadlineMs: times.startDeadlineMs, stallMs: times.stallMs, pollMs: times.healthPollMs },
      usedMiB: () => this.#options.usedMiB(this.#gpus),
    });
  }

  async #startElsewhere(): Promise<void> {
    const { measure: before, heldMiB } = this.vram;
    if (this.#started !== undefined) await this.#end(this.#started, { before, heldMiB, wasOffloaded: false });
    this.#enter({ kind: 'loading', server: await this.#start(this.#gpus) });
  }

  #onExit(process: ServerProcess): void {
    if (this.process !== process || process.exit === undefined || this.#isStarting) return;
    if (this.#burial !== undefined || this.signal.aborted) return;
    switch (this.#state.kind) {
      case 'loading':
      case 'ready':
      case 'offloading':
      case 'offloaded': {
        const how = describeExit(process.exit);
        const when = this.#readySinceMs === undefined ? `${how} before it was ready` : how;
        void this.bury(died(this.#options.model.alias, when)); // never rejects; the failure is in the state
        return;
      }
      case 'released':
      case 'releasing':
      case 'failed':
    }
  }

  /** A leader that lives on without its workers says that it is healthy, and ends no job any more. */
  async #watchWorkers(process: ServerProcess): Promise<void> {
    const { model, times } = this.#options;
    const watch = new WorkerWatch({ leader: process.pid, tree: process.tree(), apps: this.#lastApps });
    const lost = await untilWorkerLost(watch, { everyMs: times.healthPollMs, signal: process.signal });
    if (lost === undefined || (await settlesWithin(process.exited, LEADER_NEWS_MS)) || process.signal.aborted) return;
    if (this.process !== process || this.signal.aborted) return;
    await this.bury(died(model.alias, `lost its worker ${lost.name} (process ${lost.pid})`));
  }

  async #buryNow(asked: 'asked' | AppError): Promise<Burial> {
    const state = this.#state;
    if (!('server' in state) || state.kind === 'releasing') return { before: undefined, after: undefined, heldMiB: 0 };
    const wasOffloaded = state.kind === 'offloaded';
    const isStart = this.#readySinceMs === undefined;
    // Before anything is awaited: from here on no job can begin on it.
    this.#enter({ kind: 'releasing', server: state.server, cause: asked });
    if (this.#attached !== undefined) return this.#buryAttached(asked, { isStart, wasOffloaded });
    const started = this.#started;
    // After a crash there is nothing to look at any more: the last look has to do.
    if (asked === 'asked') await this.look();
    const logText = asked === 'asked' ? '' : ((await this.log?.lastLines()) ?? '');
    const cause = asked === 'asked' ? asked : withLog(asked, logText);
    if (cause !== 'asked') this.#death = cause;
    const { measure: before, heldMiB } = this.vram;
    const began = this.#began;
    const after = started && (await this.#end(started, { before, heldMiB, wasOffloaded }));
    const exitCode = started?.process.exit?.code ?? null;
    this.#forgetServer();
    if (cause === 'asked') this.#enter({ kind: 'released' });
    else {
      const growth = hadForeignGrowth(began, [before, after]);
      const how = { exitCode, logText: cause.message, hadForeignGrowth: growth };
      const isFatal = isStart && (isFatalExit(exitCode) || this.#options.engine.isFatalStart(how));
      this.#enterFailed(cause, { isStart, isFatal });
    }
    return { before, after, heldMiB };
  }

  /** Somebody else's ends by the program that was named for that, or not at all. */
  async #buryAttached(
    asked: 'asked' | AppError,
    { isStart, wasOffloaded }: { isStart: boolean; wasOffloaded: boolean },
  ): Promise<Burial> {
    const { look, times, loadedMiB } = this.#options;
    const { signal } = this;
    const seen = asked === 'asked' ? await look(signal) : undefined;
    // Which GPUs it is on is not known, so the change on all of them is shown.
    const gpus = seen?.readings.map(({ uuid }) => uuid) ?? [];
    const before = seen && measureVram(seen, { gpus, pids: [] });
    const isOthers = asked instanceof OtherModel && !isStart; // not what `stop` was named for
    if (isOthers) await this.#attached?.letGo();
    const error = await this.#attached?.end({ isOurs: asked === 'asked' || !(isStart || isOthers), signal });
    const claim = before && { gpus, pids: [], before, heldMiB: wasOffloaded ? 0 : loadedMiB() };
    const limits = { look, deadlineMs: times.vramBackMs, pollMs: pollMsFor(times), signal };
    const after = claim && error === undefined ? (await untilBack(claim, limits)).after : undefined;
    this.#forgetServer();
    const failure = asked === 'asked' ? error : asked;
    if (failure === undefined) this.#enter({ kind: 'released' });
    else {
      this.#death = failure;
      this.#enterFailed(failure, { isStart, isFatal: false });
    }
    return { before, after, heldMiB: 0, ...(error !== undefined && { error }) };
  }

  #end(
    started: StartedServer,
    { wasOffloaded, ...held }: { before: VramMeasure | undefined; heldMiB: number; wasOffloaded: boolean },
  ): Promise<VramMeasure | undefined> {
    const hostRamMiB = wasOffloaded ? this.#options.loadedMiB() - held.heldMiB : 0;
    return endServer(started, { ...this.#options, ...held, hostRamMiB, gpus: this.#gpus, signal: this.signal });
  }

  #forgetServer(): void {
    this.#started = undefined;
    this.#facts = undefined;
    this.#gpus = [];
    this.vram.begin(undefined);
    this.#began = undefined;
    this.#missedHealth = 0;
  }

  #enterFailed(error: AppError, { isStart, isFatal }: { isStart: boolean; isFatal: boolean }): void {
    const atMs = performance.now();
    const readyMs = this.#readySinceMs === undefined ? 0 : atMs - this.#readySinceMs;
    // A server of somebody else may come up at any time: it is never given up.
    const isOurs = this.#attached === undefined;
    const failures = [...afterReady(this.#failures, readyMs), { atMs, isStart: isStart && isOurs }];
    this.#failures = failures.slice(-KEPT_FAILURES);
    const policy = { isFatal, random: Math.random(), firstMs: this.#options.times.retryFirstMs };
    this.#enter({ kind: 'failed', error, retry: retryAfter(this.#failures, policy) });
  }

  #server(): ServerRef {
    if (!('server' in this.#state)) throw new Error(`${this.#options.slotId} has no server: it is ${this.#state.kind}`);
    return this.#state.server;
  }

  /** The only place that changes the state. `loading` may go on with another process: no transition, and its time runs on. */
  #enter(state: ModelState): void {
    const from = this.#state.kind;
    const goesOn = from === 'loading' && state.kind === 'loading';
    if (!goesOn && !canEnter(from, state.kind)) throw new Error(`no way from ${from} to ${state.kind}`);
    this.#state = state;
    if (!goesOn) this.#enteredMs = performance.now();
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
