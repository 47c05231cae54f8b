import { untilAborted } from '../../shared/abort.ts';

/** One transition per GPU at a time. Waiters go first come, first served. */
export class GpuLocks {
  readonly #last = new Map<string, Promise<void>>();

  /**
   * Waits until all these GPUs are ours; free again when disposed. Always in the same order, so that none waits in a ring.
   * Who leaves by the signal leaves nothing locked.
   */
  async acquire(gpus: readonly string[], signal: AbortSignal): Promise<Disposable> {
    const ours: (() => void)[] = [];
    const release = (): void => ours.forEach((free) => free());
    for (const uuid of [...new Set(gpus)].sort()) {
      const before = this.#last.get(uuid);
      let settle = (): void => undefined;
      const held = new Promise<void>((resolve) => (settle = resolve));
      const last = (before ?? Promise.resolve()).then(() => held);
      this.#last.set(uuid, last);
      const forget = (): void => {
        if (this.#last.get(uuid) === last) this.#last.delete(uuid);
      };
      try {
        if (before !== undefined) await untilAborted(before, signal);
      } catch (error) {
        settle();
        void last.then(forget); // never rejects; until then the one before us holds it
        release();
        throw error;
      }
      ours.push(() => {
        settle();
        forget();
      });
    }
    return { [Symbol.dispose]: release };
  }

  isHeld(uuid: string): boolean {
    return this.#last.has(uuid);
  }
}
