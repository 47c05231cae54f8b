import { pause } from '../../shared/abort.ts';
import { cleanText } from './text.ts';

/** What a call is doing, for a person; `fraction` is 0 to 1 where it is known. */
export type Doing = { message: string; fraction?: number };

export type ProgressNote = { progress: number; total: number; message: string };

/** At most two a second, and one at least every 5 s, with some room: clients give up on a silent call. */
export const TICK_MS = 500;
export const SILENT_TICKS = 9;
/** A client shows one line. */
const MAX_MESSAGE = 300;
/** Keeps the value strictly increasing while nothing moves. */
const NUDGE = 1e-6;

/** Tells the client what a call is doing, until it is disposed; nothing is sent after that. */
export class ProgressReporter implements AsyncDisposable {
  readonly #stop = new AbortController();
  readonly #send: (note: ProgressNote) => Promise<void>;
  readonly #tickMs: number;
  readonly #running: Promise<void>;
  #look: () => Doing = () => ({ message: 'working' });

  constructor(send: (note: ProgressNote) => Promise<void>, { tickMs = TICK_MS }: { tickMs?: number } = {}) {
    this.#send = send;
    this.#tickMs = tickMs;
    this.#running = this.#run(this.#stop.signal);
  }

  /** Asked at each tick: looking at a large batch costs more than its jobs may cause by their steps. */
  follow(look: () => Doing): void {
    this.#look = look;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#running;
  }

  async #run(signal: AbortSignal): Promise<void> {
    let last = 0;
    let told = '';
    let silentTicks = 0;
    while (true) {
      await pause(this.#tickMs, signal);
      if (signal.aborted) return;
      silentTicks += 1;
      const { message: text, fraction = last } = this.#look();
      const message = cleanText(text, MAX_MESSAGE).replace(/\s+/g, ' '); // a part of it is what a host says it does
      if (message === told && fraction <= last && silentTicks < SILENT_TICKS) continue;
      last = Math.max(last + NUDGE, Math.min(fraction, 0.99));
      told = message;
      silentTicks = 0;
      await this.#send({ progress: last, total: 1, message });
    }
  }
}
