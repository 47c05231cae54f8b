import type { ChildProcess } from 'node:child_process';
import { performance } from 'node:perf_hooks';
import { pause, untilAborted } from '../../../shared/abort.ts';
import type { EngineLog } from './engine-log.ts';
import { runSteps } from './forward.ts';
import type { OmniOptions } from './omni-options.ts';
import { drawEdit, drawPicture, type PictureFacts, type PictureFormat } from './picture.ts';
import { damaged } from './server-options.ts';
import { CudaOutOfMemory, type Vram } from './vram.ts';

/** One request as the pipeline gets it; `input` makes it an edit. */
export type Order = {
  facts: PictureFacts;
  count: number;
  size: { width: number; height: number } | undefined;
  input: Buffer | undefined;
  format: PictureFormat;
  /** Aborts when the client leaves, and drops the request only while it still waits for its turn. */
  signal: AbortSignal;
};

/** One rank's word about a sleep or a wake; the numbers in `metadata` are strings, as in the original. */
export type Acknowledgement = {
  task_id: string;
  status: 'SUCCESS' | 'ERROR';
  stage_id: number;
  rank: number;
  freed_bytes: number;
  metadata: Record<string, string>;
  error_msg: string | null;
};

export type Made = { images: Buffer[]; genMs: number; peakMiB: number };

/** `as` says how the failure travels: as an exception of the pipeline, inside an engine output, or with the whole engine. */
export class EngineFailure extends Error {
  readonly as: 'exception' | 'engine-output' | 'dead';

  constructor(message: string, as: EngineFailure['as']) {
    super(message);
    this.as = as;
  }
}

const DEAD = 'EngineCore encountered an issue. See stack trace (above) for the root cause.';
const DEFAULT_SIZE = { width: 1024, height: 1024 };

/** The diffusion stage: one request after the other, asleep or awake, alive or dead. */
export class OmniEngine {
  readonly #options: OmniOptions;
  readonly #vram: Vram;
  readonly #log: EngineLog;
  readonly #worker: ChildProcess | undefined;
  readonly #death = new AbortController();
  #queue: Promise<unknown> = Promise.resolve();
  #sleep: { level: number; woken: AbortController } | undefined;
  #isRuined = false;
  #started = 0;
  #finished = 0;
  #waiting = 0;
  #running = 0;

  constructor(o: { options: OmniOptions; vram: Vram; log: EngineLog; worker: ChildProcess | undefined }) {
    this.#options = o.options;
    this.#vram = o.vram;
    this.#log = o.log;
    this.#worker = o.worker;
  }

  /** Aborts when the engine dies. */
  get death(): AbortSignal {
    return this.#death.signal;
  }

  get counts(): { running: number; waiting: number; finished: number } {
    return { running: this.#running, waiting: this.#waiting, finished: this.#finished };
  }

  get isAsleep(): boolean {
    return this.#sleep !== undefined;
  }

  /** Waits for its turn as long as it takes; there is no limit and no refusal. */
  async generate(order: Order): Promise<Made> {
    this.#failIfDead();
    await this.#admission(order.signal);
    this.#waiting += 1;
    const turn = this.#queue.then(() => {
      this.#waiting -= 1;
      order.signal.throwIfAborted();
      return this.#run(order);
    });
    this.#queue = turn.catch(() => undefined); // whoever asked hears of the failure
    const { made, nth } = await turn;
    if (nth === this.#options.neverAnswer) await new Promise(() => undefined);
    return made;
  }

