import { onAbort } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';

type Outcome = { value: unknown } | { error: Error };
type Entry = { id: number; isSent: boolean; send: (id: number) => void; settle: (outcome: Outcome) => void };

/**
 * Requests of one link that wait for their reply: id → promise. At most `limit` are unanswered at a time, the others queue.
 * Each settles exactly once: by its reply, its time-out, its caller's signal, or the end of the link.
 */
export class PendingRequests {
  readonly #limit: number;
  readonly #entries = new Map<number, Entry>();
  #nextId = 1;
  #sent = 0;
  #ended: AppError | undefined;

  constructor({ limit }: { limit: number }) {
    this.#limit = limit;
  }

  get count(): number {
    return this.#entries.size;
  }

  /** `send` gets the id when it is this request's turn. The time runs from now on, queueing included. */
  add(o: { what: string; deadlineMs: number; signal: AbortSignal; send: (id: number) => void }): Promise<unknown> {
    if (this.#ended !== undefined) return Promise.reject(this.#ended);
    if (o.signal.aborted) return Promise.reject(o.signal.reason as Error); // an AbortSignal's reason is `any`
    const id = this.#nextId;
    this.#nextId += 1;
    const late = AbortSignal.timeout(o.deadlineMs);
    return new Promise<unknown>((resolve, reject) => {
      const onLate = (): void => this.#settle(id, { error: timedOut(o) });
      const caller = onAbort(o.signal, () => this.#settle(id, { error: o.signal.reason as Error })); // as above
      const settle = (outcome: Outcome): void => {
        late.removeEventListener('abort', onLate);
        caller[Symbol.dispose]();
        if ('error' in outcome) reject(outcome.error);
        else resolve(outcome.value);
      };
      late.addEventListener('abort', onLate, { once: true });
      this.#entries.set(id, { id, isSent: false, send: o.send, settle });
      this.#sendNext();
    });
  }

  /** A reply nobody waits for is ignored: its request timed out or was given up. */
  resolve(id: number, value: unknown): void {
    this.#settle(id, { value });
  }

  reject(id: number, error: AppError): void {
    this.#settle(id, { error });
  }

  /** The link is over: everything that waits, and whatever is added later, fails with this. */
  end(error: AppError): void {
    this.#ended ??= error;
    for (const id of [...this.#entries.keys()]) this.#settle(id, { error });
  }

  #settle(id: number, outcome: Outcome): void {
    const entry = this.#entries.get(id);
    if (entry === undefined) return;
    this.#entries.delete(id);
    if (entry.isSent) this.#sent -= 1;
    entry.settle(outcome);
    this.#sendNext();
  }

  #sendNext(): void {
    if (this.#ended !== undefined) return;
    for (const entry of this.#entries.values()) {
      if (this.#sent >= this.#limit) return;
      if (entry.isSent) continue;
      entry.isSent = true;
      this.#sent += 1;
      entry.send(entry.id);
    }
  }
}

function timedOut({ what, deadlineMs }: { what: string; deadlineMs: number }): AppError {
  return new AppError('TIMEOUT', `${what} was not answered within ${deadlineMs} ms.`);
}
