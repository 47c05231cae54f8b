import { untilAborted } from '../../shared/abort.ts';

/** Something changed: whoever waits for that looks again. Says nothing of what it was, so nobody acts on old news. */
export class Changes {
  readonly #onChange: () => void;
  #next = signalOnce();

  constructor(onChange: () => void) {
    this.#onChange = onChange;
  }

  announce(): void {
    const { resolve } = this.#next;
    this.#next = signalOnce();
    resolve();
    this.#onChange();
  }

  next(signal: AbortSignal): Promise<void> {
    return untilAborted(this.#next.promise, signal);
  }
}

function signalOnce(): { promise: Promise<void>; resolve: () => void } {
  let resolve = (): void => undefined;
  const promise = new Promise<void>((settle) => (resolve = settle));
  return { promise, resolve };
}
