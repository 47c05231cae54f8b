import { Deadline } from '../../shared/abort.ts';
import { isShortOfMemory } from '../engine/engine.ts';
import type { ServerLog } from '../server/server-log.ts';
import { lastStep } from '../server/server-log.ts';

export type JobWatchOptions = {
  log: ServerLog | undefined;
  /** The size of the log before the request was sent. */
  from: number;
  /** Of the request: a bar of another length is not its bar. */
  steps: number;
  /** Without a new step for so long its server hangs. */
  deadlineMs: number;
  /** After it ran out of memory: an engine that lives says so within this time. */
  outOfMemoryMs: number;
  onStep: (step: number, steps: number) => void;
  signal: AbortSignal;
};

/**
 * One request at work, until disposed: its steps, by the progress bar in the log of its server, and its end in time. Each new
 * step begins the deadline again: a slow GPU is no hanging one. There are only so many steps, so it ends in any case.
 */
export class JobWatch implements Disposable {
  readonly #options: JobWatchOptions;
  readonly #limit: Deadline;
  readonly #over = new AbortController();
  #step = 0;
  #isShortOfMemory = false;

  constructor(options: JobWatchOptions) {
    this.#options = options;
    this.#limit = new Deadline({ ms: options.deadlineMs, signal: options.signal });
    const onText = (text: string): void => this.#read(text);
    void options.log?.follow({ signal: this.#over.signal, onText, from: options.from }); // reads what is there; a missing file is no text
  }

  /** Aborts with a TimeoutError at the deadline. */
  get signal(): AbortSignal {
    return this.#limit.signal;
  }

  get isTooLate(): boolean {
    return this.#limit.isExpired;
  }

  /** The log told of it after the last step. */
  get isShortOfMemory(): boolean {
    return this.#isShortOfMemory;
  }

  [Symbol.dispose](): void {
    this.#over.abort();
    this.#limit[Symbol.dispose]();
  }

  #read(text: string): void {
    if (this.#over.signal.aborted) return;
    const { steps, onStep, outOfMemoryMs, deadlineMs } = this.#options;
    if (isShortOfMemory(text) && !this.#isShortOfMemory) {
      this.#isShortOfMemory = true;
      this.#limit.restart(Math.min(outOfMemoryMs, deadlineMs));
    }
    const bar = lastStep(text);
    if (bar === undefined || bar.steps !== steps || bar.step <= this.#step) return;
    this.#step = bar.step;
    // The bar may have been printed before the engine ran out of memory: then that stands.
    if (!isShortOfMemory(text)) {
      this.#isShortOfMemory = false;
      this.#limit.restart();
    }
    onStep(bar.step, steps);
  }
}
