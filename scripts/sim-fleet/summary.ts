import type { Tally } from './parts/history.ts';
import type { Verdict } from './run-seed.ts';

type Worst = { seed: number; value: number };

/** What many histories were, added up. */
export class Summary {
  seeds = 0;
  readonly total: Partial<Record<keyof Tally, number>> = {};
  readonly broken: Verdict[] = [];
  #longest: Worst = { seed: 0, value: 0 };
  #slowest: Worst = { seed: 0, value: 0 };

  add(verdict: Verdict): void {
    const { seed, tally, violations } = verdict;
    this.seeds += 1;
    for (const [key, value] of Object.entries(tally) as [keyof Tally, number][]) {
      this.total[key] = (this.total[key] ?? 0) + value;
    }
    if (violations.length > 0) this.broken.push(verdict);
    if (tally.virtualMs > this.#longest.value) this.#longest = { seed, value: tally.virtualMs };
    if (tally.calmMs > this.#slowest.value) this.#slowest = { seed, value: tally.calmMs };
  }

  json(tookMs: number): object {
    const broken = this.broken.map(({ seed, hash, violations }) => ({ seed, hash, violations }));
    const { seeds, total } = this;
    return { seeds, tookMs: Math.round(tookMs), total, longest: this.#longest, slowest: this.#slowest, broken };
  }

  text(tookMs: number): string {
    const sum = (key: keyof Tally): string => Math.round(this.total[key] ?? 0).toLocaleString('en');
    const repeated = (this.total.runs ?? 0) - (this.total.files ?? 0);
    const hours = ((this.total.virtualMs ?? 0) / 3_600_000).toFixed(0);
    const seconds = tookMs / 1000;
    return [
      `${this.seeds.toLocaleString('en')} seeds in ${seconds.toFixed(1)} s: ${hours} hours of virtual time, ${sum('events')} events.`,
      `  ${sum('jobs')} jobs in ${sum('batches')} batches: ${sum('files')} files, ${sum('failedJobs')} given up, ${sum('cancelledJobs')} cancelled.`,
      `  ${sum('faults')} faults: ${sum('crashes')} crashes, ${sum('powerLosses')} power losses, ${sum('partitions')} partitions.`,
      `  ${sum('accepted')} attempts accepted, ${sum('runs')} engine runs, ${Math.max(0, repeated)} of them for no file.`,
      `  Longest history: ${minutes(this.#longest.value)} (seed ${this.#longest.seed}). ` +
        `Longest way to the end after the last fault: ${minutes(this.#slowest.value)} (seed ${this.#slowest.seed}).`,
      ...this.broken.map(({ seed, violations }) => {
        const [first] = violations;
        return `BROKEN ${first?.promise ?? ''}: ${first?.text ?? ''}\n  again with: npm run sim:fleet -- --seed ${seed}`;
      }),
      this.broken.length === 0 ? 'All promises were kept.' : `${this.broken.length} seeds broke a promise.`,
    ].join('\n');
  }
}

function minutes(ms: number): string {
  return `${(ms / 60_000).toFixed(1)} min`;
}
