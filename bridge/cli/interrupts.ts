import { EXIT } from '../../shared/exit-codes.ts';

/** `asked`: a person wants the work to end. `left`: nobody watches any more, and the work may go on without. */
export type Cause = 'asked' | 'left';

/** Why a command ended before its time. */
export class Interrupted extends Error {
  readonly cause: Cause;
  readonly exitCode: number;

  constructor(cause: Cause, exitCode: number) {
    super(cause === 'asked' ? 'Interrupted.' : 'The terminal is gone.');
    this.name = 'Interrupted';
    this.cause = cause;
    this.exitCode = exitCode;
  }
}

const LEAVING = { SIGTERM: EXIT.terminated, SIGHUP: EXIT.hungUp } as const;

/**
 * What tells a command to end: Ctrl-C; SIGTERM, SIGHUP and a reader of stdout that is gone. At the second Ctrl-C the
 * process ends at once, whatever it is doing.
 */
export class Interrupts implements Disposable {
  readonly #stop = new AbortController();
  readonly #undo: (() => void)[] = [];

  constructor() {
    this.#on('SIGINT', () => {
      if (this.cause === 'asked') process.exit(EXIT.interrupted);
      this.#stop.abort(new Interrupted('asked', EXIT.interrupted));
    });
    for (const [name, exitCode] of Object.entries(LEAVING)) {
      this.#on(name, () => this.#stop.abort(new Interrupted('left', exitCode)));
    }
    // Without a listener a closed pipe is an uncaught exception. Whoever read us has seen enough.
    const onGone = (): void => this.#stop.abort(new Interrupted('left', EXIT.ok));
    const ignore = (): void => undefined;
    process.stdout.on('error', onGone);
    process.stderr.on('error', ignore);
    this.#undo.push(() => process.stdout.off('error', onGone));
    this.#undo.push(() => process.stderr.off('error', ignore));
  }

  /** Aborts with an `Interrupted`. */
  get signal(): AbortSignal {
    return this.#stop.signal;
  }

  get cause(): Cause | undefined {
    const reason: unknown = this.signal.reason;
    return reason instanceof Interrupted ? reason.cause : undefined;
  }

  [Symbol.dispose](): void {
    for (const undo of this.#undo) undo();
  }

  #on(name: string, listener: () => void): void {
    process.on(name, listener);
    this.#undo.push(() => process.off(name, listener));
  }
}
