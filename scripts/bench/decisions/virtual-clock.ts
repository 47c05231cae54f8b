/** Virtual time: what happens next happens at once. Things of the same moment happen in the order they were asked for. */
export class VirtualClock {
  readonly #events: { atMs: number; act: () => void }[] = [];
  readonly #mostEvents = 2_000_000;
  #count = 0;
  #nowMs = 0;

  get nowMs(): number {
    return this.#nowMs;
  }

  at(atMs: number, act: () => void): void {
    this.#count += 1;
    let low = 0;
    let high = this.#events.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#events[middle]?.atMs ?? 0) <= atMs) low = middle + 1;
      else high = middle;
    }
    this.#events.splice(low, 0, { atMs, act });
  }

  after(ms: number, act: () => void): void {
    this.at(this.#nowMs + ms, act);
  }

  /** The next thing happens; throws when there is none, or when there seems to be no end. */
  step(): void {
    const next = this.#events.shift();
    if (next === undefined || this.#count > this.#mostEvents) throw new Error('the fleet is stuck');
    this.#nowMs = next.atMs;
    next.act();
  }
}
