import type { JobClass, JobRequest } from '../../shared/job.ts';
import { megapixelsOf } from '../../shared/job.ts';
import type { OfferLine } from '../../shared/protocol.ts';
import { workUnits } from '../../shared/service-time.ts';
import type { ServiceTime } from '../../shared/service-time.ts';
import type { PlanRules } from './batch-plan.ts';
import { serviceOn } from './host-forecast.ts';
import type { HostView } from './host-view.ts';

export type OfferedJob = { class: JobClass; request: JobRequest; rules: PlanRules };

/** Waiting jobs that no host can tell apart, added up; with 10,000 jobs and 50 hosts each job is looked at once. */
export type OfferGroup = {
  model: string;
  class: JobClass;
  rules: PlanRules;
  count: number;
  units: number;
  longestUnits: number;
  maxMegapixels: number;
};

/** 28 steps at one megapixel. */
const USUAL_UNITS = 28;
const SAME_SPEED = 1.3;
/** The longest offer a frame may carry. */
const MAX_LINES = 200;

export function groupWaiting(waiting: readonly OfferedJob[]): OfferGroup[] {
  const groups = new Map<PlanRules, Map<string, OfferGroup>>();
  for (const { request, class: jobClass, rules } of waiting) {
    const alike = groups.get(rules) ?? new Map<string, OfferGroup>();
    groups.set(rules, alike);
    const { model } = request;
    const units = workUnits(request);
    const key = keyOf({ model, class: jobClass });
    const group = alike.get(key);
    alike.set(key, {
      model,
      class: jobClass,
      rules,
      count: (group?.count ?? 0) + 1,
      units: (group?.units ?? 0) + units,
      longestUnits: Math.max(group?.longestUnits ?? 0, units),
      maxMegapixels: Math.max(group?.maxMegapixels ?? 0, megapixelsOf(request)),
    });
  }
  return [...groups.values()].flatMap((alike) => [...alike.values()]);
}

/**
 * Each host's place among those that have the model, slowest first. Bridges that share hosts take turns on each of them,
 * and the place says who begins: so of two hosts of one speed each serves another bridge first. Learned times vary, so
 * hosts of about one speed are in the order of their agents, which is the same for every bridge. What is one speed is
 * said by the slowest of them: between fixed limits two equal hosts that learn could lie now on one side, now on two.
 */
export function ranksOf(model: string, hosts: readonly HostView[]): Map<string, number> {
  const placed = hosts.flatMap((host) => {
    const service = serviceOn(host, { model, hosts });
    if (service === undefined || host.link.kind !== 'up') return [];
    const usualMs = service.fixedMs + service.unitMs * USUAL_UNITS;
    return [{ host, usualMs, agent: host.snapshot?.agentId ?? host.name, slowestMs: usualMs }];
  });
  placed.sort((a, b) => b.usualMs - a.usualMs);
  for (const [at, each] of placed.entries()) {
    const { slowestMs } = placed[at - 1] ?? each;
    if (slowestMs <= each.usualMs * SAME_SPEED) each.slowestMs = slowestMs;
  }
  placed.sort((a, b) => b.slowestMs - a.slowestMs || (a.agent < b.agent ? -1 : 1));
  return new Map(placed.map(({ host }, rank) => [host.name, rank]));
}

/**
 * The offer for one host: a line for each model and class with waiting work. `groups` is the work this host may get,
 * `inFlight` all of this bridge's jobs on all hosts; a model that the host has not is left out.
 */
export function offerLines(o: {
  groups: readonly OfferGroup[];
  inFlight: readonly { class: JobClass; model: string }[];
  serviceOf: (model: string) => ServiceTime | undefined;
  rankOf: (model: string) => number;
}): OfferLine[] {
  const lines = new Map<string, OfferLine>();
  for (const group of o.groups) {
    const service = o.serviceOf(group.model);
    if (service === undefined) continue;
    const line = lines.get(keyOf(group));
    lines.set(keyOf(group), {
      model: group.model,
      class: group.class,
      count: (line?.count ?? 0) + group.count,
      workMs: Math.round((line?.workMs ?? 0) + service.fixedMs * group.count + service.unitMs * group.units),
      longestMs: Math.round(Math.max(line?.longestMs ?? 0, service.fixedMs + service.unitMs * group.longestUnits)),
      maxMegapixels: Math.max(line?.maxMegapixels ?? 0, group.maxMegapixels),
      inFlight: 0,
      rank: o.rankOf(group.model),
    });
  }
  for (const job of o.inFlight) {
    const line = lines.get(keyOf(job));
    if (line !== undefined) line.inFlight += 1;
  }
  return [...lines.values()].slice(0, MAX_LINES);
}

/** True when the two offers have lines for different models or classes: then an agent must know at once. */
export function isOtherOffer(a: readonly OfferLine[], b: readonly OfferLine[]): boolean {
  const keys = new Set(b.map(keyOf));
  return a.length !== b.length || a.some((line) => !keys.has(keyOf(line)));
}

function keyOf(o: { class: JobClass; model: string }): string {
  return `${o.class} ${o.model}`;
}
