import type { JobClass, JobRequest, ModelId } from '../../shared/job.ts';
import { estimateMs } from '../../shared/service-time.ts';
import { capableHost, freeVramMiB, serviceOn, sizeOf, slotFreeMs, swapOf } from './host-forecast.ts';
import type { Capable, Refusal, Swap } from './host-forecast.ts';
import type { HostView } from './host-view.ts';

/** When a host is expected to finish a job, and of what that is made up. */
export type Finish = {
  host: string;
  finishMs: number;
  freeMs: number;
  ownMs: number;
  swap: Swap;
  runMs: number;
  transferMs: number;
  isResident: boolean;
  freeMiB: number;
  /** False where the run time is a guess because the host has run nothing of this model yet. */
  isMeasured: boolean;
};

/** `ranked` is best first. */
export type Placement = { ranked: Finish[]; refused: Refusal[] };

/** This bridge's jobs on each host that its status does not show yet, as work in ms. */
export type OwnWork = ReadonlyMap<string, number>;

/** Finishes this much later, or this share, count as equal: then a resident model and free VRAM decide. */
const EQUAL_MS = 250;
const EQUAL_SHARE = 0.05;

/**
 * Expected finish of one job on each host: its slot is free, this bridge's own work there, room on the GPU, load or wake
 * in the present state, the learned service time, the transfer. Hosts that cannot take it carry the reason.
 */
export function expectedFinishes(
  request: JobRequest,
  o: { hosts: readonly HostView[]; own?: OwnWork; class?: JobClass; only?: string | undefined },
): Placement {
  const ranked: Finish[] = [];
  const refused: Refusal[] = [];
  for (const host of o.hosts) {
    if (o.only !== undefined && host.name !== o.only) continue;
    const { model, kind } = request;
    const capable = capableHost(host, { model, class: o.class ?? 'interactive', kind, size: sizeOf(request) });
    if ('reason' in capable) refused.push(capable);
    else ranked.push(finishOn(capable, { request, hosts: o.hosts, ownMs: o.own?.get(host.name) ?? 0 }));
  }
  ranked.sort(byFinish(Math.min(...ranked.map(({ finishMs }) => finishMs))));
  return { ranked, refused };
}

/** One sentence that lists what each host says, for NO_HOST and for jobs that wait. */
export function refusalText(model: ModelId, refused: readonly Refusal[]): string {
  if (refused.length === 0) return `No host is configured, so nothing can run ${model}.`;
  // First, because a line on a terminal is cut at its end.
  const mend = refused.find((one) => one.mend !== undefined)?.mend;
  return `${mend === undefined ? '' : `${mend} `}No host can run ${model} now: ${refused.map(({ host, reason }) => `${host}: ${stripStop(reason)}`).join('; ')}.`;
}

function finishOn(
  capable: Capable,
  { request, hosts, ownMs }: { request: JobRequest; hosts: readonly HostView[]; ownMs: number },
): Finish {
  const { host, snapshot, model } = capable;
  const freeMs = Math.min(...capable.slots.map((slot) => slotFreeMs(slot, capable)));
  const swap = swapOf(snapshot, model);
  const service = serviceOn(host, { model: request.model, hosts }) ?? model.service;
  const runMs = estimateMs(service, request);
  const { transferMs } = host;
  return {
    host: host.name,
    finishMs: freeMs + ownMs + swap.evictMs + swap.swapMs + runMs + transferMs,
    freeMs,
    ownMs,
    swap,
    runMs,
    transferMs,
    isResident: swap.kind === 'none',
    freeMiB: freeVramMiB(snapshot),
    isMeasured: service.samples > 0,
  };
}

/** Those within the tolerance of the best come first, by residence and free VRAM; the others by time. */
function byFinish(bestMs: number): (a: Finish, b: Finish) => number {
  const limitMs = bestMs + Math.max(EQUAL_MS, bestMs * EQUAL_SHARE);
  return (a, b) => {
    const [isNearA, isNearB] = [a.finishMs <= limitMs, b.finishMs <= limitMs];
    if (isNearA !== isNearB) return isNearA ? -1 : 1;
    if (!isNearA) return a.finishMs - b.finishMs || compare(a.host, b.host);
    if (a.isResident !== b.isResident) return a.isResident ? -1 : 1;
    return b.freeMiB - a.freeMiB || a.finishMs - b.finishMs || compare(a.host, b.host);
  };
}

/** A reason as a part of a longer sentence. */
export function stripStop(text: string): string {
  return text.replace(/\.$/, '');
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
