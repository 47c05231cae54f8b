import { pause } from '../../shared/abort.ts';
import type { AppError } from '../../shared/errors.ts';

/** What writes to the disk: it remembers that it was refused, and can be asked to try again. */
export type Store = { readonly failure: AppError | undefined; probe(): Promise<void> };

/** Tries a full disk again until it takes writes, so that the host goes on by itself once there is room. */
export class DiskWatch implements AsyncDisposable {
  readonly #stores: readonly Store[];
  readonly #everyMs: number;
  readonly #onWritable: () => void;
  readonly #closing = new AbortController();
  #probing: Promise<void> | undefined;

  constructor({ stores, everyMs, onWritable }: { stores: readonly Store[]; everyMs: number; onWritable: () => void }) {
    this.#stores = stores;
    this.#everyMs = everyMs;
    this.#onWritable = onWritable;
  }

  /** Why nothing can be kept now. Whoever looks also starts the tries, which go on until it is over. */
  get failure(): AppError | undefined {
    const failure = this.#failure;
    if (failure !== undefined && !this.#closing.signal.aborted) this.#probing ??= this.#probe();
    return failure;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort();
    await this.#probing;
  }

  get #failure(): AppError | undefined {
    return this.#stores.find((store) => store.failure !== undefined)?.failure;
  }

  async #probe(): Promise<void> {
    const { signal } = this.#closing;
    while (this.#failure !== undefined) {
      await pause(this.#everyMs, signal);
      if (signal.aborted) return;
      for (const store of this.#stores) if (store.failure !== undefined) await store.probe();
    }
    this.#probing = undefined;
    this.#onWritable();
  }
}
