/** One transition per GPU at a time. Waiters go first come, first served. */
export class GpuLocks {
  readonly #last = new Map<string, Promise<void>>();

  /** Waits until all these GPUs are ours; free again when disposed. Always in the same order, so that none waits in a ring. */
  async acquire(gpus: readonly string[]): Promise<Disposable> {
    const releases: (() => void)[] = [];
    for (const uuid of [...new Set(gpus)].sort()) {
      const before = this.#last.get(uuid);
      let release = (): void => undefined;
      const held = new Promise<void>((resolve) => (release = resolve));
      const last = (before ?? Promise.resolve()).then(() => held);
      this.#last.set(uuid, last);
      releases.push(() => {
        release();
        if (this.#last.get(uuid) === last) this.#last.delete(uuid);
      });
      await before;
    }
    return { [Symbol.dispose]: () => releases.forEach((release) => release()) };
  }

  isHeld(uuid: string): boolean {
    return this.#last.has(uuid);
  }
}
