import { pause } from '../../shared/abort.ts';

export type ProgressNote = { progress: number; total: number; message: string };

/** At most two a second, and one at least every 5 s, with some room: clients give up on a silent call. */
const TICK_MS = 500;
const SILENT_TICKS = 9;
/** Keeps the value strictly increasing while nothing moves. */
const NUDGE = 1e-6;

/** Tells the client what a call is doing, until it is disposed; nothing is sent after that. */
export class ProgressReporter implements AsyncDisposable {
  readonly #stop = new AbortController();
  readonly #send: (note: ProgressNote) => Promise<void>;
  readonly #running: Promise<void>;
  #message = 'working';
  #fraction = 0;
  #isNew = true;

  constructor(send: (note: ProgressNote) => Promise<void>) {
    this.#send = send;
    this.#running = this.#run(this.#stop.signal);
  }

  report(message: string, fraction = this.#fraction): void {
    this.#isNew ||= message !== this.#message || fraction > this.#fraction;
    this.#message = message;
    this.#fraction = fraction;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#running;
  }

  async #run(signal: AbortSignal): Promise<void> {
    let last = 0;
    let silentTicks = 0;
    while (true) {
      await pause(TICK_MS, signal);
      if (signal.aborted) return;
      silentTicks += 1;
      if (!this.#isNew && silentTicks < SILENT_TICKS) continue;
      last = Math.max(last + NUDGE, Math.min(this.#fraction, 0.99));
      this.#isNew = false;
      silentTicks = 0;
      await this.#send({ progress: last, total: 1, message: this.#message });
    }
  }
}
