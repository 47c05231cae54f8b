import type { ModelId } from '../../shared/job.ts';
import type { JobClass } from '../../shared/job.ts';
import type { PlanSlot } from './batch-plan.ts';
import { capableHost, serviceOn, slotFreeMs, swapOf } from './host-forecast.ts';
import type { HostView } from './host-view.ts';
import { remainingMs } from './job-record.ts';
import type { Holding } from './job-record.ts';

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
  },
): PlanSlot[] {
  const slots: PlanSlot[] = [];
  for (const host of o.hosts) {
    const capable = capableHost(host, { ...want, kind: undefined });
    if ('reason' in capable) continue;
    const { model, snapshot } = capable;
    const service = serviceOn(host, { model: want.model, hosts: o.hosts }) ?? model.service;
    const swap = swapOf(snapshot, model);
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
  return { ...grant, service, transferMs: host.transferMs, isReady: status?.state === 'ready' };
}
