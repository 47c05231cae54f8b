import { pause, untilAborted } from '../../shared/abort.ts';
import { AppError, toAppError } from '../../shared/errors.ts';
import type { JobRequest } from '../../shared/job.ts';
import type { Log } from '../../shared/log.ts';
import type { GpuSampler } from '../gpu/gpu-sampler.ts';
import type { VramMeasure } from '../gpu/vram-measure.ts';
import { freedMiB } from '../gpu/vram-measure.ts';
import type { ConfiguredModel } from './configured-model.ts';
import type { Call, Engine, ServerFacts } from './engines/engine.ts';
import { HOST } from './engines/engine.ts';
import { loadedMiB } from './footprint.ts';
import { HeldVram } from './held-vram.ts';
import type { Learned } from './learned.ts';
import type { ModelState, ServerRef } from './model-state.ts';
import { canEnter } from './model-state.ts';
import { watchPeak } from './peak-watch.ts';
import { untilReady } from './readiness.ts';
import type { Failures } from './restart-policy.ts';
import { afterReady, retryAfter } from './restart-policy.ts';
import { lastStep } from './server-log.ts';
import type { ServerProcess } from './server-process.ts';
import { describeExit } from './server-process.ts';
import type { ServerRecords } from './server-records.ts';
import { startServer } from './server-start.ts';
import type { VramClaim } from './vram-verifier.ts';
import { lookAtVram, untilBack, untilSettled } from './vram-verifier.ts';

export type ModelTimes = {
  stopGraceMs: number;
  vramBackMs: number;
  startDeadlineMs: number;
  healthPollMs: number;
  retryFirstMs: number;
};

export type ModelServerOptions = {
  slotId: string;
  model: ConfiguredModel;
  engine: Engine;
  sampler: GpuSampler;
  learned: Learned;
  records: ServerRecords;
  logDir: string;
  times: ModelTimes;
  log: Log;
  onChange: () => void;
  /** The memory of this server did not come back in time after its death. */
  onVramMissing: (claim: VramClaim) => void;
};

/** What a transition did, with VRAM as nvidia-smi showed it before and after. */
export type Moved = {
  done: 'load' | 'wake' | 'offload' | 'release' | 'nothing';
  tookMs: number;
  before?: VramMeasure;
  after?: VramMeasure;
  heldBeforeMiB: number;
  heldAfterMiB: number;
  freedMiB: number;
};

export type RunOptions = { signal: AbortSignal; deadlineMs: number; onStep: (step: number, steps: number) => void };

/** Sleep and wake move tens of GiB over PCIe; a call that takes longer hangs. */
const MOVE_CALL_MS = 300_000;
const HEALTH_MS = 5_000;
const LOOK_MS = 250;
/** Less than this share still held after a job: the engine has moved the weights to host RAM by itself. */
const GONE_SHARE = 0.5;
/** Pinned host memory is returned slowly: a server that was offloaded with more than this gets six times as long. */
const SLOW_RELEASE_MIB = 16 * 1024;
/** Between the loss of a connection and the news that the process behind it died. */
const DEATH_NEWS_MS = 2_000;

/** Owns one server, its process and its state. Nothing else starts, moves or ends it; callers join work in flight. */
export class ModelServer {
  readonly #options: ModelServerOptions;
  readonly #lifetime = new AbortController();
  #state: ModelState = { kind: 'released' };
  #gpus: readonly string[] = [];
  #process: ServerProcess | undefined;
  #facts: ServerFacts | undefined;
  readonly #vram: HeldVram;
  #isHeldInFlux = false;
  #inFlight = 0;
  #idleSinceMs = performance.now();
  #readySinceMs: number | undefined;
  #enteredMs = performance.now();
  #failures: Failures = [];
  #work: { kind: Moved['done']; promise: Promise<Moved> } | undefined;
  #burial: Promise<void> | undefined;
  #death: AppError | undefined;
  #missedHealth = 0;
  readonly #counts = { jobsDone: 0, loads: 0, offloads: 0, releases: 0 };

  constructor(options: ModelServerOptions) {
    this.#options = options;
    this.#vram = new HeldVram(options.sampler);
  }

