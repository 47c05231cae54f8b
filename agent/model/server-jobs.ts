import { untilAborted } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import type { JobRequest } from '../../shared/job.ts';
import type { Call, Engine } from '../engine/engine.ts';
import { OutOfStep, isShortOfMemory } from '../engine/engine.ts';
import type { ImageSink } from '../engine/image-answer.ts';
import { JobWatch } from './job-watch.ts';
import { died, explainFailure, words } from '../server/server-failure.ts';
import type { ServerLife } from './server-life.ts';

export type RunOptions = {
  signal: AbortSignal;
  /** Without a new step for so long its server hangs. */
  deadlineMs: number;
  /** An engine that ran out of memory says so within this time, or hangs. */
  outOfMemoryMs: number;
  onStep: (step: number, steps: number) => void;
  sink: ImageSink;
};

type Made = { notes: string[] };

/** The exchange with the engine has no deadline of its own: the watch over the job ends it. */
const NO_DEADLINE_MS = 2 ** 31 - 1;

/** The jobs of one server: how many are on it, and what becomes of each. The engine never has two requests at a time. */
export class ServerJobs {
  readonly #options: { alias: string; engine: Engine; life: ServerLife; onIdle: () => void };
  #inFlight = 0;
  #idleSinceMs = performance.now();
  #done = 0;
  #isFirst = true;
  /** Settles when the engine has answered the last request. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(options: { alias: string; engine: Engine; life: ServerLife; onIdle: () => void }) {
    this.#options = options;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  get done(): number {
    return this.#done;
  }

  /** No image was made since the load: what the engine compiles at its first one is still to come. */
  get isFirst(): boolean {
    return this.#isFirst;
  }

  /** Since the end of the last job, or since it became ready. */
  get idleMs(): number {
    return this.#inFlight > 0 ? 0 : performance.now() - this.#idleSinceMs;
  }

  /** The server was loaded. */
  begin({ isWarm }: { isWarm: boolean }): void {
    this.#isFirst = !isWarm;
  }

  /** It was made ready for somebody, so it counts as used. */
  touch(): void {
    this.#idleSinceMs = performance.now();
  }

  /** Throws while a job is on it, also one that nobody waits for any more: the engine still works on that. */
  assertIdle(): void {
    if (this.#inFlight === 0) return;
    throw new AppError('GPU_BUSY', `${this.#options.alias} is working on a job. Wait until it ends.`);
  }

  /** In use until disposed: not offloaded and not released. */
  lease(): Disposable {
    const { kind } = this.#options.life.state;
    if (kind !== 'ready') throw new Error(`a lease needs a ready server, not one that is ${kind}`);
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
   * Sends one request, after the one before it. Aborting `signal` abandons the answer; the engine works on, so the server
   * stays in use until it answered.
   */
  async run(request: JobRequest, inputs: readonly Buffer[], options: RunOptions): Promise<Made> {
    this.#inFlight += 1;
    const answer = this.#last.then(() => this.#answer(request, inputs, options)).finally(() => this.#ended());
    this.#last = answer.catch(() => undefined); // who asked sees the failure
    const made = await untilAborted(answer, options.signal);
    this.#done += 1;
    return made;
  }

  async #answer(request: JobRequest, inputs: readonly Buffer[], options: RunOptions): Promise<Made> {
    const { alias, engine, life } = this.#options;
    const { log } = life;
    const from = log?.sizeNow() ?? 0;
    options.signal.throwIfAborted(); // abandoned before it was sent
    const { state, process } = life;
    if (state.kind !== 'ready') throw life.death ?? died(alias, 'is not ready any more');
    const isGone = (): boolean => !life.isStill(state.server);
    const { steps } = request;
    const { deadlineMs, outOfMemoryMs, onStep, sink } = options;
    using watch = new JobWatch({ log, from, steps, deadlineMs, outOfMemoryMs, onStep, signal: life.signal });
    const call = (): Call => ({ ...life.call(NO_DEADLINE_MS), signal: watch.signal });
    try {
      const made = await this.#send(() => engine.run(request, inputs, { ...call(), sink }), call);
      this.#isFirst = false;
      return made;
    } catch (thrown) {
      const error: unknown = watch.isTooLate ? watch.signal.reason : thrown;
      const patient = {
        alias,
        process,
        limitMs: deadlineMs,
        isGone,
        isHealthy: () => life.isHealthy(),
        signal: life.signal,
      };
      const explained = await explainFailure(error, patient);
      const isBroken = error instanceof OutOfStep && error.remedy === 'end';
      const cause = isBroken ? error : explained.cause;
      // Where it hangs the log may be of an earlier job; where it died that is unlikely enough.
      const said = watch.isTooLate ? '' : `${words(error)}\n${(await process?.log.lastLines()) ?? ''}`;
      const ranShort = cause !== undefined && (watch.isShortOfMemory || isShortOfMemory(said));
      if (cause !== undefined && !isGone()) void life.bury(cause); // never rejects; the failure is in the state
      if (isBroken) throw error;
      throw ranShort ? shortOfMemory(explained.failure) : explained.failure;
    }
  }

  /** Once more where the server only has to be known anew, or woken, for the request to work. */
  async #send(send: () => Promise<Made>, call: () => Call): Promise<Made> {
    const { alias, engine, life } = this.#options;
    try {
      return await send();
    } catch (error) {
      if (!(error instanceof OutOfStep) || error.remedy === 'end') throw error;
      try {
        await (error.remedy === 'refresh' ? life.refresh() : engine.wake(call()));
      } catch (failure) {
        life.signal.throwIfAborted();
        const message = `${died(alias, 'cannot be used any more').message} ${words(error)} ${words(failure)}`;
        throw new OutOfStep('MODEL_FAILED', message, 'end');
      }
    }
    return await send();
  }

  #ended(): void {
    this.#inFlight -= 1;
    if (this.#inFlight > 0) return;
    this.touch();
    this.#options.onIdle();
  }
}

/** The death of a server that ran out of memory is no death by this job's prompt, and another host may have more. */
function shortOfMemory(failure: AppError): AppError {
  const message = `Its server ran out of GPU memory and did not survive that. ${failure.message}`;
  return new AppError('GPU_OUT_OF_MEMORY', message, { cause: failure });
}
