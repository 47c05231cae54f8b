/** One run of a job for one bridge, in ms of one clock. */
export type ServedRun = { bridge: number; startMs: number; endMs: number };

/**
 * The largest difference between the run time that two bridges were served, as a share of the larger, at any moment after
 * the end of job number `after` until one of them has nothing left to start. A running job counts with what it has run.
 */
export function worstDifference(runs: readonly ServedRun[], after: number): number {
  const of = (bridge: number): ServedRun[] => runs.filter((run) => run.bridge === bridge);
  const fromMs = runs.map(({ endMs }) => endMs).sort((a, b) => a - b)[after - 1] ?? Infinity;
  const untilMs = Math.min(...[0, 1].map((bridge) => Math.max(...of(bridge).map(({ startMs }) => startMs))));
  const servedMs = (bridge: number, atMs: number): number =>
    of(bridge).reduce((sum, { startMs, endMs }) => sum + Math.max(0, Math.min(atMs, endMs) - startMs), 0);
  // The difference changes its slope only at a start or an end, so it is largest at one of them.
  const moments = runs.flatMap(({ startMs, endMs }) => [startMs, endMs]).filter((ms) => ms >= fromMs && ms <= untilMs);
  const shares = moments.map((ms) => {
    const [a, b] = [servedMs(0, ms), servedMs(1, ms)];
    return Math.abs(a - b) / Math.max(a, b);
  });
  return Math.max(0, ...shares);
}
