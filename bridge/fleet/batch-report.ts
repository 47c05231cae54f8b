import { performance } from 'node:perf_hooks';
import type { ServiceTime } from '../../shared/service-time.ts';
import { workUnits } from '../../shared/service-time.ts';
import type { BatchBook } from './batch-book.ts';
import { forecastMs } from './batch-plan.ts';
import type { PlanJob } from './batch-plan.ts';
import type { QualityHost } from './batch-quality.ts';
import { capableHost, serviceOn } from './host-forecast.ts';
import type { JobRecord } from './job-record.ts';
import { isInFlight } from './job-state.ts';
import { expectedFinishes, refusalText } from './placement.ts';
import { planSlots } from './plan-slots.ts';

/** An engine that was told to cancel is shown as busy at least this long, until its host's status tells. */
const CANCEL_SEEN_MS = 1_000;

/** Why each waiting job waits, one sentence for all jobs of a model; undefined for jobs that do not wait. */
export function explainer(book: BatchBook): (job: JobRecord) => string | undefined {
  const known = new Map<string, string>();
  return (job) => {
    if (job.state.kind !== 'waiting') return undefined;
    if (book.pausedBy !== undefined) return `paused: ${book.pausedBy.message}`;
    const { model } = job.request;
    const sentence = known.get(model) ?? whyWaiting(book, job);
    known.set(model, sentence);
    return job.progress.detail === '' ? sentence : `${job.progress.detail} ${sentence}`;
  };
}

/** Expected time until the last job is done; null where a host or its jobs are out of reach. */
export function etaMs(book: BatchBook): number | null {
  const nowMs = performance.now();
  const hosts = book.side.hosts();
  let lastMs = 0;
  for (const { holding, state } of book.jobs) {
    if (state.kind === 'unsure') return null;
    if (holding !== undefined) lastMs = Math.max(lastMs, holding.endsAtMs - nowMs);
  }
  const waiting = book.inOrder.filter(({ state }) => state.kind === 'waiting');
  for (const model of new Set(waiting.map(({ request }) => request.model))) {
    const want = { model, class: book.header.class };
    const slots = planSlots(want, { hosts, holdings: book.side.holdings(), nowMs });
    const jobs = waiting.filter(({ request }) => request.model === model).map((job) => planJob(book, job));
    const ms = forecastMs(jobs, slots);
    if (ms === undefined) return null;
    lastMs = Math.max(lastMs, ms);
  }
  return Math.round(lastMs);
}

/** The host whose engine still works on a cancelled job, because it cannot be interrupted. */
export function stillRunningOn(book: BatchBook, job: JobRecord): string | undefined {
  if (job.state.kind !== 'cancelled' || job.state.ranAt === undefined) return undefined;
  const { host } = job.state.ranAt;
  if (book.inMs() - (job.endedInMs ?? 0) < CANCEL_SEEN_MS) return host;
  const view = book.side.hosts().find(({ name }) => name === host);
  const model = view?.snapshot?.models.find((one) => one.model === job.request.model);
  const slots = model?.slots.filter(({ slotId }) => job.slotId === undefined || slotId === job.slotId) ?? [];
  return slots.some(({ isCancelled }) => isCancelled) ? host : undefined;
}

/** The hosts a batch is measured against; none when it mixes models, which cannot be compared. */
export function qualityHosts(book: BatchBook): QualityHost[] {
  const models = [...new Set(book.jobs.map(({ request }) => request.model))];
  const [model] = models;
  if (model === undefined || models.length > 1) return [];
  const hosts = book.side.hosts();
  return hosts.flatMap((host) => {
    const capable = capableHost(host, { model, class: book.header.class, kind: book.jobs[0]?.request.kind });
    const service = serviceOn(host, { model, hosts });
    if ('reason' in capable || service === undefined) return [];
    if (book.rules.only !== undefined && book.rules.only !== host.name) return [];
    return [{ host: host.name, slots: capable.slots.length, service }];
  });
}

export function serviceOnHost(book: BatchBook, o: { host: string; model: string }): ServiceTime | undefined {
  const hosts = book.side.hosts();
  const view = hosts.find(({ name }) => name === o.host);
  return view && serviceOn(view, { model: o.model, hosts });
}

function whyWaiting(book: BatchBook, job: JobRecord): string {
  const { maxConcurrent } = book.header;
  const placement = expectedFinishes(job.request, {
    hosts: book.side.hosts(),
    class: book.header.class,
    only: book.rules.only,
  });
  const [best] = placement.ranked;
  if (best === undefined) return refusalText(job.request.model, placement.refused);
  if (maxConcurrent !== null && book.jobs.filter(({ state }) => isInFlight(state)).length >= maxConcurrent) {
    return `waiting: ${maxConcurrent} at a time were asked for`;
  }
  const refusal = book.side.heldOff(best.host);
  if (refusal !== undefined) return `waiting: ${best.host} refused the work for now: ${refusal.message}`;
  return `waiting for a slot, most likely on ${best.host}`;
}

function planJob(book: BatchBook, job: JobRecord): PlanJob {
  return {
    jobId: job.jobId,
    class: book.header.class,
    units: workUnits(job.request),
    rules: book.rules,
    declinedForMs: 0,
  };
}
