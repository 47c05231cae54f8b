import type { HostSnapshot, ModelStatus } from '../../shared/host-snapshot.ts';
import type { JobClass, ModelId } from '../../shared/job.ts';
import type { ServiceTime } from '../../shared/service-time.ts';
import type { PlanSlot } from './batch-plan.ts';
import { capableHost, serviceOn, slotFreeMs, swapOf } from './host-forecast.ts';
import type { Swap } from './host-forecast.ts';
import type { HostView } from './host-view.ts';
import { remainingMs } from './job-record.ts';
import type { Holding } from './job-record.ts';

/** This bridge's waiting jobs of one model and class. */
export type OwnWaiting = { count: number; units: number };

/**
 * Every slot that could take a job of this model, with the time until it could start one: what its host reports, or this
 * bridge's own job there if that ends later, then load or wake. The granted slot starts when its grant says. Where the
 * model would have to push out others that have work, its turn comes nobody knows when: such slots count only when there
 * is nothing else.
 */
export function planSlots(
  want: { model: ModelId; class: JobClass },
  o: {
    hosts: readonly HostView[];
    holdings: readonly Holding[];
    nowMs: number;
    granted?: { host: string; slotId: string; startsInMs: number };
    /** What of this bridge waits for the model; left out where others on the hosts do not matter. */
    waiting?: OwnWaiting;
  },
): PlanSlot[] {
  const slots: PlanSlot[] = [];
  const contested: PlanSlot[] = [];
  const own = byHost(o.holdings);
  const asked = { ...want, kind: undefined };
  for (const host of o.hosts) {
    const capable = capableHost(host, asked);
    if ('reason' in capable) continue;
    const { model, snapshot } = capable;
    const service = serviceOn(host, { model: want.model, hosts: o.hosts }) ?? model.service;
    const swap = swapOf(snapshot, model);
    const crowding = o.waiting === undefined ? 1 : crowdingOn(snapshot, { want, service, waiting: o.waiting });
    for (const slot of capable.slots) {
      if (host.name === o.granted?.host && slot.slotId === o.granted.slotId) continue;
      let freeMs = slotFreeMs(slot, capable);
      for (const one of own.get(host.name) ?? []) {
        if (one.slotId === slot.slotId) freeMs = Math.max(freeMs, remainingMs(one, o.nowMs));
      }
      // Its time to idle has the load in it, but not while only its weights are on their way.
      const isUnderWay = model.state === 'loading' && slot.phase !== 'idle' && model.download === undefined;
      (isContested(snapshot, { model, swap }) ? contested : slots).push({
        host: host.name,
        slotId: slot.slotId,
        startsInMs: freeMs + (isUnderWay ? 0 : swap.swapMs + swap.evictMs),
        service,
        transferMs: host.transferMs,
        isReady: swap.kind === 'none',
        crowding,
      });
    }
  }
  const granted = o.granted && grantedSlot(o.granted, { model: want.model, hosts: o.hosts });
  if (granted !== undefined) return [granted, ...slots];
  return slots.length > 0 ? slots : contested;
}

/** It fits only if others go, and all that could go are wanted themselves. */
function isContested({ models, offered }: HostSnapshot, { model, swap }: { model: ModelStatus; swap: Swap }): boolean {
  if (swap.evictMs === 0) return false;
  const residents = models.filter((one) => one !== model && one.heldMiB > 0 && !one.isPinned);
  return residents.every((one) => one.state === 'ready' && offered.some((work) => work.model === one.model));
}

/** The granted slot needs no opinion of the snapshot: its agent has just said that it is free. */
function grantedSlot(
  grant: { host: string; slotId: string; startsInMs: number },
  { model, hosts }: { model: ModelId; hosts: readonly HostView[] },
): PlanSlot | undefined {
  const host = hosts.find(({ name }) => name === grant.host);
  const service = host && serviceOn(host, { model, hosts });
  if (host === undefined || service === undefined) return undefined;
  const status = host.snapshot?.models.find((one) => one.model === model);
  return { ...grant, service, transferMs: host.transferMs, isReady: status?.state === 'ready', crowding: 1 };
}

/**
 * How many times as long this bridge's waiting work takes there because hosts serve bridges in turn: all work that is
 * offered over its own, and never more than there are bridges, as one with a mountain of work gets no more than its turn.
 */
function crowdingOn(
  { offered }: HostSnapshot,
  o: { want: { model: ModelId; class: JobClass }; service: ServiceTime; waiting: OwnWaiting },
): number {
  const line = offered.find((one) => one.model === o.want.model && one.class === o.want.class);
  const ownMs = o.waiting.count * o.service.fixedMs + o.waiting.units * o.service.unitMs;
  if (line?.sessions === undefined || ownMs <= 0) return 1;
  return Math.max(1, Math.min(line.sessions, line.workMs / ownMs));
}

function byHost(holdings: readonly Holding[]): Map<string, Holding[]> {
  const found = new Map<string, Holding[]>();
  for (const one of holdings) {
    const here = found.get(one.host);
    if (here === undefined) found.set(one.host, [one]);
    else here.push(one);
  }
  return found;
}
