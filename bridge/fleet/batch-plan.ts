import type { JobClass } from '../../shared/job.ts';
import type { ServiceTime } from '../../shared/service-time.ts';

/** A slot of the wanted model, on any host, and when it could start another job. */
export type PlanSlot = {
  host: string;
  slotId: string;
  startsInMs: number;
  service: ServiceTime;
  /** Adds to a job's completion, but does not hold the slot. */
  transferMs: number;
  isReady: boolean;
  /** How many times its own run time a planned job occupies it: above 1 where other bridges want it as well. */
  crowding: number;
};

/** Where a job may go. Jobs of a batch share one object, so that the slots they allow are found once. */
export type PlanRules = {
  only: string | undefined;
  avoid: readonly string[];
  /** At most this many slots at a time: its batch's max_concurrent. */
  spread: number | undefined;
};

/** A waiting job in the order of `planOrder`. */
export type PlanJob = {
  jobId: string;
  class: JobClass;
  units: number;
  rules: PlanRules;
  /** How long grants for it have been declined. */
  declinedForMs: number;
};

export type PlanGrant = { host: string; slotId: string; class: JobClass };

export type PlanAnswer = { kind: 'take'; jobId: string; endsInMs: number } | { kind: 'decline'; why: string };

/** A job is never declined for longer than this, or than its own time there: a wrong forecast delays, it never strands. */
const PATIENCE_MS = 10_000;
/** More jobs than this do not change who gets the next one. */
export const HORIZON_JOBS = 200;
/**
 * Completions within this share are equal where other bridges may get the better slot: then the slot that is granted now
 * is better than one that is only foreseen. For a bridge alone the forecast is exact enough to be followed.
 */
const EQUAL_WHERE_SHARED = 1.1;
/** Sums of the same numbers in another order differ by less. */
const EQUAL = 1 + 1e-9;
/** For a single interactive job: how much later than the best still counts as equal. */
const NEAR_MS = 250;
const NEAR_SHARE = 0.05;

/**
 * Take which job for this grant, or decline (tail rule). Jobs are put, in order, on the slot where each completes first;
 * the first that lands on the granted slot is taken. Two exceptions: a job declined for too long is taken, and a single
 * interactive job takes a ready slot that is nearly the best.
 */
export function answerGrant(grant: PlanGrant, jobs: readonly PlanJob[], slots: readonly PlanSlot[]): PlanAnswer {
  const granted = slots.findIndex((slot) => slot.host === grant.host && slot.slotId === grant.slotId);
  const here = slots[granted];
  if (here === undefined) return { kind: 'decline', why: 'the slot is unknown' };
  const fits = (job: PlanJob): boolean => job.class === grant.class && mayGo(job.rules, grant.host);

  const considered = withinHorizon(jobs, { fits, horizon: Math.max(HORIZON_JOBS, 4 * slots.length) });
  const patient = considered.find(
    (job) => job.declinedForMs > PATIENCE_MS && fits(job) && job.declinedForMs > serviceMs(here.service, job.units),
  );
  if (patient !== undefined) return take(patient, here);

  const plan = new Plan(slots);
  const isAlone = jobs.length === 1 && grant.class === 'interactive';
  let elsewhere: string | undefined;
  for (const job of considered) {
    const best = plan.best(job, granted);
    if (best === -1) continue;
    if (best === granted && fits(job)) return take(job, here);
    if (isAlone && fits(job) && isNearlyBest(here, { best: slots[best], units: job.units })) return take(job, here);
    if (elsewhere === undefined && fits(job)) elsewhere = slots[best]?.host;
    plan.put(job, best);
  }
  return {
    kind: 'decline',
    why: elsewhere === undefined ? 'nothing waits for it' : `${elsewhere} ends sooner`,
  };
}

/** The first jobs that may come here, and the first that may not: however many those are, they hide none that may. */
function withinHorizon(
  jobs: readonly PlanJob[],
  { fits, horizon }: { fits: (job: PlanJob) => boolean; horizon: number },
): readonly PlanJob[] {
  if (jobs.length <= horizon) return jobs;
  const left = { fitting: horizon, others: horizon };
  const found: PlanJob[] = [];
  for (const job of jobs) {
    const kind = fits(job) ? 'fitting' : 'others';
    if (left[kind] > 0) found.push(job);
    left[kind] -= 1;
    if (left.fitting <= 0) break;
  }
  return found;
}

/** When a job would be done, on which slot, and for how long it would run there. */
export type Planned = { endMs: number; runMs: number; host: string };

/** Where and when each job is done by the same plan; undefined for one that has nowhere to go. */
export function forecastPlan(jobs: readonly PlanJob[], slots: readonly PlanSlot[]): (Planned | undefined)[] {
  const plan = new Plan(slots);
  return jobs.map((job) => {
    const best = plan.best(job, -1);
    const slot = slots[best];
    if (slot === undefined) return undefined;
    return { endMs: plan.put(job, best), runMs: serviceMs(slot.service, job.units), host: slot.host };
  });
}

