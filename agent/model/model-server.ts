import type { JobRequest } from '../../shared/job.ts';
import type { VramMeasure } from '../gpu/vram-measure.ts';
import type { ModelState } from './model-state.ts';
import type { Moved } from './moved.ts';
import type { RunOptions } from './server-jobs.ts';
import { OtherModel } from '../engine/engine.ts';
import { ServerJobs } from './server-jobs.ts';
import { ServerLife } from './server-life.ts';
import type { MoveOptions } from './move-site.ts';
import { ServerMoves } from './server-moves.ts';

export type ModelServerOptions = MoveOptions;

/** How often it did what since the agent started. */
export type Counts = { jobsDone: number; loads: number; wakes: number; offloads: number; releases: number };

/** One server with its transitions and jobs. Nothing else starts, moves or ends it; callers join work in flight. */
export class ModelServer {
  readonly #options: ModelServerOptions;
  readonly #life: ServerLife;
  readonly #jobs: ServerJobs;
  readonly #moves: ServerMoves;
  #isHeldInFlux = false;
  #work: { kind: Moved['done']; promise: Promise<Moved> } | undefined;

  constructor(options: ModelServerOptions) {
    this.#options = options;
    this.#life = new ServerLife({ ...options, loadedMiB: () => this.#moves.loadedMiB() });
    const { model, engine } = options;
    this.#jobs = new ServerJobs({ alias: model.alias, engine, life: this.#life, onIdle: () => this.#onIdle() });
    this.#moves = new ServerMoves({ ...options, life: this.#life, jobs: this.#jobs });
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

  /** The last look at its VRAM. */
  get measure(): VramMeasure | undefined {
    return this.#life.vram.measure;
  }

  get inFlight(): number {
    return this.#jobs.inFlight;
  }

  /** A job of it may change the free memory of one of these GPUs. */
  isWorkingOn(gpus: readonly string[]): boolean {
    return this.inFlight > 0 && this.gpus.some((uuid) => gpus.includes(uuid));
  }

  /** No image was made since the load: what the engine compiles at its first one is still to come. */
  get isFirst(): boolean {
    return this.#jobs.isFirst;
  }

  /** Since the end of the last job, or since it became ready. */
  get idleMs(): number {
    return this.#jobs.idleMs;
  }

  get counts(): Readonly<Counts> {
    return { ...this.#moves.counts, jobsDone: this.#jobs.done };
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
    if (this.#work === undefined) this.#moves.settleAsSeen();
  }

  /** Starts the server on these GPUs, where nvidia-smi just showed `before`, and answers when it is ready. */
  load(gpus: readonly string[], before?: VramMeasure): Promise<Moved> {
    return this.#join('load', () => this.#moves.load(gpus, before));
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
    return this.#join('wake', () => this.#moves.wake());
  }

  /** For engines that wake by the job itself: from now on it counts as ready. */
  wakeByJob(): void {
    this.#moves.wakeByJob();
  }

  /**
   * Weights to host RAM. `freedMiB` is nvidia-smi's, and may be little: the caller decides what then. Where the engine cannot,
   * or host RAM cannot hold them, it is a release, and the answer says why.
   */
  offload(): Promise<Moved> {
    return this.#join('offload', () => this.#moves.offload());
  }

  /** Ends the process and waits for its VRAM. */
  release(): Promise<Moved> {
    return this.#join('release', () => this.#moves.release());
  }

  /** A person wants it released, or started anew: its failures count no more. */
  forgive(): void {
    this.#life.forgive();
  }

  /** Ends a load or wake that nobody wants any more. Who waits for it sees it fail. */
  async cutLoad(): Promise<void> {
    if (this.state.kind === 'loading') await this.#life.bury('asked');
  }

  /** In use until disposed: not offloaded and not released. */
  lease(): Disposable {
    return this.#jobs.lease();
  }

  /** Sends one request; see `ServerJobs`. */
  run(request: JobRequest, inputs: readonly Buffer[], options: RunOptions): Promise<{ notes: string[] }> {
    return this.#jobs.run(request, inputs, options);
  }

  async checkHealth(): Promise<void> {
    const isFree = (): boolean => this.inFlight === 0 && this.#work === undefined;
    await this.#life.checkHealth(isFree);
    if (this.state.kind === 'ready' && this.state.server.kind === 'attached') await this.#checkModel(isFree);
  }

  /** Stops the server for good, without looking at its VRAM: the agent ends. */
  shutdown({ graceMs }: { graceMs: number }): Promise<void> {
    // Callers of the work under way see its failure.
    return this.#life.shutdown({ graceMs, work: () => this.#work?.promise.catch(() => undefined) });
  }

  /** Whoever runs it may have put another model there, and one that takes any name in a request would draw with that. */
  async #checkModel(isFree: () => boolean): Promise<void> {
    try {
      await this.#life.refresh();
    } catch (error) {
      // Silent, or at work: what its health says has to do.
      if (error instanceof OtherModel && isFree() && this.state.kind === 'ready') await this.#life.bury(error);
    }
  }

  #onIdle(): void {
    if (this.#options.engine.wakesBy === 'job') this.#moves.settleByItself();
    this.#options.onChange();
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
