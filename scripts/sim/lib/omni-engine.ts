import { readFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';
import { untilAborted } from '../../../shared/abort.ts';
import { engineDead, EngineFailure } from './engine-failure.ts';
import type { EngineLog } from './engine-log.ts';
import { runSteps } from './forward.ts';
import type { OmniOptions } from './omni-options.ts';
import { type Acknowledgement, OmniSleep } from './omni-sleep.ts';
import { drawEdit, drawNoise, drawPicture, type PictureFacts, type PictureFormat, type Size } from './picture.ts';
import { damaged, peakOf } from './server-options.ts';
import { CudaOutOfMemory, type Vram } from './vram.ts';
import type { Workers } from './workers.ts';

/** One request as the pipeline gets it; `input` makes it an edit. */
export type Order = {
  facts: PictureFacts;
  count: number;
  size: Size;
  input: Buffer | undefined;
  format: PictureFormat;
  /** Aborts when the client leaves. A request that waits for its turn is dropped then, one that runs is not. */
  left: AbortSignal;
};

export type Made = { images: Buffer[]; genMs: number; peakMiB: number };

/** The diffusion stage: one request after the other, asleep or awake, alive or dead. */
export class OmniEngine {
  readonly #options: OmniOptions;
  readonly #vram: Vram;
  readonly #log: EngineLog;
  readonly #workers: Workers;
  readonly #sleep: OmniSleep;
  readonly #death = new AbortController();
  readonly #given: Buffer | undefined;
  #queue: Promise<unknown> = Promise.resolve();
  /** What every later request gets, whatever it asks for. */
  #poison: EngineFailure | undefined;
  #started = 0;
  #finished = 0;
  #waiting = 0;
  #running = 0;

  constructor(o: { options: OmniOptions; vram: Vram; log: EngineLog; workers: Workers }) {
    this.#options = o.options;
    this.#vram = o.vram;
    this.#log = o.log;
    this.#workers = o.workers;
    this.#sleep = new OmniSleep(o);
    const { answerFile } = o.options;
    this.#given = answerFile === undefined ? undefined : readFileSync(answerFile);
  }

  /** Aborts when the engine dies. */
  get death(): AbortSignal {
    return this.#death.signal;
  }

  get counts(): { running: number; waiting: number; finished: number } {
    return { running: this.#running, waiting: this.#waiting, finished: this.#finished };
  }

  /** Waits for its turn as long as it takes; there is no limit and no refusal. */
  async generate(order: Order): Promise<Made> {
    const onLeave = (): void => {
      if (this.#options.poisonsAfterAbort) this.#poison ??= new EngineFailure('Request was aborted.', 'exception');
    };
    order.left.addEventListener('abort', onLeave);
    try {
      await this.#admission(order);
      this.#waiting += 1;
      const turn = this.#queue.then(() => this.#turn(order));
      this.#queue = turn.catch(() => undefined); // whoever asked hears of the failure
      const made = await turn;
      return made === 'no answer' ? await new Promise<never>(() => undefined) : made;
    } finally {
      order.left.removeEventListener('abort', onLeave);
    }
  }

  async sleep(level: number): Promise<Acknowledgement> {
    await this.#answerOfWorkers();
    const acknowledgement = await this.#sleep.sleep(level);
    // The scheduler is not stopped: a forward in flight reads weights that are gone.
    if (this.#running > 0 && acknowledgement.status === 'SUCCESS') this.die(ILLEGAL_ACCESS);
    return acknowledgement;
  }

  /** Undefined when it does not sleep. Throws when the memory is gone, or the weights are. */
  async wake(): Promise<Acknowledgement | undefined> {
    await this.#answerOfWorkers();
    try {
      return await this.#sleep.wake();
    } finally {
      if (this.#sleep.isRuined) this.#poison ??= new EngineFailure(ILLEGAL_ACCESS, 'exception');
    }
  }

  /** A worker is gone: everything that waits fails, /health says 503, the memory is free. */
  die(reason: string, how = 'DiffusionWorker-0(exitcode=-9, SIGKILL)'): void {
    if (this.death.aborted) return;
    this.#log.error(reason);
    this.#log.error(`Diffusion worker(s) died unexpectedly: ['${how}']`);
    if (this.#workers.pids.length > 0) this.#workers.kill();
    else this.#vram.empty(); // the process that dies here is the one that this simulator does not have
    this.#death.abort(engineDead());
  }

  async #admission({ left }: Order): Promise<void> {
    this.#failIfDead();
    if (!this.#sleep.isAsleep) return;
    if (this.#options.asleep === 'die') this.die(ILLEGAL_ACCESS);
    this.#failIfDead();
    await this.#sleep.untilAwake(left, this.death);
    left.throwIfAborted();
    this.#failIfDead();
  }

  async #turn(order: Order): Promise<Made | 'no answer'> {
    this.#waiting -= 1;
    order.left.throwIfAborted();
    this.#failIfDead();
    this.#started += 1;
    const nth = this.#started;
    this.#crashOn(order.facts.prompt);
    this.#running += 1;
    try {
      if (this.#poison) throw this.#poison;
      if (nth === this.#options.oomAt) throw this.#vram.outOfMemory();
      const peakMiB = peakOf(this.#options, order.size.width * order.size.height * order.count);
      this.#vram.hold(peakMiB);
      const made = await this.#forward(order, { nth, peakMiB });
      return nth === this.#options.neverAnswer ? 'no answer' : made;
    } catch (error) {
      if (error instanceof CudaOutOfMemory) return this.#outOfMemory(error);
      throw error;
    } finally {
      this.#running -= 1;
      this.#finished += 1;
      // Whose workers are dead holds nothing any more, and a note in their name would be a lie.
      if (!this.death.aborted && this.#workers.areAlive) {
        this.#vram.hold(Math.min(this.#vram.heldMiB, this.#options.weightsMiB));
        this.#vram.setBusy(false);
      }
    }
  }

  async #forward(order: Order, { nth, peakMiB }: { nth: number; peakMiB: number }): Promise<Made> {
    const startedMs = performance.now();
    this.#vram.setBusy(true);
    await this.#answerOfWorkers();
    if (order.count > 1 && this.#options.hangsOnSeveral) await this.#untilDeath();
    const { generateMs, stepMs, stopsAtSteps } = this.#options;
    const steps = order.facts.steps;
    const showStep = this.#log.bar(steps);
    const onStep = (step: number): void => {
      showStep(step);
      if (nth === this.#options.workerDiesAt && step * 2 >= steps && this.#workers.areAlive) this.#workers.kill(0);
    };
    const totalMs = (generateMs + stepMs * steps) * order.count;
    const isOver = (): boolean => stopsAtSteps && order.left.aborted;
    const [images] = await Promise.all([
      this.#draw(order),
      runSteps({ totalMs, steps, onStep, isOver, signal: this.death }),
    ]);
    if (isOver()) order.left.throwIfAborted();
    await this.#answerOfWorkers();
    const delivered = images.map((image) => damaged(image, nth, this.#options));
    return { images: delivered, genMs: performance.now() - startedMs, peakMiB };
  }

  #draw({ facts, count, size, input, format }: Order): Promise<Buffer[]> {
    const drawings = Array.from({ length: count }, (_, index) => {
      const each = { ...facts, seed: facts.seed + index };
      if (this.#given !== undefined) return Promise.resolve(this.#given);
      if (this.#sleep.lacksWeights) return drawNoise(each, { size, format });
      return input ? drawEdit(input, each, { size, format }) : drawPicture(each, { ...size, format });
    });
    return Promise.all(drawings);
  }

  /** Throws what the client sees, or says that it sees nothing. */
  #outOfMemory(error: CudaOutOfMemory): 'no answer' {
    this.#log.error(`torch.OutOfMemoryError: ${error.message}`);
    const { oom } = this.#options;
    if (oom === 'die') {
      this.die(error.message);
      throw engineDead();
    }
    const text = `Worker failed with error '${error.message}', please check the stack trace above for the root cause`;
    if (oom !== 'hang') throw new EngineFailure(text, oom);
    // The answer is never fetched, so every later request gets the one before it (#2327).
    this.#poison ??= new EngineFailure(text, 'engine-output');
    return 'no answer';
  }

  #crashOn(prompt: string): void {
    if (this.#options.crashWord === undefined || !prompt.includes(this.#options.crashWord)) return;
    this.#log.error('Fatal Python error: Segmentation fault');
    this.#workers.kill();
    process.exit(this.#options.exitCode);
  }

  /** Whoever asks a dead worker waits until somebody notices that it is dead. */
  async #answerOfWorkers(): Promise<void> {
    if (!this.#workers.areAlive) await this.#untilDeath();
    this.#failIfDead();
  }

  async #untilDeath(): Promise<void> {
    await untilAborted(new Promise(() => undefined), this.death);
  }

  #failIfDead(): void {
    if (this.death.aborted) throw engineDead();
  }
}

const ILLEGAL_ACCESS = 'CUDA error: an illegal memory access was encountered';
