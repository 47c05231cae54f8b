export type Backoff = { firstMs: number; maxMs: number };

/**
 * Delay before try `failures` + 1: between half and all of an exponentially growing limit, so that many peers that lost
 * the same host do not come back in the same moment. `random` in [0, 1) is the caller's, so that this stays pure.
 */
export function backoffMs(failures: number, options: Backoff & { random: number }): number {
  if (failures <= 0) return 0;
  const limitMs = Math.min(options.maxMs, options.firstMs * 2 ** (failures - 1));
  return Math.round(limitMs * (0.5 + options.random / 2));
}
