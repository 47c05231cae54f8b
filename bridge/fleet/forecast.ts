import type { JobClass, JobRequest } from '../../shared/job.ts';
import { workUnits } from '../../shared/service-time.ts';
import { forecastPlan } from './batch-plan.ts';
import type { Planned, PlanRules } from './batch-plan.ts';
import { capableHost, sizeOf } from './host-forecast.ts';
import { keyOf } from './hopeless.ts';
import type { HostView } from './host-view.ts';
import type { Holding } from './job-record.ts';
import { expectedFinishes } from './placement.ts';
import type { OwnWork, Placement } from './placement.ts';
import { planSlots } from './plan-slots.ts';

/** What is expected of jobs that nobody has asked for yet: each job's end, and each host for the first of them. */
export type Forecast = { ends: (Planned | undefined)[]; placement: Placement };

type Present = { class: JobClass; hosts: readonly HostView[]; holdings: readonly Holding[]; nowMs: number };

const ANYWHERE: PlanRules = { only: undefined, avoid: [], spread: undefined };

/** A job that waits, or would, and where it may go. */
export type WantedJob = { request: JobRequest; rules: PlanRules };

/**
 * When and where each of these jobs would be done by the plan, taken in their order; undefined for one that has
 * nowhere to go. Model by model: what one model waits for does not hold another up, as far as can be foreseen.
 */
export function plannedEnds(wanted: readonly WantedJob[], o: Present): (Planned | undefined)[] {
  const ends = new Array<Planned | undefined>(wanted.length).fill(undefined);
  for (const model of new Set(wanted.map(({ request }) => request.model))) {
    const at = wanted.flatMap(({ request }, index) => (request.model === model ? [index] : []));
    const slots = planSlots({ model, class: o.class }, o);
    const jobs = at.flatMap((index) => wanted[index] ?? []).map((job) => planJob(job, o.class));
    for (const [order, end] of forecastPlan(jobs, slots).entries()) ends[at[order] ?? -1] = end;
  }
  return ends;
}

/** The same for jobs that would wait from now on, behind those `before` them. */
export function forecastNew(
  requests: readonly JobRequest[],
  {
    before,
    own,
    maxConcurrent,
    ...present
  }: Present & { before: readonly WantedJob[]; own: OwnWork; maxConcurrent?: number | undefined },
): Forecast {
  const asked = { ...ANYWHERE, spread: maxConcurrent };
  const known = new Map<string, PlanRules>(); // jobs that fit on the same hosts share their rules
  const wanted = requests.map((request) => {
    const rules = known.get(keyOf(request)) ?? rulesOnHosts(request, { ...present, rules: asked });
    known.set(keyOf(request), rules);
    return { request, rules };
  });
  const [first] = requests;
  return {
    ends: plannedEnds([...before, ...wanted], present).slice(before.length),
    placement: first === undefined ? { ranked: [], refused: [] } : expectedFinishes(first, { ...present, own }),
  };
}

/** Where a job may go: not to hosts that can never run one of its size. */
export function rulesOnHosts(
  request: JobRequest,
  o: { rules: PlanRules; class: JobClass; hosts: readonly HostView[] },
): PlanRules {
  const want = { model: request.model, kind: request.kind, class: o.class, size: sizeOf(request) };
  const never = o.hosts.flatMap((host) => {
    const found = capableHost(host, want);
    return 'reason' in found && found.isForever ? [host.name] : [];
  });
  return never.length === 0 ? o.rules : { ...o.rules, avoid: never };
}

function planJob({ request, rules }: WantedJob, jobClass: JobClass) {
  return { jobId: '', class: jobClass, units: workUnits(request), rules, declinedForMs: 0 };
}