  get state(): ModelState {
    return this.#state;
  }

  get gpus(): readonly string[] {
    return this.#gpus;
  }

  get heldMiB(): number {
    return this.#vram.heldMiB;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  get idleMs(): number {
    return this.#inFlight > 0 ? 0 : performance.now() - this.#idleSinceMs;
  }

  /** How long it has been in its present state. */
  get inStateMs(): number {
    return performance.now() - this.#enteredMs;
  }

  get counts(): Readonly<{ jobsDone: number; loads: number; offloads: number; releases: number }> {
    return this.#counts;
  }

  get version(): string | undefined {
    return this.#facts?.version;
  }

  /** Live processes of its tree. */
  pids(): number[] {
    return this.#process?.tree() ?? [];
  }

  /** The last look fell into a job, so it may have seen memory that the job gave back. */
  get isHeldInFlux(): boolean {
    return this.#isHeldInFlux;
  }

  /** Keeps a look at its VRAM that somebody else took. */
  note(measure: VramMeasure): void {
    if (this.#state.kind === 'released' || this.#state.kind === 'failed' || this.#state.kind === 'releasing') return;
    this.#isHeldInFlux = this.#inFlight > 0;
    this.#vram.note(measure);
  }

  /** Starts the server on these GPUs and answers when it is ready. */
  load(gpus: readonly string[]): Promise<Moved> {
    return this.#join('load', () => this.#load(gpus));
  }

  /** Brings an offloaded server back. If that fails the process is ended: nobody knows what is left of it. */
  wake(): Promise<Moved> {
    return this.#join('wake', () => this.#wake());
  }

  /** For engines that wake by the job itself: from now on it counts as ready. */
  wakeByJob(): void {
    if (this.#options.engine.wakesBy !== 'job' || this.#state.kind !== 'offloaded') return;
    this.#enter({ kind: 'loading', server: this.#state.server });
    this.#enterReady();
  }

  /** Weights to host RAM. `freedMiB` is nvidia-smi's, and may be little: the caller decides what then. */
  offload(): Promise<Moved> {
    return this.#join('offload', () => this.#offload());
  }

  /** Ends the process and waits for its VRAM. */
  release(): Promise<Moved> {
    return this.#join('release', () => this.#release());
  }

  /** In use until disposed: not offloaded and not released. */
  lease(): Disposable {
    if (this.#state.kind !== 'ready')
      throw new Error(`a lease needs a ready server, not one that is ${this.#state.kind}`);
    this.#inFlight += 1;
    let isOver = false;
    return {
      [Symbol.dispose]: () => {
        if (isOver) return;
        isOver = true;
        this.#ended();
      },
    };
  }

  /**
   * Sends one request. Aborting `signal` abandons the answer; the engine works on, so the server stays in use until it
   * answered.
   */
  async run(
    request: JobRequest,
    inputs: readonly Buffer[],
    options: RunOptions,
  ): Promise<{ image: Buffer; notes: string[] }> {
    this.#inFlight += 1;
    using _following = this.#followSteps(options.onStep);
    const answer = this.#answer(request, inputs, options.deadlineMs).finally(() => this.#ended());
    const result = await untilAborted(answer, options.signal);
    this.#counts.jobsDone += 1;
    return result;
  }

  /** Notices a server that died without an exit that we see, or that says so itself. */
  async checkHealth(): Promise<void> {
    if (this.#state.kind !== 'ready' && this.#state.kind !== 'offloaded') return;
    if (this.#inFlight > 0 || this.#work !== undefined) return;
    const { server } = this.#state;
    const isHealthy = await this.#isHealthy(server);
    this.#missedHealth = isHealthy ? 0 : this.#missedHealth + 1;
    if (this.#missedHealth < 2 || this.#inFlight > 0 || !isSame(this.#state, server)) return;
    await this.#bury(this.#diedError('does not answer its health check any more'));
  }

  /** Stops the server for good, without looking at its VRAM: the agent ends. */
  async shutdown({ graceMs }: { graceMs: number }): Promise<void> {
    this.#lifetime.abort(new AppError('INTERRUPTED', 'The agent stops.'));
    const process = this.#process;
    const survivors = await process?.stop({ graceMs, signal: new AbortController().signal });
    await this.#work?.promise.catch(() => undefined); // its callers see the failure
    await this.#burial;
    if (survivors === undefined || survivors.length === 0) await this.#options.records.remove(this.#options.slotId);
  }

  async #load(gpus: readonly string[]): Promise<Moved> {
    if (this.#state.kind === 'ready') return this.#nothing();
    if (this.#state.kind !== 'released' && this.#state.kind !== 'failed') {
      throw new Error(`cannot load a server that is ${this.#state.kind}`);
    }
    const { model, engine, sampler, learned } = this.#options;
    const signal = this.#lifetime.signal;
    const startMs = performance.now();
    const before = await lookAtVram(sampler, { gpus, pids: [], signal });
    const server = await this.#start(gpus);
    this.#vram.begin(before);
    this.#readySinceMs = undefined;
    this.#enter({ kind: 'loading', server });
    using peak = watchPeak(sampler, gpus);
    try {
      this.#facts = await this.#untilReady(server);
      if (server.kind === 'owned') await this.#finishLoad(server);
    } catch (error) {
      throw await this.#buriedFor(toAppError(error, 'MODEL_FAILED'));
    }
    const after = await this.#look();
    this.#enterReady();
    this.#counts.loads += 1;
    const tookMs = performance.now() - startMs;
    // Where the engine moves the weights away again by itself, what it held in between is what loading takes.
    const wentUpMiB = peak.usedMiB() > 2 * this.heldMiB ? peak.usedMiB() : 0;
    learned.loaded(model.id, { tookMs, heldMiB: engine.wakesBy === 'job' ? wentUpMiB : this.heldMiB });
    const moved = this.#moved('load', { startMs, before, after, heldBeforeMiB: 0 });
    if (engine.wakesBy === 'job') this.#settleByItself();
    return moved;
  }

  /** With a look every moment: the weights may be on the GPU for a second only. */
  async #finishLoad(server: ServerRef): Promise<void> {
    const { engine, sampler, times } = this.#options;
    const done = new AbortController();
    const finishing = engine.finishLoad(this.#call(server, times.startDeadlineMs)).finally(() => done.abort());
    finishing.catch(() => undefined); // awaited below
    while (engine.wakesBy === 'job' && !done.signal.aborted) {
      await sampler.sampleNow(done.signal).catch(() => undefined); // the end of the edit, or a driver that does not answer
      await pause(Math.min(LOOK_MS, times.healthPollMs), done.signal);
    }
    await finishing;
  }

  async #start(gpus: readonly string[]): Promise<ServerRef> {
    const { model, times } = this.#options;
    if (model.launch.kind === 'attached') return { kind: 'attached', url: model.launch.url.replace(/\/$/, '') };
    try {
      const { stopGraceMs } = times;
      const started = await startServer({ ...this.#options, gpus, stopGraceMs, signal: this.#lifetime.signal });
      const { process, port } = started;
      this.#process = process;
      this.#gpus = gpus;
      this.#death = undefined;
      void process.exited.then((exit) => this.#onExit(process, describeExit(exit))); // never rejects; failures end in the state
      return { kind: 'owned', pid: process.pid, port };
    } catch (error) {
      const failure = toAppError(error, 'MODEL_FAILED');
      if (this.#state.kind === 'failed') this.#enter({ kind: 'released' });
      this.#enterFailed(failure, { isStart: true, isFatal: false });
      throw failure;
    }
  }

  #untilReady(server: ServerRef): Promise<ServerFacts> {
    const { engine, model, times } = this.#options;
    const signal = this.#lifetime.signal;
    const url = urlOf(server);
    if (server.kind === 'owned' && this.#process !== undefined) {
      const common = { deadlineMs: times.startDeadlineMs, pollMs: times.healthPollMs, signal };
      return untilReady({ process: this.#process, engine, model, port: server.port, url, ...common });
    }
    return engine.probe({ url, model, signal, deadlineMs: HEALTH_MS }).then((facts) => {
      if (facts !== undefined) return facts;
      throw new AppError(
        'MODEL_FAILED',
        `No server of ${model.alias} answers at ${url}. Start it, or correct \`attach\`.`,
      );
    });
  }

  async #wake(): Promise<Moved> {
    if (this.#state.kind !== 'offloaded') return this.#nothing();
    const { engine, learned, model } = this.#options;
    const { server } = this.#state;
    if (engine.wakesBy === 'job') {
      this.wakeByJob();
      return this.#nothing();
    }
    const startMs = performance.now();
    const before = await this.#look();
    const heldBeforeMiB = this.heldMiB;
    this.#enter({ kind: 'loading', server });
    try {
      await engine.wake(this.#call(server, MOVE_CALL_MS));
      if (!(await this.#isHealthy(server))) throw this.#diedError('does not answer after it woke');
    } catch (error) {
      throw await this.#buriedFor(
        new AppError('MODEL_FAILED', `Waking ${model.alias} failed: ${words(error)}`, { cause: error }),
      );
    }
    const after = await this.#look();
    this.#enterReady();
    learned.woken(model.id, { tookMs: performance.now() - startMs });
    return this.#moved('wake', { startMs, before, after, heldBeforeMiB });
  }

  async #offload(): Promise<Moved> {
    if (this.#state.kind !== 'ready') return this.#nothing();
    this.#assertIdle();
    const { engine, learned, model, sampler, times } = this.#options;
    const { server } = this.#state;
    const startMs = performance.now();
    this.#enter({ kind: 'offloading', server });
    const before = await this.#lookToMove();
    const heldBeforeMiB = this.heldMiB;
    try {
      await engine.offload(this.#call(server, MOVE_CALL_MS));
    } catch (error) {
      await this.#recover(server, error);
      throw new AppError('ENGINE_FAILED', `${model.alias} was not offloaded: ${words(error)}`, { cause: error });
    }
    const claim = before && { gpus: this.#gpusToMove(), pids: this.pids(), before, heldMiB: heldBeforeMiB };
    const verdict =
      claim && (await untilSettled(sampler, claim, { deadlineMs: times.vramBackMs, signal: this.#lifetime.signal }));
    if (verdict?.after !== undefined && this.#gpus.length > 0) this.note(verdict.after);
    this.#throwIfDead();
    // An engine that wakes by the job keeps no state of its own here: what nvidia-smi shows is what it is.
    const hasMoved = engine.wakesBy === 'call' || verdict === undefined || verdict.isBack;
    this.#enter({ kind: hasMoved ? 'offloaded' : 'ready', server });
    this.#counts.offloads += 1;
    if (verdict !== undefined && this.#gpus.length > 0) learned.offloaded(model.id, { heldMiB: this.heldMiB });
    return this.#moved('offload', { startMs, before, after: verdict?.after, heldBeforeMiB });
  }

  /** After a refused offload nobody knows whether the engine sleeps: only a wake that works makes it usable. */
  async #recover(server: ServerRef, cause: unknown): Promise<void> {
    try {
      await this.#options.engine.wake(this.#call(server, MOVE_CALL_MS));
      if (!(await this.#isHealthy(server))) throw this.#diedError('does not answer after a failed offload');
      this.#throwIfDead();
    } catch {
      const { alias } = this.#options.model;
      throw await this.#buriedFor(
        new AppError('MODEL_FAILED', `Offloading ${alias} broke its server: ${words(cause)}`),
      );
    }
    this.#enter({ kind: 'ready', server });
  }

  async #release(): Promise<Moved> {
    const { model } = this.#options;
    if (model.launch.kind === 'attached') {
      throw new AppError(
        'INVALID_ARGUMENT',
        `${model.alias} runs at ${model.launch.url} and was started by someone else, so it is not ours to end. ` +
          'Offload it, or stop it where it was started.',
      );
    }
    if (this.#state.kind === 'released') return this.#nothing();
    if (this.#state.kind === 'failed') {
      this.#failures = [];
      this.#enter({ kind: 'released' });
      return this.#nothing();
    }
    this.#assertIdle();
    const startMs = performance.now();
    const before = await this.#look();
    const heldBeforeMiB = this.heldMiB;
    const gpus = this.#gpus;
    await this.#bury('asked');
    this.#counts.releases += 1;
    const after = await lookAtVram(this.#options.sampler, { gpus, pids: [], signal: this.#lifetime.signal });
    return this.#moved('release', { startMs, before, after, heldBeforeMiB });
  }

  #onExit(process: ServerProcess, how: string): void {
    if (this.#process !== process || this.#burial !== undefined || this.#lifetime.signal.aborted) return;
    switch (this.#state.kind) {
      case 'loading':
      case 'ready':
      case 'offloading':
      case 'offloaded':
        if (this.#readySinceMs === undefined) how += ' before it was ready';
        void this.#bury(this.#diedError(how)); // never rejects; the failure is in the state
        return;
      case 'released':
      case 'releasing':
      case 'failed':
    }
  }

  /** Ends what is left, waits for the VRAM, and says why. Every death comes through here, once. */
  #bury(cause: 'asked' | AppError): Promise<void> {
    this.#burial ??= this.#buryNow(cause).finally(() => (this.#burial = undefined));
    return this.#burial;
  }

  async #buryNow(asked: 'asked' | AppError): Promise<void> {
    const state = this.#state;
    if (!('server' in state) || state.kind === 'releasing') return;
    const wasOffloaded = state.kind === 'offloaded';
    const isStart = this.#readySinceMs === undefined;
    this.#enter({ kind: 'releasing', server: state.server, cause: asked });
    const { engine, sampler, times, records, slotId, log } = this.#options;
    const process = this.#process;
    const logText = asked === 'asked' ? '' : ((await process?.log.lastLines()) ?? '');
    const cause = asked === 'asked' ? asked : withLog(asked, logText);
    if (cause !== 'asked') this.#death = cause;
    if (process !== undefined) {
      const { measure: before, heldMiB } = this.#vram;
      const pids = process.tree();
      const survivors = await process.stop({ graceMs: times.stopGraceMs, signal: this.#lifetime.signal });
      if (survivors.length > 0) log.error({ event: 'server-not-killed', slotId, pids: survivors });
      const deadlineMs = times.vramBackMs * (wasOffloaded && this.#hasMuchInHostRam() ? 6 : 1);
      if (before !== undefined) {
        const claim = { gpus: this.#gpus, pids: [...pids, process.pid], before, heldMiB };
        const verdict = await untilBack(sampler, claim, { deadlineMs, signal: this.#lifetime.signal });
        if (!verdict.isBack && !this.#lifetime.signal.aborted) this.#options.onVramMissing(claim);
      }
      if (survivors.length === 0) {
        await records.remove(slotId).catch((error: unknown) => {
          log.warn({ event: 'server-record-not-removed', slotId, error: String(error) });
        });
      }
    }
    const exitCode = process?.exit?.code ?? null;
    this.#forget();
    if (cause === 'asked') return this.#enter({ kind: 'released' });
    this.#enterFailed(cause, { isStart, isFatal: isStart && engine.isFatalStart({ exitCode, logText }) });
  }

  #forget(): void {
    this.#process = undefined;
    this.#facts = undefined;
    this.#gpus = [];
    this.#vram.begin(undefined);
    this.#missedHealth = 0;
  }

  #enterFailed(error: AppError, { isStart, isFatal }: { isStart: boolean; isFatal: boolean }): void {
    const atMs = performance.now();
    const readyMs = this.#readySinceMs === undefined ? 0 : atMs - this.#readySinceMs;
    // A server of somebody else may come up at any time: it is never given up.
    const isOurs = this.#options.model.launch.kind === 'owned';
    this.#failures = [...afterReady(this.#failures, readyMs), { atMs, isStart: isStart && isOurs }].slice(-20);
    const policy = { isFatal, random: Math.random(), firstMs: this.#options.times.retryFirstMs };
    this.#enter({ kind: 'failed', error, retry: retryAfter(this.#failures, policy) });
  }

  async #buriedFor(error: AppError): Promise<AppError> {
    await this.#bury(error);
    return this.#state.kind === 'failed' ? this.#state.error : error;
  }

  async #answer(
    request: JobRequest,
    inputs: readonly Buffer[],
    deadlineMs: number,
  ): Promise<{ image: Buffer; notes: string[] }> {
    if (this.#state.kind !== 'ready') throw this.#death ?? this.#diedError('is not ready any more');
    const { server } = this.#state;
    const call = this.#call(server, deadlineMs);
    try {
      return await this.#options.engine.run(request, inputs, call);
    } catch (error) {
      throw await this.#explain(error, server);
    }
  }

  /** Tells a failed request from a dead server, and ends a server that cannot be used any more. */
  async #explain(error: unknown, server: ServerRef): Promise<AppError> {
    if (this.#lifetime.signal.aborted) return toAppError(this.#lifetime.signal.reason, 'INTERRUPTED');
    const { alias } = this.#options.model;
    if (error instanceof DOMException && error.name === 'TimeoutError') {
      const failure = new AppError(
        'TIMEOUT',
        `The server of ${alias} did not answer a job in time. It is ended and started anew.`,
      );
      void this.#bury(failure); // never rejects; the failure is in the state
      return failure;
    }
    if (error instanceof AppError && error.code !== 'ENGINE_FAILED' && error.code !== 'GPU_OUT_OF_MEMORY') return error;
    const isCut = !(error instanceof AppError);
    // A cut connection and the exit of its process arrive in any order.
    if (isCut && this.#process !== undefined) {
      await Promise.race([this.#process.exited, pause(DEATH_NEWS_MS, this.#lifetime.signal)]);
      await pause(0, this.#lifetime.signal);
    }
    const isDead = this.#burial !== undefined || !isSame(this.#state, server) || !(await this.#isHealthy(server));
    if (!isDead) return toAppError(error, 'ENGINE_FAILED');
    const how = this.#process?.exit === undefined ? `broke (${words(error)})` : describeExit(this.#process.exit);
    const failure = withLog(
      this.#diedError(`${how} while it worked on a job`),
      (await this.#process?.log.lastLines()) ?? '',
    );
    void this.#bury(this.#diedError(how)); // joins the one under way; never rejects
    return failure;
  }

  #ended(): void {
    this.#inFlight -= 1;
    if (this.#inFlight > 0) return;
    this.#idleSinceMs = performance.now();
    if (this.#options.engine.wakesBy === 'job') this.#settleByItself();
    this.#options.onChange();
  }

  /** After an edit such an engine goes back to host RAM by itself; it is offloaded when nvidia-smi agrees. */
  #settleByItself(): void {
    void this.#look().then(() => {
      // Never rejects. Meanwhile the next job may have begun.
      if (this.#state.kind !== 'ready' || this.#inFlight > 0 || this.#work !== undefined) return;
      const { model, learned } = this.#options;
      if (this.#vram.measure === undefined && this.#gpus.length > 0) return;
      if (this.heldMiB > GONE_SHARE * loadedMiB(learned.of(model.id), model)) return;
      const { server } = this.#state;
      this.#enter({ kind: 'offloading', server });
      this.#enter({ kind: 'offloaded', server });
      learned.offloaded(model.id, { heldMiB: this.heldMiB });
    });
  }

  #followSteps(onStep: (step: number, steps: number) => void): Disposable {
    const stop = new AbortController();
    const onText = (text: string): void => {
      const last = lastStep(text);
      if (last !== undefined) onStep(last.step, last.steps);
    };
    void this.#process?.log.follow({ signal: stop.signal, onText }); // reads what is there; a missing file is no text
    return { [Symbol.dispose]: () => stop.abort() };
  }

  #look(): Promise<VramMeasure | undefined> {
    return this.#vram.look({ gpus: this.#gpus, pids: this.pids(), signal: this.#lifetime.signal });
  }

  /** Where somebody else's server is on the GPUs is not known: so the change on all of them is shown. */
  #gpusToMove(): readonly string[] {
    const isOurs = this.#options.model.launch.kind === 'owned';
    return isOurs ? this.#gpus : this.#options.sampler.readings().map(({ uuid }) => uuid);
  }

  #lookToMove(): Promise<VramMeasure | undefined> {
    if (this.#options.model.launch.kind === 'owned') return this.#look();
    const whose = { gpus: this.#gpusToMove(), pids: [], signal: this.#lifetime.signal };
    return lookAtVram(this.#options.sampler, whose);
  }

  #call(server: ServerRef, deadlineMs: number): Call {
    if (this.#facts === undefined) throw new Error(`${this.#options.slotId} was never ready`);
    return { url: urlOf(server), facts: this.#facts, signal: this.#lifetime.signal, deadlineMs };
  }

  async #isHealthy(server: ServerRef): Promise<boolean> {
    try {
      const signal = this.#lifetime.signal;
      return await this.#options.engine.isHealthy({ url: urlOf(server), signal, deadlineMs: HEALTH_MS });
    } catch {
      return true; // the agent stops: nothing is known, and nothing is to be done
    }
  }

  #diedError(how: string): AppError {
    return new AppError('MODEL_FAILED', `The server of ${this.#options.model.alias} ${how}.`);
  }

  #throwIfDead(): void {
    if (this.#burial !== undefined || this.#state.kind === 'failed') throw this.#death ?? this.#diedError('died');
  }

  #assertIdle(): void {
    if (this.#inFlight === 0) return;
    throw new AppError('GPU_BUSY', `${this.#options.model.alias} is working on a job. Wait until it ends.`);
  }

  #hasMuchInHostRam(): boolean {
    const { model, learned } = this.#options;
    return loadedMiB(learned.of(model.id), model) - this.heldMiB > SLOW_RELEASE_MIB;
  }

  #nothing(): Moved {
    return { done: 'nothing', tookMs: 0, heldBeforeMiB: this.heldMiB, heldAfterMiB: this.heldMiB, freedMiB: 0 };
  }

  #moved(
    done: Moved['done'],
    o: { startMs: number; before: VramMeasure | undefined; after: VramMeasure | undefined; heldBeforeMiB: number },
  ): Moved {
    return {
      done,
      tookMs: performance.now() - o.startMs,
      ...(o.before && { before: o.before }),
      ...(o.after && { after: o.after }),
      heldBeforeMiB: o.heldBeforeMiB,
      heldAfterMiB: this.heldMiB,
      freedMiB: o.before && o.after ? freedMiB(o.before, o.after) : 0,
    };
  }

  #enterReady(): void {
    if (!('server' in this.#state)) throw new Error('only a server that lives can be ready');
    this.#readySinceMs ??= performance.now();
    this.#idleSinceMs = performance.now();
    this.#enter({ kind: 'ready', server: this.#state.server });
  }

  /** The only place that changes the state. */
  #enter(state: ModelState): void {
    if (!canEnter(this.#state.kind, state.kind)) throw new Error(`no way from ${this.#state.kind} to ${state.kind}`);
    const from = this.#state.kind;
    this.#state = state;
    this.#enteredMs = performance.now();
    const { log, slotId, model } = this.#options;
    const facts = { event: `model-${state.kind}`, slotId, model: model.id, from, heldMiB: this.heldMiB };
    if (state.kind === 'failed') log.error({ ...facts, error: state.error.message, retry: state.retry });
    else log.info(facts);
    this.#options.onChange();
  }

  /** Joins the same work in flight; other work waits for it to end. */
  async #join(kind: Moved['done'], work: () => Promise<Moved>): Promise<Moved> {
    while (this.#work?.kind !== kind) {
      if (this.#work !== undefined)
        await this.#work.promise.catch(() => undefined); // its own callers see the failure
      else if (this.#burial !== undefined) await this.#burial;
      else {
        this.#lifetime.signal.throwIfAborted();
        const promise = work().finally(() => (this.#work = undefined));
        this.#work = { kind, promise };
      }
    }
    return this.#work.promise;
  }
}

function urlOf(server: ServerRef): string {
  return server.kind === 'attached' ? server.url : `http://${HOST}:${server.port}`;
}

function isSame(state: ModelState, server: ServerRef): boolean {
  return 'server' in state && state.server === server && state.kind !== 'releasing';
}

function withLog(error: AppError, logText: string): AppError {
  if (logText === '') return error;
  return new AppError(error.code, `${error.message} The last lines of its log:\n${logText}`, { cause: error });
}

function words(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
