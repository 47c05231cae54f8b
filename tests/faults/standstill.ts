import { pause } from '../../shared/abort.ts';

const TICK_MS = 50;
/** Later than this is no matter of the work that a test does. */
const LATE_MS = 100;

/**
 * How long this process stood still, as a clock that should tick and did not: a machine that is lent to others for some
 * seconds does so to all its processes at once.
 */
export class Standstill implements Disposable {
  readonly #over = new AbortController();
  #lastMs = performance.now();
  #ms = 0;

  constructor() {
    void this.#watch(); // it awaits nothing that fails
  }

  /** Since it was made, in ms. */
  get ms(): number {
    this.#tick(); // its own tick may be what is late
    return this.#ms;
  }

  [Symbol.dispose](): void {
    this.#over.abort();
  }

  async #watch(): Promise<void> {
    for (; !this.#over.signal.aborted; await pause(TICK_MS, this.#over.signal)) this.#tick();
  }

  #tick(): void {
    const nowMs = performance.now();
    const lateMs = nowMs - this.#lastMs - TICK_MS;
    if (lateMs > LATE_MS) this.#ms += lateMs;
    this.#lastMs = nowMs;
  }
}
