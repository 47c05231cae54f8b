import { setMaxListeners } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';

/** Waits `ms`, or returns early, without an error, when the signal aborts. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  try {
    await delay(ms, undefined, { signal });
  } catch {
    // The only rejection is the abort, and that is what the caller asked for.
  }
}

/** Settles with the promise, or rejects with the signal's reason as soon as it aborts. The work itself goes on. */
export async function untilAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  if (signal.aborted) promise.catch(() => undefined); // as in the race below: nobody waits for its failure any more
  signal.throwIfAborted();
  let onAbort = (): void => undefined;
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal.reason as Error); // an AbortSignal's reason is `any` by its own types
    listen(signal, onAbort);
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}

/** A timer knows no longer time than this, 24 days; a longer one would fire at once. */
const LONGEST_MS = 2 ** 31 - 1;

/** A signal that aborts unless `restart()` is called in time, or when the parent signal aborts. */
export class Deadline implements Disposable {
  readonly #controller = new AbortController();
  readonly #ms: number;
  readonly #parent: AbortSignal | undefined;
  readonly #onParentAbort = (): void => this.#controller.abort(this.#parent?.reason);
  #timer: NodeJS.Timeout | undefined;

  constructor({ ms, signal }: { ms: number; signal?: AbortSignal }) {
    this.#ms = Math.min(ms, LONGEST_MS);
    this.#parent = signal;
    if (signal?.aborted) this.#onParentAbort();
    else if (signal !== undefined) listen(signal, this.#onParentAbort);
    this.restart();
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** True once the time ran out, as opposed to the parent's abort. */
  get isExpired(): boolean {
    return this.signal.aborted && !this.#parent?.aborted;
  }

  /** From now on, for the same time or for another one. */
  restart(ms = this.#ms): void {
    clearTimeout(this.#timer);
    // eslint-disable-next-line no-restricted-globals -- this class is the owner of the timer
    this.#timer = setTimeout(
      () => this.#controller.abort(new DOMException(`no answer within ${ms} ms`, 'TimeoutError')),
      Math.min(ms, LONGEST_MS),
    );
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    this.#parent?.removeEventListener('abort', this.#onParentAbort);
  }
}

/**
 * As many waits as there are may share the signal of their owner's lifetime, and each takes its listener away when it
 * ends. So their number says nothing about a leak, and Node must not warn at the eleventh.
 */
function listen(signal: AbortSignal, onAbort: () => void): void {
  setMaxListeners(0, signal);
  signal.addEventListener('abort', onAbort, { once: true });
}
