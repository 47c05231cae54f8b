import type { ServerLog } from './server-log.ts';

/** Contexts of others breathe: a change of VRAM below this is no sign of life. */
const NOISE_MIB = 64;

/** Whether a starting server goes on: its log grows, or it holds more VRAM than ever before. */
export class SignsOfLife {
  readonly #log: ServerLog;
  readonly #usedMiB: () => number;
  #bytes = 0;
  #mostMiB: number;
  #lastMs = performance.now();

  /** `usedMiB`: what is in use on its GPUs, as nvidia-smi shows it. */
  constructor({ log, usedMiB }: { log: ServerLog; usedMiB: () => number }) {
    this.#log = log;
    this.#usedMiB = usedMiB;
    this.#mostMiB = usedMiB();
  }

  /** How long there was none, as of now. */
  async silentMs(): Promise<number> {
    const bytes = await this.#log.size();
    const usedMiB = this.#usedMiB();
    // A log that was rotated has shrunk, and grew before that.
    if (bytes !== this.#bytes || usedMiB > this.#mostMiB + NOISE_MIB) this.#lastMs = performance.now();
    this.#bytes = bytes;
    this.#mostMiB = Math.max(this.#mostMiB, usedMiB);
    return performance.now() - this.#lastMs;
  }
}
