import { performance } from 'node:perf_hooks';
import type { ServiceTime } from '../../shared/service-time.ts';
import type { BatchBook, PlannedJob } from './batch-book.ts';
import type { QualityHost } from './batch-quality.ts';
import { plannedEnds } from './forecast.ts';
import { capableHost, serviceOn } from './host-forecast.ts';
import type { JobRecord } from './job-record.ts';
import { isFetching, isOver } from './job-state.ts';
import { expectedFinishes, refusalText } from './placement.ts';

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

/** When a job is expected to be done, and how many of this bridge's jobs come before it. Null: cannot be said. */
export type Outlook = { etaMs: number | null; ahead: number | null };

/** For each job that is not over; nothing of it is known while the batch is paused. */
export function outlooks(book: BatchBook): Map<JobRecord, Outlook> {
  const found = new Map<JobRecord, Outlook>();
  const nowMs = performance.now();
  const waiting: JobRecord[] = [];
  for (const job of book.table.inOrder) {
    const { state, holding } = job;
    if (isOver(state)) continue;
    if (state.kind === 'waiting') waiting.push(job);
    else if (isFetching(state)) found.set(job, { etaMs: book.pausedBy === undefined ? 0 : null, ahead: null });
    else found.set(job, { etaMs: holding === undefined ? null : Math.max(0, holding.endsAtMs - nowMs), ahead: null });
  }
  const before = waiting.length === 0 ? [] : book.side.waitingBefore(book.header.batchId);
  const ends = book.pausedBy === undefined ? waitingEnds(book, { before, waiting, nowMs }) : undefined;
  for (const [index, job] of waiting.entries()) {
    found.set(job, { etaMs: ends?.get(job) ?? null, ahead: before.length + index });
  }
  return found;
}

/** Expected time until the last job is done; null where one of them cannot be foreseen. */
export function lastEndMs(found: ReadonlyMap<JobRecord, Outlook>): number | null {
  let lastMs = 0;
  for (const { etaMs } of found.values()) {
    if (etaMs === null) return null;
    lastMs = Math.max(lastMs, etaMs);
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
    if ('reason' in capable || capable.model.download !== undefined || service === undefined) return [];
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
  if (maxConcurrent !== null && book.table.inFlight.size >= maxConcurrent) {
    return `waiting: ${maxConcurrent} at a time were asked for`;
  }
  const refusal = book.side.heldOff(best.host);
  if (refusal !== undefined) return `waiting: ${best.host} refused the work for now: ${refusal.message}`;
  const view = book.side.hosts().find(({ name }) => name === best.host);
  const model = view?.snapshot?.models.find((one) => one.model === job.request.model);
  if (model?.download !== undefined) return `waiting for ${best.host}: ${model.detail ?? 'downloading the weights'}`;
  return `waiting for a slot, most likely on ${best.host}`;
}

function waitingEnds(
  book: BatchBook,
  { before, waiting, nowMs }: { before: readonly PlannedJob[]; waiting: readonly JobRecord[]; nowMs: number },
): Map<JobRecord, number> {
  const jobs = [...before, ...waiting.map((job) => ({ job, rules: book.rules }))];
  const wanted = jobs.map(({ job, rules }) => ({ request: job.request, rules }));
  const ends = plannedEnds(wanted, {
    class: book.header.class,
    hosts: book.side.hosts(),
    holdings: book.side.holdings(),
    nowMs,
  });
  return new Map(
    jobs.flatMap(({ job }, index) => {
      const end = ends[index];
      return end === undefined ? [] : [[job, end.endMs] as const];
    }),
  );
}
