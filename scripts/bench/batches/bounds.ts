/** PURE. What no schedule can beat, and how often models change. Rates are work per time: 1 for a host of speed 1. */

/** max(total work / sum of rates, longest job / fastest rate). */
export function lowerBoundMs(worksMs: readonly number[], rates: readonly number[]): number {
  const total = worksMs.reduce((sum, work) => sum + work, 0);
  const fleet = rates.reduce((sum, rate) => sum + rate, 0);
  return Math.max(total / fleet, Math.max(...worksMs) / Math.max(...rates));
}

/** The optimum of `count` identical jobs: the smallest T in which the hosts together can complete so many. */
export function optimumMs(count: number, { workMs, rates }: { workMs: number; rates: readonly number[] }): number {
  const ends = rates.flatMap((rate) => Array.from({ length: count }, (_, index) => ((index + 1) * workMs) / rate));
  const sorted = ends.sort((a, b) => a - b);
  // The k-th completion of hosts that never rest is the smallest time in which k jobs fit.
  return sorted[count - 1] ?? 0;
}

/** How often a host got a job of another model than the one it had. `before` is what each host had at first. */
export function countSwaps(runs: readonly { host: string; model: string }[], before: ReadonlyMap<string, string>) {
  const resident = new Map(before);
  let swaps = 0;
  for (const { host, model } of runs) {
    if (resident.get(host) !== model) swaps += 1;
    resident.set(host, model);
  }
  return swaps;
}

/** Who deals jobs out in turn, as round robin does, knows nothing of models. */
export function dealtInTurn(models: readonly string[], hosts: readonly string[]): { host: string; model: string }[] {
  return models.map((model, index) => ({ host: hosts[index % hosts.length] ?? '', model }));
}

export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}
