import type { HostSnapshot } from '../../shared/host-snapshot.ts';
import type { JobClass, ModelId } from '../../shared/job.ts';
import type { ServiceTime } from '../../shared/service-time.ts';
import type { PlanSlot } from './batch-plan.ts';
import { capableHost, serviceOn, slotFreeMs, swapOf } from './host-forecast.ts';
import type { HostView } from './host-view.ts';
import { remainingMs } from './job-record.ts';
import type { Holding } from './job-record.ts';

/** This bridge's waiting jobs of one model and class. */
export type OwnWaiting = { count: number; units: number };

/**
 * Every slot that could take a job of this model, with the time until it could start one: what its host reports, or this
 * bridge's own job there if that ends later, then load or wake. The granted slot starts when its grant says.
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
  for (const host of o.hosts) {
    const capable = capableHost(host, { ...want, kind: undefined });
    if ('reason' in capable) continue;
    const { model, snapshot } = capable;
    const service = serviceOn(host, { model: want.model, hosts: o.hosts }) ?? model.service;
    const swap = swapOf(snapshot, model);
    const crowding = o.waiting === undefined ? 1 : crowdingOn(snapshot, { ...want, service, waiting: o.waiting });
    for (const slot of capable.slots) {
      if (host.name === o.granted?.host && slot.slotId === o.granted.slotId) continue;
      const ownMs = o.holdings
        .filter((one) => one.host === host.name && one.slotId === slot.slotId)
        .map((one) => remainingMs(one, o.nowMs));
      // Its time to idle has the load in it, but not while only its weights are on their way.
      const isUnderWay = model.state === 'loading' && slot.phase !== 'idle' && model.download === undefined;
      slots.push({
        host: host.name,
        slotId: slot.slotId,
        startsInMs: Math.max(slotFreeMs(slot, capable), ...ownMs) + (isUnderWay ? 0 : swap.swapMs + swap.evictMs),
        service,
        transferMs: host.transferMs,
        isReady: swap.kind === 'none',
        crowding,
      });
    }
  }
  const granted = o.granted && grantedSlot(o.granted, { model: want.model, hosts: o.hosts });
  return granted === undefined ? slots : [granted, ...slots];
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
  o: { model: ModelId; class: JobClass; service: ServiceTime; waiting: OwnWaiting },
): number {
  const line = offered.find((one) => one.model === o.model && one.class === o.class);
  const ownMs = o.waiting.count * o.service.fixedMs + o.waiting.units * o.service.unitMs;
  if (line?.sessions === undefined || ownMs <= 0) return 1;
  return Math.max(1, Math.min(line.sessions, line.workMs / ownMs));
}
