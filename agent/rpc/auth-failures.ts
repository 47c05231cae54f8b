/** So many failures of one address in a minute, and further ones are answered without a look at what they bring. */
const MOST_IN_A_MINUTE = 5;
const MINUTE_MS = 60_000;
/** The time doubles with every failure beyond, up to here. */
const LONGEST_MS = 15 * MINUTE_MS;
/** More addresses than this are not remembered: the oldest is forgotten. */
const MOST_ADDRESSES = 10_000;

type Failures = { atMs: number[]; blockedUntilMs: number; beyond: number };

/** How often each address has failed to say who it is, by token or by pairing code. Time is an argument. */
export class AuthFailures {
  readonly #addresses = new Map<string, Failures>();

  /** How much longer this address is refused; 0 when it is not. */
  blockedMs(address: string, nowMs: number): number {
    return Math.max(0, (this.#addresses.get(address)?.blockedUntilMs ?? 0) - nowMs);
  }

  note(address: string, nowMs: number): void {
    const before = this.#addresses.get(address) ?? { atMs: [], blockedUntilMs: 0, beyond: 0 };
    const isLongAgo = nowMs - before.blockedUntilMs > LONGEST_MS;
    const atMs = [...before.atMs.filter((each) => nowMs - each < MINUTE_MS), nowMs].slice(-MOST_IN_A_MINUTE);
    const isOver = atMs.length >= MOST_IN_A_MINUTE;
    const beyond = isOver ? (isLongAgo ? 0 : before.beyond) + 1 : before.beyond;
    const forMs = Math.min(LONGEST_MS, MINUTE_MS * 2 ** Math.min(beyond - 1, 10));
    this.#addresses.delete(address); // and to the end: the order is that of the last failure
    this.#addresses.set(address, { atMs, beyond, blockedUntilMs: isOver ? nowMs + forMs : before.blockedUntilMs });
    if (this.#addresses.size > MOST_ADDRESSES)
      for (const [oldest] of this.#addresses) return void this.#addresses.delete(oldest);
  }
}
