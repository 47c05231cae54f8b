import { pause } from '../../shared/abort.ts';
import { AppError, toAppError } from '../../shared/errors.ts';
import type { JobRequest } from '../../shared/job.ts';
import type { GpuSampler } from '../gpu/gpu-sampler.ts';
import type { VramMeasure } from '../gpu/vram-measure.ts';
import { measureVram } from '../gpu/vram-measure.ts';
import { loadedMiB } from './footprint.ts';
import type { Learned } from './learned.ts';
import type { ModelState } from './model-state.ts';
import type { Moved } from './moved.ts';
import { movedBy, notMoved } from './moved.ts';
import { watchPeak } from './peak-watch.ts';
import { died, words } from './server-failure.ts';
import type { RunOptions } from './server-jobs.ts';
import { ServerJobs } from './server-jobs.ts';
import type { ServerLifeOptions } from './server-life.ts';
import { ServerLife } from './server-life.ts';
import { pollMsFor, untilSettled } from './vram-verifier.ts';

export type ModelServerOptions = Omit<ServerLifeOptions, 'loadedMiB'> & { sampler: GpuSampler; learned: Learned };

/** How often it did what since the agent started. */
export type Counts = { jobsDone: number; loads: number; wakes: number; offloads: number; releases: number };

/** Sleep and wake move tens of GiB over PCIe; a call that takes longer hangs. */
const MOVE_CALL_MS = 300_000;
/** Less than this share still held after a job: the engine has moved the weights to host RAM by itself. */
const GONE_SHARE = 0.5;

/** One server with its transitions and jobs. Nothing else starts, moves or ends it; callers join work in flight. */
export class ModelServer {
  readonly #options: ModelServerOptions;
  readonly #life: ServerLife;
  readonly #jobs: ServerJobs;
  #isHeldInFlux = false;
  #work: { kind: Moved['done']; promise: Promise<Moved> } | undefined;
  readonly #counts = { loads: 0, wakes: 0, offloads: 0, releases: 0 };

  constructor(options: ModelServerOptions) {
    this.#options = options;
    this.#life = new ServerLife({ ...options, loadedMiB: () => this.#loadedMiB() });
    const { model, engine } = options;
    this.#jobs = new ServerJobs({ alias: model.alias, engine, life: this.#life, onIdle: () => this.#onIdle() });
  }

  get state(): ModelState {
    return this.#life.state;
  }

  get inStateMs(): number {
    return this.#life.inStateMs;
  }

  get gpus(): readonly string[] {
    return this.#life.gpus;
  }

  get heldMiB(): number {
    return this.#life.vram.heldMiB;
  }

  get inFlight(): number {
    return this.#jobs.inFlight;
  }

  /** Since the end of the last job, or since it became ready. */
  get idleMs(): number {
    return this.#jobs.idleMs;
  }

