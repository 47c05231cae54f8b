import { setMaxListeners } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';

/** Waits `ms`, or returns early, without an error, when the signal aborts. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  allowMany(signal);
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
  let fail = (_: Error): void => undefined;
  const aborted = new Promise<never>((_, reject) => (fail = reject));
  using _listening = onAbort(signal, () => fail(signal.reason as Error)); // an AbortSignal's reason is `any` by its own types
  return await Promise.race([promise, aborted]);
}

/** A timer knows no longer time than this, 24 days; a longer one would fire at once. */
const LONGEST_MS = 2 ** 31 - 1;

/** A signal that aborts unless `restart()` is called in time, or when the parent signal aborts. */
export class Deadline implements Disposable {
  readonly #controller = new AbortController();
  readonly #ms: number;
  readonly #parent: AbortSignal | undefined;
  readonly #listening: Disposable | undefined;
  #timer: NodeJS.Timeout | undefined;
  #timerMs: number | undefined;

  constructor({ ms, signal }: { ms: number; signal?: AbortSignal }) {
    this.#ms = Math.min(ms, LONGEST_MS);
    this.#parent = signal;
    if (signal?.aborted) this.#controller.abort(signal.reason);
    else if (signal !== undefined) this.#listening = onAbort(signal, () => this.#controller.abort(signal.reason));
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
    // A link restarts its own at every frame: as long as the time is the same, so is the timer.
    if (ms === this.#timerMs) return void this.#timer?.refresh();
    clearTimeout(this.#timer);
    this.#timerMs = ms;
    // eslint-disable-next-line no-restricted-globals -- this class is the owner of the timer
    this.#timer = setTimeout(
      () => this.#controller.abort(new DOMException(`no answer within ${ms} ms`, 'TimeoutError')),
      Math.min(ms, LONGEST_MS),
    );
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    this.#timer = undefined; // a frame that comes after the end of its link starts nothing again
    this.#listening?.[Symbol.dispose]();
  }
}

/** Calls `act` once, when the signal aborts, unless it is disposed before. One that has aborted already calls nothing. */
export function onAbort(signal: AbortSignal, act: () => void): Disposable {
  allowMany(signal);
  signal.addEventListener('abort', act, { once: true });
  return { [Symbol.dispose]: () => signal.removeEventListener('abort', act) };
}

/**
 * As many waits as there are may share the signal of their owner's lifetime, and each takes its listener away when it
 * ends. So their number says nothing about a leak, and Node must not warn at the eleventh.
 */
function allowMany(signal: AbortSignal): void {
  setMaxListeners(0, signal);
}
