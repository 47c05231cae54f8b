import type { Readable } from 'node:stream';
import { pause } from '../shared/abort.ts';

/**
 * Who an agent lives for that a bridge started for itself: the bridge that holds the other end of its input, and every
 * bridge with a link. A dead one holds nothing, because the kernel closes both. `over` resolves when for `lingerMs` in a
 * row there was nobody; a bridge that comes back earlier finds the same agent, with its results.
 */
export class OwnerWatch implements Disposable {
  /** Never rejects; stays open where the watch is disposed first. */
  readonly over: Promise<void>;
  readonly #lingerMs: number;
  readonly #input: Readable;
  #isInputOpen = true;
  #links = 0;
  /** Aborts the time that runs while nobody is there. */
  #alone: AbortController | undefined;
  #end: () => void = () => undefined;

  constructor({ input, lingerMs }: { input: Readable; lingerMs: number }) {
    this.#lingerMs = lingerMs;
    this.#input = input;
    this.over = new Promise((resolve) => (this.#end = resolve));
    for (const event of ['end', 'close', 'error'] as const) input.once(event, this.#onInputGone);
    input.resume(); // without a reader its end is not seen
  }

  links(count: number): void {
    this.#links = count;
    this.#look();
  }

  [Symbol.dispose](): void {
    this.#alone?.abort();
    this.#end = () => undefined;
    this.#input.pause();
  }

  readonly #onInputGone = (): void => {
    this.#isInputOpen = false;
    this.#look();
  };

  #look(): void {
    const isAlone = this.#links === 0 && !this.#isInputOpen;
    if (!isAlone) {
      this.#alone?.abort();
      this.#alone = undefined;
    } else if (this.#alone === undefined) {
      this.#alone = new AbortController();
      void this.#waitAlone(this.#alone.signal); // never rejects
    }
  }

  async #waitAlone(signal: AbortSignal): Promise<void> {
    await pause(this.#lingerMs, signal);
    if (!signal.aborted) this.#end();
  }
}
