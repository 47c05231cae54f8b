type Listener = (event: { type: 'abort' }) => void;

const ABORTED = Object.assign(new Error('This operation was aborted'), { name: 'AbortError' });

/** What the product uses of an AbortSignal, without Node's events: tens of thousands are made in every history. */
export class SimulatedSignal {
  aborted = false;
  reason: unknown = undefined;
  readonly #listeners = new Map<Listener, boolean>();

  static timeoutBy: (ms: number, ring: () => void) => void = () => undefined;

  static timeout(ms: number): SimulatedSignal {
    const signal = new SimulatedSignal();
    SimulatedSignal.timeoutBy(ms, () => signal.fire(timedOut()));
    return signal;
  }

  static any(signals: readonly SimulatedSignal[]): SimulatedSignal {
    const either = new SimulatedSignal();
    for (const signal of signals) {
      if (signal.aborted) either.fire(signal.reason);
      else signal.addEventListener('abort', () => either.fire(signal.reason));
    }
    return either;
  }

  static abort(reason?: unknown): SimulatedSignal {
    const signal = new SimulatedSignal();
    signal.fire(reason);
    return signal;
  }

  throwIfAborted(): void {
    if (this.aborted) throw this.reason as Error;
  }

  addEventListener(_type: 'abort', listener: Listener, o?: { once?: boolean }): void {
    if (!this.#listeners.has(listener)) this.#listeners.set(listener, o?.once ?? false);
  }

  removeEventListener(_type: 'abort', listener: Listener): void {
    this.#listeners.delete(listener);
  }

  /** Node's `setMaxListeners` asks for it. */
  setMaxListeners(): void {
    // Any number of them is fine.
  }

  fire(reason: unknown): void {
    if (this.aborted) return;
    this.aborted = true;
    this.reason = reason ?? ABORTED;
    const all = [...this.#listeners.keys()];
    for (const listener of all) {
      if (!this.#listeners.has(listener)) continue; // taken away by one before it
      listener({ type: 'abort' });
    }
    this.#listeners.clear();
  }
}

/** Reasons of the product are errors; the type of a reason is not. */
export function asError(reason: unknown): Error {
  return reason instanceof Error ? reason : new Error(String(reason));
}

export class SimulatedController {
  readonly signal = new SimulatedSignal();

  abort(reason?: unknown): void {
    this.signal.fire(reason);
  }
}

function timedOut(): Error {
  return Object.assign(new Error('The operation was aborted due to timeout'), { name: 'TimeoutError' });
}