  async sleep(level: number): Promise<Acknowledgement> {
    await pause(this.#options.sleepMs, this.death);
    if (this.#options.sleepAckError) {
      return this.#acknowledge('ERROR', 0, {}, 'CUDA error: invalid argument in cumem_allocator.sleep');
    }
    const held = this.#vram.heldMiB;
    // Without the start flag nothing lies in the pool that sleep frees; the answer is SUCCESS all the same.
    const promisedMiB = this.#options.hasSleepMode && !this.#sleep ? Math.max(0, held - this.#options.residualMiB) : 0;
    this.#sleep ??= { level, woken: new AbortController() };
    // The scheduler is not stopped: a forward in flight reads weights that are gone.
    if (this.#running > 0) this.die('CUDA error: an illegal memory access was encountered');
    else this.#vram.hold(held - Math.min(promisedMiB, this.#options.freeOnlyMiB ?? promisedMiB));
    const gone = gib(promisedMiB);
    return this.#acknowledge('SUCCESS', promisedMiB, {
      total_freed_gib: gone,
      allocator_freed_gib: gone,
      physical_freed_gib: gone,
      rank_residual_gib: gib(this.#vram.deviceUsedMiB),
    });
  }

  /** Undefined when it does not sleep. Throws when the memory is gone, or the weights are. */
  async wake(): Promise<Acknowledgement | undefined> {
    if (!this.#sleep) return undefined;
    await pause(this.#options.sleepMs, this.death);
    const { level, woken } = this.#sleep;
    if (level === 2) {
      this.#isRuined = true;
      throw new Error('NotImplementedError: reload of level 2 weights is not supported for diffusion stages');
    }
    try {
      if (this.#options.wakeRunsOutOfMemory)
        throw new CudaOutOfMemory('CUDA out of memory. Tried to allocate 2.00 GiB.');
      this.#vram.hold(this.#options.weightsMiB);
    } catch (error) {
      this.#isRuined = true; // half of the pool may be mapped: nothing but the end of the process helps
      throw error;
    }
    this.#sleep = undefined;
    woken.abort();
    return this.#acknowledge('SUCCESS', 0, { state: 'WARM', current_vram_gib: gib(this.#vram.deviceUsedMiB) });
  }

  /** The worker is gone: everything that waits fails, /health says 503, the memory is free. */
  die(reason: string): void {
    if (this.death.aborted) return;
    this.#log.error(reason);
    const exit = this.#worker ? `exitcode=${this.#worker.exitCode ?? -9}` : 'exitcode=-9, SIGKILL';
    this.#log.error(`Diffusion worker(s) died unexpectedly: ['DiffusionWorker-0(${exit})']`);
    if (this.#worker) this.#worker.kill('SIGKILL');
    else this.#vram.empty(); // the process that dies here is the one that this simulator does not have
    this.#death.abort(new EngineFailure(DEAD, 'dead'));
  }

  async #admission(signal: AbortSignal): Promise<void> {
    if (!this.#sleep) return;
    if (this.#options.asleep === 'die') this.die('CUDA error: an illegal memory access was encountered');
    this.#failIfDead();
    if (this.#options.asleep === '500') {
      throw new EngineFailure(
        'Generation rejected: Engine is partially or fully asleep. Currently sleeping tags: ' +
          "['weights','kv_cache']. Please perform a full wake_up before generating.",
        'exception',
      );
    }
    const { woken } = this.#sleep;
    const ends = AbortSignal.any([woken.signal, signal, this.death]);
    await untilAborted(new Promise(() => undefined), ends).catch(() => undefined); // each of the three is looked at below
    signal.throwIfAborted();
    this.#failIfDead();
  }

  async #run(order: Order): Promise<{ made: Made; nth: number }> {
    this.#failIfDead();
    this.#started += 1;
    const nth = this.#started;
    if (this.#options.crashWord !== undefined && order.facts.prompt.includes(this.#options.crashWord)) {
      this.#log.error('Fatal Python error: Segmentation fault');
      this.#worker?.kill('SIGKILL');
      process.exit(this.#options.exitCode);
    }
    this.#running += 1;
    try {
      this.#failIfRuined();
      if (nth === this.#options.oomAt) throw new CudaOutOfMemory('CUDA out of memory. Tried to allocate 2.00 GiB.');
      this.#vram.hold(this.#options.peakMiB);
      return { nth, made: await this.#forward(order, nth) };
    } catch (error) {
      throw error instanceof CudaOutOfMemory ? this.#outOfMemory(error) : error;
    } finally {
      this.#running -= 1;
      this.#finished += 1;
      if (!this.death.aborted) {
        this.#vram.hold(Math.min(this.#vram.heldMiB, this.#options.weightsMiB));
        this.#vram.setBusy(false);
      }
    }
  }

  async #forward(order: Order, nth: number): Promise<Made> {
    const startedMs = performance.now();
    this.#vram.setBusy(true);
    const { generateMs, stepMs } = this.#options;
    const steps = order.facts.steps;
    const bar = this.#log.bar(steps);
    const [images] = await Promise.all([
      this.#draw(order),
      runSteps({ totalMs: (generateMs + stepMs * steps) * order.count, steps, onStep: bar, signal: this.death }),
    ]);
    this.#failIfDead();
    const delivered = images.map((image) => damaged(image, nth, this.#options));
    return { images: delivered, genMs: performance.now() - startedMs, peakMiB: this.#options.peakMiB };
  }

  #draw({ facts, count, size, input, format }: Order): Promise<Buffer[]> {
    const drawings = Array.from({ length: count }, (_, index) => {
      const each = { ...facts, seed: facts.seed + index };
      return input
        ? drawEdit(input, each, { ...(size && { size }), format })
        : drawPicture(each, { ...(size ?? DEFAULT_SIZE), format });
    });
    return Promise.all(drawings);
  }

  #outOfMemory(error: CudaOutOfMemory): EngineFailure {
    this.#log.error(`torch.OutOfMemoryError: ${error.message}`);
    if (this.#options.oom === 'die') {
      this.die(error.message);
      return new EngineFailure(DEAD, 'dead');
    }
    const text = `Worker failed with error '${error.message}', please check the stack trace above for the root cause`;
    return new EngineFailure(text, this.#options.oom);
  }

  #failIfRuined(): void {
    if (!this.#isRuined) return;
    throw new EngineFailure('CUDA error: an illegal memory access was encountered', 'exception');
  }

  #failIfDead(): void {
    if (this.death.aborted) throw new EngineFailure(DEAD, 'dead');
  }

  #acknowledge(
    status: Acknowledgement['status'],
    freedMiB: number,
    metadata: Record<string, string>,
    error?: string,
  ): Acknowledgement {
    return {
      task_id: crypto.randomUUID(),
      status,
      stage_id: 0,
      rank: 0,
      freed_bytes: freedMiB * 1024 * 1024,
      metadata: { source: `Platform_${this.#vram.gpuName}`, ...metadata },
      error_msg: error ?? null,
    };
  }
}

function gib(mib: number): string {
  return (mib / 1024).toFixed(2);
}
