/** Work that goes on when those who asked for it have left. Its owner waits for the end of all of it. */
export class WorkInHand {
  readonly #work = new Set<Promise<unknown>>();

  /** Returns the same promise: who awaits it sees its failure, and nobody has to. */
  hold<T>(work: Promise<T>): Promise<T> {
    this.#work.add(work);
    const forget = (): void => void this.#work.delete(work);
    work.then(forget, forget);
    return work;
  }

  /** Includes work that is begun meanwhile. */
  async ended(): Promise<void> {
    while (this.#work.size > 0) await Promise.allSettled(this.#work);
  }
}
