import { AppError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';

type Bucket = { left: number; atMs: number };

/** What settles something that was begun must not wait, and is bounded by what was begun. */
const FREE = new Set(['job.ack', 'job.cancel', 'slot.decline']);

/** How many requests a token makes: a bucket for each, which fills steadily. Time is an argument. */
export class RequestQuota {
  readonly #buckets = new Map<string, Bucket>();

  /** Counts one more request; an error, in place of its answer, when there are too many. */
  refusal(tokenId: string, { what, nowMs }: { what: string; nowMs: number }): AppError | undefined {
    if (FREE.has(what)) return undefined;
    const perMs = LIMITS.requestsPerSecond.value / 1_000;
    const burst = LIMITS.requestBurst.value;
    const { left, atMs } = this.#buckets.get(tokenId) ?? { left: burst, atMs: nowMs };
    const now = Math.min(burst, left + (nowMs - atMs) * perMs);
    this.#buckets.set(tokenId, { left: now < 1 ? now : now - 1, atMs: nowMs });
    if (now >= 1) return undefined;
    const retryAfterMs = Math.ceil((1 - now) / perMs);
    return new AppError(
      'RATE_LIMITED',
      `This token may make ${LIMITS.requestsPerSecond.value} requests in a second, ${burst} at once. ` +
        `Ask again in ${retryAfterMs} ms.`,
      { retryAfterMs },
    );
  }

  /** Nothing is kept of a token that is gone. */
  forget(tokenId: string): void {
    this.#buckets.delete(tokenId);
  }
}
