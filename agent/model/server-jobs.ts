import { untilAborted } from '../../shared/abort.ts';
import type { JobRequest } from '../../shared/job.ts';
import type { Engine } from './engines/engine.ts';
import { died, explainFailure } from './server-failure.ts';
import type { ServerLife } from './server-life.ts';
import { followSteps } from './server-log.ts';

export type RunOptions = { signal: AbortSignal; deadlineMs: number; onStep: (step: number, steps: number) => void };

type Made = { image: Buffer; notes: string[] };

/** The jobs of one server: how many are on it, and what becomes of each. */
export class ServerJobs {
  readonly #options: { alias: string; engine: Engine; life: ServerLife; onIdle: () => void };
  #inFlight = 0;
  #idleSinceMs = performance.now();
  #done = 0;

  constructor(options: { alias: string; engine: Engine; life: ServerLife; onIdle: () => void }) {
    this.#options = options;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  get done(): number {
    return this.#done;
  }

  /** Since the end of the last job, or since it became ready. */
  get idleMs(): number {
    return this.#inFlight > 0 ? 0 : performance.now() - this.#idleSinceMs;
  }

  /** It was made ready for somebody, so it counts as used. */
  touch(): void {
    this.#idleSinceMs = performance.now();
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
   * Sends one request. Aborting `signal` abandons the answer; the engine works on, so the server stays in use until it
   * answered.
   */
  async run(request: JobRequest, inputs: readonly Buffer[], options: RunOptions): Promise<Made> {
    this.#inFlight += 1;
    using _following = followSteps(this.#options.life.log, options.onStep);
    const answer = this.#answer(request, inputs, options.deadlineMs).finally(() => this.#ended());
    const made = await untilAborted(answer, options.signal);
    this.#done += 1;
    return made;
  }

  async #answer(request: JobRequest, inputs: readonly Buffer[], deadlineMs: number): Promise<Made> {
    const { alias, engine, life } = this.#options;
    const { state, process } = life;
    if (state.kind !== 'ready') throw life.death ?? died(alias, 'is not ready any more');
    const isGone = (): boolean => !life.isStill(state.server);
    try {
      return await engine.run(request, inputs, life.call(deadlineMs));
    } catch (error) {
      const patient = { alias, process, isGone, isHealthy: () => life.isHealthy(), signal: life.signal };
      const { failure, cause } = await explainFailure(error, patient);
      if (cause !== undefined && !isGone()) void life.bury(cause); // never rejects; the failure is in the state
      throw failure;
    }
  }

  #ended(): void {
    this.#inFlight -= 1;
    if (this.#inFlight > 0) return;
    this.touch();
    this.#options.onIdle();
  }
}