/** Time until each job is done by the same plan. */
export function forecastEnds(jobs: readonly PlanJob[], slots: readonly PlanSlot[]): (number | undefined)[] {
  return forecastPlan(jobs, slots).map((planned) => planned?.endMs);
}

/** Interactive jobs first; then batch after batch as they were started, each in the order it has. */
export function planOrder<T>(batches: readonly { class: JobClass; jobs: readonly T[] }[]): T[] {
  const of = (wanted: JobClass): T[] => batches.flatMap((batch) => (batch.class === wanted ? batch.jobs : []));
  return [...of('interactive'), ...of('batch')];
}

export function mayGo(rules: PlanRules, host: string): boolean {
  return (rules.only === undefined || rules.only === host) && !rules.avoid.includes(host);
}

/** The slots' occupancy while jobs are put on them. Plain arrays of numbers: this runs at each grant, jobs x slots times. */
class Plan {
  readonly #slots: readonly PlanSlot[];
  readonly #freeMs: Float64Array;
  /** What every job there takes beside its work: the fixed part of the run, and the transfer. */
  readonly #extraMs: Float64Array;
  readonly #unitMs: Float64Array;
  readonly #allowed = new Map<PlanRules, Int32Array>();
  /** Those of the job before, which is nearly always of the same batch. */
  #last: { rules: PlanRules; allowed: Int32Array } | undefined;

  constructor(slots: readonly PlanSlot[]) {
    this.#slots = slots;
    this.#freeMs = Float64Array.from(slots, (slot) => slot.startsInMs);
    this.#extraMs = Float64Array.from(slots, (slot) => slot.service.fixedMs + slot.transferMs);
    this.#unitMs = Float64Array.from(slots, (slot) => slot.service.unitMs);
  }

  /** Index of the slot where the job completes first; `preferred` wins among equals; -1 where it may go nowhere. */
  best({ rules, units }: PlanJob, preferred: number): number {
    const [freeMs, extraMs, unitMs] = [this.#freeMs, this.#extraMs, this.#unitMs];
    const allowed = this.#allowedBy(rules, units);
    let best = -1;
    let bestMs = Number.POSITIVE_INFINITY;
    let preferredMs = Number.POSITIVE_INFINITY;
    // By index: an iterator costs three times as much here.
    for (let at = 0; at < allowed.length; at += 1) {
      const index = allowed[at] as number; // within the array by construction
      const ms = (freeMs[index] as number) + (extraMs[index] as number) + (unitMs[index] as number) * units;
      if (index === preferred) preferredMs = ms;
      if (ms < bestMs) {
        best = index;
        bestMs = ms;
      }
    }
    if (best === -1) return best;
    const equal = (this.#slots[best]?.crowding ?? 1) > 1 ? EQUAL_WHERE_SHARED : EQUAL;
    return preferredMs <= bestMs * equal ? preferred : best;
  }

  /** Returns when the job would be complete. */
  put(job: PlanJob, index: number): number {
    const completeMs = this.#completionMs(index, job.units);
    const { transferMs = 0, crowding = 1 } = this.#slots[index] ?? {};
    const freeMs = this.#freeMs[index] ?? 0;
    this.#freeMs[index] = freeMs + (completeMs - transferMs - freeMs) * crowding;
    return completeMs;
  }

  #completionMs(index: number, units: number): number {
    return (this.#freeMs[index] ?? 0) + (this.#extraMs[index] ?? 0) + (this.#unitMs[index] ?? 0) * units;
  }

  #allowedBy(rules: PlanRules, units: number): Int32Array {
    if (this.#last?.rules === rules) return this.#last.allowed;
    const allowed = this.#allowed.get(rules) ?? this.#allow(rules, units);
    this.#last = { rules, allowed };
    return allowed;
  }

  /** Slots the rules allow; under max_concurrent only as many, those that would complete its first job first. */
  #allow(rules: PlanRules, units: number): Int32Array {
    const indexes = this.#slots.flatMap((slot, index) => (mayGo(rules, slot.host) ? [index] : []));
    if (rules.spread !== undefined && rules.spread < indexes.length) {
      indexes.sort((a, b) => this.#completionMs(a, units) - this.#completionMs(b, units));
      indexes.length = rules.spread;
    }
    const allowed = Int32Array.from(indexes);
    this.#allowed.set(rules, allowed);
    return allowed;
  }
}

function take(job: PlanJob, here: PlanSlot): PlanAnswer {
  return {
    kind: 'take',
    jobId: job.jobId,
    endsInMs: here.startsInMs + serviceMs(here.service, job.units) + here.transferMs,
  };
}

function isNearlyBest(here: PlanSlot, o: { best: PlanSlot | undefined; units: number }): boolean {
  if (o.best === undefined || (!here.isReady && o.best.isReady)) return false;
  const hereMs = here.startsInMs + serviceMs(here.service, o.units) + here.transferMs;
  const bestMs = o.best.startsInMs + serviceMs(o.best.service, o.units) + o.best.transferMs;
  return hereMs <= bestMs + Math.max(NEAR_MS, bestMs * NEAR_SHARE);
}

function serviceMs(service: ServiceTime, units: number): number {
  return service.fixedMs + service.unitMs * units;
}