  get counts(): Readonly<Counts> {
    return { ...this.#counts, jobsDone: this.#jobs.done };
  }

  get version(): string | undefined {
    return this.#life.version;
  }

  /** Live processes of its tree. */
  pids(): number[] {
    return this.#life.pids();
  }

  /** The last look fell into a job, so it may have seen memory that the job gave back. */
  get isHeldInFlux(): boolean {
    return this.#isHeldInFlux;
  }

  /** Keeps a look at its VRAM that somebody else took. */
  note(measure: VramMeasure): void {
    if (!('server' in this.state) || this.state.kind === 'releasing') return;
    this.#isHeldInFlux = this.inFlight > 0;
    // What changes during a transition is its own, and counted by its own looks.
    if (measure.isListed || this.#work === undefined) this.#life.vram.note(measure);
  }

  /** Starts the server on these GPUs, where nvidia-smi just showed `before`, and answers when it is ready. */
  load(gpus: readonly string[], before?: VramMeasure): Promise<Moved> {
    return this.#join('load', () => this.#load(gpus, before));
  }

  /** Settles when it is in no transition: then its state says what to do next. */
  async settled(): Promise<void> {
    for (;;) {
      if (this.#work !== undefined)
        await this.#work.promise.catch(() => undefined); // its own callers see the failure
      else if (this.#life.burial !== undefined) await this.#life.burial;
      else return;
    }
  }

  /** Brings an offloaded server back. If that fails the process is ended: nobody knows what is left of it. */
  wake(): Promise<Moved> {
    return this.#join('wake', () => this.#wake());
  }

  /** For engines that wake by the job itself: from now on it counts as ready. */
  wakeByJob(): void {
    if (this.#options.engine.wakesBy !== 'job' || this.state.kind !== 'offloaded') return;
    this.#life.becomes('loading');
    this.#becomeReady();
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
    return this.#jobs.lease();
  }

  /** Sends one request; see `ServerJobs`. */
  run(
    request: JobRequest,
    inputs: readonly Buffer[],
    options: RunOptions,
  ): Promise<{ image: Buffer; notes: string[] }> {
    return this.#jobs.run(request, inputs, options);
  }

  checkHealth(): Promise<void> {
    return this.#life.checkHealth(() => this.inFlight === 0 && this.#work === undefined);
  }

  /** Keeps the log of a chatty server from filling the disk. */
  async capLog(): Promise<void> {
    await this.#life.log?.cap();
  }

  /** Stops the server for good, without looking at its VRAM: the agent ends. */
  shutdown({ graceMs }: { graceMs: number }): Promise<void> {
    // Callers of the work under way see its failure.
    return this.#life.shutdown({ graceMs, work: () => this.#work?.promise.catch(() => undefined) });
  }

  async #load(gpus: readonly string[], before: VramMeasure | undefined): Promise<Moved> {
    const { kind } = this.state;
    if (kind === 'ready') return notMoved(this.heldMiB);
    if (kind === 'offloaded') return this.#wake();
    if (kind !== 'released' && kind !== 'failed') throw new Error(`cannot load a server that is ${kind}`);
    const { model, engine, sampler, learned } = this.#options;
    const life = this.#life;
    const startMs = performance.now();
    await life.begin(gpus, before);
    using peak = watchPeak(sampler, gpus);
    try {
      await life.untilAnswering();
      if (model.launch.kind === 'owned') await this.#finishLoad();
    } catch (error) {
      await life.throwIfCutByDeath(error);
      throw await life.buriedFor(toAppError(error, 'MODEL_FAILED'));
    }
    const after = await life.look();
    await life.throwIfDead();
    this.#becomeReady();
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
  async #finishLoad(): Promise<void> {
    const { engine, sampler, times } = this.#options;
    const done = new AbortController();
    const finishing = engine.finishLoad(this.#life.call(times.startDeadlineMs)).finally(() => done.abort());
    finishing.catch(() => undefined); // awaited below
    while (engine.wakesBy === 'job' && !done.signal.aborted) {
      await sampler.sampleNow(done.signal).catch(() => undefined); // the end of the edit, or a driver that does not answer
      await pause(pollMsFor(times), done.signal);
    }
    await finishing;
  }

  async #wake(): Promise<Moved> {
    if (this.state.kind !== 'offloaded') return notMoved(this.heldMiB);
    const { engine, learned, model } = this.#options;
    const life = this.#life;
    if (engine.wakesBy === 'job') {
      this.wakeByJob();
      return notMoved(this.heldMiB);
    }
    const startMs = performance.now();
    const heldBeforeMiB = this.heldMiB;
    const before = life.vram.measure;
    life.becomes('loading');
    try {
      await engine.wake(life.call(MOVE_CALL_MS));
      if (!(await life.isHealthy())) throw died(model.alias, 'does not answer after it woke');
    } catch (error) {
      await life.throwIfCutByDeath(error);
      const message = `Waking ${model.alias} failed: ${words(error)}`;
      throw await life.buriedFor(new AppError('MODEL_FAILED', message, { cause: error }));
    }
    const after = await life.look();
    await life.throwIfDead();
    this.#becomeReady();
    this.#counts.wakes += 1;
    learned.woken(model.id, { tookMs: performance.now() - startMs });
    return this.#moved('wake', { startMs, before, after, heldBeforeMiB });
  }

  async #offload(): Promise<Moved> {
    if (this.state.kind !== 'ready') return notMoved(this.heldMiB);
    this.#assertIdle();
    const { engine, learned, model, look, times } = this.#options;
    const life = this.#life;
    const { signal } = life;
    const startMs = performance.now();
    life.becomes('offloading');
    const before = await this.#lookToMove();
    const heldBeforeMiB = this.heldMiB;
    try {
      await engine.offload(life.call(MOVE_CALL_MS));
    } catch (error) {
      await life.throwIfCutByDeath(error);
      await this.#recover(error);
      throw new AppError('ENGINE_FAILED', `${model.alias} was not offloaded: ${words(error)}`, { cause: error });
    }
    const claim = before && { gpus: this.#gpusToMove(), pids: this.pids(), before, heldMiB: heldBeforeMiB };
    const limits = { look, deadlineMs: times.vramBackMs, pollMs: pollMsFor(times), signal };
    const verdict = claim && (await untilSettled(claim, limits));
    await life.throwIfDead();
    if (verdict?.after !== undefined && this.gpus.length > 0) life.vram.count(verdict.after);
    // An engine that wakes by the job keeps no state of its own here: what nvidia-smi shows is what it is.
    const hasMoved = engine.wakesBy === 'call' || verdict === undefined || verdict.isBack;
    life.becomes(hasMoved ? 'offloaded' : 'ready');
    this.#counts.offloads += 1;
    if (verdict !== undefined && this.gpus.length > 0) learned.offloaded(model.id, { heldMiB: this.heldMiB });
    return this.#moved('offload', { startMs, before, after: verdict?.after, heldBeforeMiB });
  }

  /** After a refused offload nobody knows whether the engine sleeps: only a wake that works makes it usable. */
  async #recover(cause: unknown): Promise<void> {
    const { engine, model } = this.#options;
    const life = this.#life;
    try {
      await engine.wake(life.call(MOVE_CALL_MS));
      if (!(await life.isHealthy())) throw died(model.alias, 'does not answer after a failed offload');
    } catch {
      const message = `Offloading ${model.alias} broke its server: ${words(cause)}`;
      throw await life.buriedFor(new AppError('MODEL_FAILED', message));
    }
    await life.throwIfDead();
    this.#becomeReady();
  }

  async #release(): Promise<Moved> {
    const { model } = this.#options;
    const life = this.#life;
    if (model.launch.kind === 'attached') {
      throw new AppError(
        'INVALID_ARGUMENT',
        `${model.alias} runs at ${model.launch.url} and was started by someone else, so it is not ours to end. ` +
          'Offload it, or stop it where it was started.',
      );
    }
    if (!('server' in this.state)) {
      life.forgive();
      return notMoved(this.heldMiB);
    }
    this.#assertIdle();
    const startMs = performance.now();
    const { before, after, heldMiB } = await life.bury('asked');
    life.forgive(); // it may have died by itself in the same moment: who asked has what they wanted
    this.#counts.releases += 1;
    return this.#moved('release', { startMs, before, after, heldBeforeMiB: heldMiB });
  }

  #onIdle(): void {
    if (this.#options.engine.wakesBy === 'job') this.#settleByItself();
    this.#options.onChange();
  }

  /** After an edit such an engine goes back to host RAM by itself; it is offloaded when nvidia-smi agrees. */
  #settleByItself(): void {
    const life = this.#life;
    void life.look().then(() => {
      // Never rejects. Meanwhile the next job may have begun.
      if (this.state.kind !== 'ready' || this.inFlight > 0 || this.#work !== undefined) return;
      if (life.vram.measure === undefined && this.gpus.length > 0) return;
      if (this.heldMiB > GONE_SHARE * this.#loadedMiB()) return;
      life.becomes('offloading');
      life.becomes('offloaded');
      this.#options.learned.offloaded(this.#options.model.id, { heldMiB: this.heldMiB });
    });
  }

  /** Where somebody else's server is on the GPUs is not known: so the change on all of them is shown. */
  #gpusToMove(): readonly string[] {
    const isOurs = this.#options.model.launch.kind === 'owned';
    return isOurs ? this.gpus : this.#options.sampler.readings().map(({ uuid }) => uuid);
  }

  async #lookToMove(): Promise<VramMeasure | undefined> {
    if (this.#options.model.launch.kind === 'owned') return this.#life.look();
    const seen = await this.#options.look(this.#life.signal);
    return seen && measureVram(seen, { gpus: this.#gpusToMove(), pids: [] });
  }

  #loadedMiB(): number {
    const { model, learned } = this.#options;
    return loadedMiB(learned.of(model.id), model);
  }

  #becomeReady(): void {
    this.#jobs.touch();
    this.#life.becomes('ready');
  }

  #assertIdle(): void {
    if (this.inFlight === 0) return;
    throw new AppError('GPU_BUSY', `${this.#options.model.alias} is working on a job. Wait until it ends.`);
  }

  #moved(done: Moved['done'], o: Omit<Parameters<typeof movedBy>[1], 'heldAfterMiB'>): Moved {
    return movedBy(done, { ...o, heldAfterMiB: this.heldMiB });
  }

  /** Joins the same work in flight; other work waits for it to end. */
  async #join(kind: Moved['done'], work: () => Promise<Moved>): Promise<Moved> {
    while (this.#work?.kind !== kind) {
      if (this.#work !== undefined || this.#life.burial !== undefined) await this.settled();
      else {
        this.#life.signal.throwIfAborted();
        const promise = work().finally(() => (this.#work = undefined));
        this.#work = { kind, promise };
      }
    }
    return this.#work.promise;
  }
}
