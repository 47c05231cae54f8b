import { estimateMs } from '../../shared/service-time.ts';
import type { ServiceTime } from '../../shared/service-time.ts';
import type { JobRecord } from './job-record.ts';

/** How good a batch was: `ratio` is its makespan over what no schedule can beat with the run times that were observed. */
export type BatchQuality = {
  makespanMs: number;
  lowerBoundMs: number;
  ratio: number;
  jobsByHost: Record<string, number>;
  /** How often a host loaded or woke the model for it; absent in manifests of older releases. */
  swaps?: number | undefined;
  /** Attempts beyond the first of each job. */
  reRuns?: number | undefined;
};

/** A host that ran, or could have run, jobs of the batch. `service` is what its agent learned for the model. */
export type QualityHost = { host: string; slots: number; service: ServiceTime };

/**
 * Lower bound = max(total work / sum of rates, longest job / fastest rate). One reference service time gives every job a
 * size; each host's rate is size per observed run time, or by its agent's estimate where the batch ran nothing.
 */
export function batchQuality(
  jobs: readonly JobRecord[],
  { makespanMs, hosts }: { makespanMs: number; hosts: readonly QualityHost[] },
): BatchQuality | undefined {
  const done = jobs.flatMap((job) =>
    job.state.kind === 'done' ? [{ host: job.state.at.host, request: job.request, runMs: job.state.result.runMs }] : [],
  );
  if (done.length === 0) return undefined;
  const jobsByHost: Record<string, number> = {};
  for (const { host } of done) jobsByHost[host] = (jobsByHost[host] ?? 0) + 1;

  const reference = hosts.find(({ host }) => jobsByHost[host] !== undefined)?.service ?? UNITS_ONLY;
  const sizes = done.map((job) => ({ ...job, size: estimateMs(reference, job.request) }));
  const rates = [...new Set([...Object.keys(jobsByHost), ...hosts.map(({ host }) => host)])].map((name) => {
    const known = hosts.find(({ host }) => host === name);
    const ran = sizes.filter(({ host }) => host === name);
    const ranMs = sum(ran.map(({ runMs }) => runMs));
    const estimated = known && sizes[0] ? sizes[0].size / estimateMs(known.service, sizes[0].request) : 0;
    return { slots: known?.slots ?? 1, rate: ranMs > 0 ? sum(ran.map(({ size }) => size)) / ranMs : estimated };
  });
  const fleetRate = sum(rates.map(({ slots, rate }) => slots * rate));
  const fastest = Math.max(...rates.map(({ rate }) => rate));
  const longest = Math.max(...sizes.map(({ size }) => size));
  const lowerBoundMs = Math.max(sum(sizes.map(({ size }) => size)) / fleetRate, longest / fastest);
  if (!Number.isFinite(lowerBoundMs) || lowerBoundMs <= 0) return undefined;
  return { makespanMs, lowerBoundMs, ratio: makespanMs / lowerBoundMs, jobsByHost, ...countAttempts(jobs) };
}

/** A take that was refused is no attempt. */
function countAttempts(jobs: readonly JobRecord[]): { swaps: number; reRuns: number } {
  const attempts = jobs.map((job) => job.attempts.filter(({ end }) => end?.kind !== 'refused'));
  return {
    swaps: attempts.flat().filter(({ isSwap }) => isSwap === true).length,
    reRuns: sum(attempts.map(({ length }) => Math.max(0, length - 1))),
  };
}

const UNITS_ONLY: ServiceTime = { fixedMs: 0, unitMs: 1, samples: 0 };

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
