import { z } from 'zod';
import { readCheckedLine } from '../../shared/checked-line.ts';
import { JobClass, JobError, JobRequest, JobResult, Uuid } from '../../shared/job.ts';
import type { BatchSequence } from './batch-order.ts';
import type { BatchState } from './batch-view.ts';
import { newRecord } from './job-record.ts';
import type { Attempt, JobRecord } from './job-record.ts';
import { isOver } from './job-state.ts';
import type { Place } from './job-state.ts';

const at = { jobId: Uuid, host: z.string(), attempt: z.int() };
const Quality = z.object({
  makespanMs: z.number(),
  lowerBoundMs: z.number(),
  ratio: z.number(),
  jobsByHost: z.record(z.string(), z.number()),
  /** Absent in manifests of older releases. */
  swaps: z.int().optional(),
  reRuns: z.int().optional(),
});

/** Every line of a manifest. Null stands for what was not asked. `phase` lines only inform and are not synced. */
export const ManifestLine = z.discriminatedUnion('type', [
  z.object({
    type: z.literal('batch'),
    version: z.literal(1),
    batchId: Uuid,
    kind: z.enum(['generate', 'edit']),
    class: JobClass,
    order: z.enum(['longest-first', 'fifo']),
    maxConcurrent: z.int().nullable(),
    host: z.string().nullable(),
    client: z.string(),
    createdAt: z.string(),
    total: z.int(),
  }),
  z.object({
    type: z.literal('job'),
    jobId: Uuid,
    index: z.int(),
    request: JobRequest,
    inputFiles: z.array(z.string()),
    directory: z.string(),
    name: z.string().nullable(),
  }),
  z.object({
    type: z.literal('sent'),
    ...at,
    sentInMs: z.number(),
    routing: z.string(),
    /** The host had to load or wake the model for it. */
    isSwap: z.boolean().optional(),
  }),
  z.object({
    type: z.literal('phase'),
    ...at,
    phase: z.enum(['accepted', 'running', 'unsure', 'fetching', 'waiting']),
  }),
  z.object({ type: z.literal('refused'), ...at, code: z.string() }),
  z.object({ type: z.literal('lost'), ...at }),
  z.object({ type: z.literal('attempt-failed'), ...at, error: JobError, serverDied: z.boolean() }),
  z.object({ type: z.literal('saving'), ...at, name: z.string(), sha256: z.string(), result: JobResult }),
  z.object({
    type: z.literal('saved'),
    ...at,
    path: z.string(),
    previewPath: z.string().nullable(),
    result: JobResult,
    endedInMs: z.number(),
  }),
  z.object({ type: z.literal('failed'), jobId: Uuid, error: JobError, endedInMs: z.number() }),
  z.object({ type: z.literal('cancelled'), jobId: Uuid, endedInMs: z.number() }),
  /** Some lines could not be read any more: how many, how many images went with them, and where the damaged file is. */
  z.object({ type: z.literal('repaired'), damaged: z.int(), lost: z.int(), keptAs: z.string() }),
  z.object({
    type: z.literal('ended'),
    state: z.enum(['success', 'partial', 'failed', 'cancelled']),
    elapsedMs: z.number(),
    quality: Quality.nullable(),
  }),
]);
export type ManifestLine = z.infer<typeof ManifestLine>;

export type ManifestHeader = Extract<ManifestLine, { type: 'batch' }>;
export type ManifestEnd = Extract<ManifestLine, { type: 'ended' }>;
export type ManifestRepair = Extract<ManifestLine, { type: 'repaired' }>;

/** Complete lines of a manifest. A torn last line is not yet written; any other that cannot be read is `damaged`. */
export function readLines(text: string): { lines: ManifestLine[]; damaged: number; readTo: number } {
  const lines: ManifestLine[] = [];
  let damaged = 0;
  const readTo = text.lastIndexOf('\n') + 1;
  for (const line of text.slice(0, readTo).split('\n')) {
    if (line === '') continue;
    const parsed = parseLine(line);
    if (parsed === undefined) damaged += 1;
    else lines.push(parsed);
  }
  return { lines, damaged, readTo };
}

/** What a manifest says so far. */
export class ManifestState {
  header: ManifestHeader | undefined;
  ended: ManifestEnd | undefined;
  /** Each time it was damaged and made whole again. */
  readonly repairs: ManifestRepair[] = [];
  /** Lines that could not be read and are still in it. */
  damaged = 0;
  readonly jobs: JobRecord[] = [];
  readonly #byId = new Map<string, JobRecord>();

  /** Once all jobs are in it, as far as they can be read: before, its call has not been answered. */
  get isWhole(): boolean {
    if (this.header === undefined) return false;
    return this.jobs.length >= this.header.total || this.damaged > 0;
  }

  get order(): BatchSequence {
    return this.header?.order ?? 'longest-first';
  }

  get endState(): BatchState | undefined {
    return this.ended?.state;
  }

  job(jobId: string): JobRecord | undefined {
    return this.#byId.get(jobId);
  }

  /** Tolerant: a line about an unknown job or after the end of one changes nothing. */
  apply(line: ManifestLine): void {
    if (line.type === 'batch') this.header = line;
    else if (line.type === 'ended') this.ended = line;
    else if (line.type === 'repaired') this.repairs.push(line);
    else if (line.type === 'job') {
      if (this.#byId.has(line.jobId)) return;
      const record = newRecord({ ...line, name: line.name ?? undefined });
      this.#byId.set(line.jobId, record);
      this.jobs.push(record);
    } else {
      const record = this.#byId.get(line.jobId);
      if (record !== undefined) applyToJob(record, line);
    }
  }
}

type JobLine = Exclude<ManifestLine, { type: 'batch' | 'ended' | 'job' | 'repaired' }>;

function applyToJob(record: JobRecord, line: JobLine): void {
  if (isOver(record.state)) return;
  switch (line.type) {
    case 'sent':
      record.attempts.push({ ...placeIn(line), ...(line.isSwap && { isSwap: true }) });
      record.routing = line.routing;
      record.startedInMs = line.sentInMs;
      record.state = { kind: 'taking', at: placeIn(line) };
      return;
    case 'phase':
      applyPhase(record, line);
      return;
    case 'refused':
    case 'lost':
      endAttempt(record, line, { kind: line.type });
      if (isAt(record, line)) record.state = { kind: 'waiting' };
      return;
    case 'attempt-failed':
      endAttempt(record, line, { kind: 'failed', error: line.error, serverDied: line.serverDied });
      if (isAt(record, line)) record.state = { kind: 'waiting' };
      return;
    case 'saving':
      record.savings.push({ ...placeIn(line), name: line.name, result: line.result });
      record.state = { kind: 'saving', at: placeIn(line), result: line.result };
      return;
    case 'saved':
      endAttempt(record, line, { kind: 'saved' });
      record.endedInMs = line.endedInMs;
      record.state = {
        kind: 'done',
        at: placeIn(line),
        result: line.result,
        path: line.path,
        previewPath: line.previewPath ?? undefined,
      };
      return;
    case 'failed':
      record.endedInMs = line.endedInMs;
      record.state = { kind: 'failed', error: line.error };
      return;
    case 'cancelled':
      record.endedInMs = line.endedInMs;
      record.state = { kind: 'cancelled', ranAt: 'at' in record.state ? record.state.at : undefined };
  }
}

function applyPhase(record: JobRecord, line: Extract<JobLine, { type: 'phase' }>): void {
  const place = placeIn(line);
  if (line.phase === 'waiting') record.state = { kind: 'waiting' };
  else if (line.phase === 'unsure') record.state = { kind: 'unsure', at: place, sinceMs: 0 };
  else if (line.phase !== 'fetching') record.state = { kind: line.phase, at: place };
}

function endAttempt(record: JobRecord, place: Place, end: NonNullable<Attempt['end']>): void {
  const attempt = record.attempts.findLast((one) => one.host === place.host && one.attempt === place.attempt);
  if (attempt !== undefined) attempt.end = end;
}

function isAt(record: JobRecord, place: Place): boolean {
  return 'at' in record.state && record.state.at.host === place.host && record.state.at.attempt === place.attempt;
}

function placeIn({ host, attempt }: Place): Place {
  return { host, attempt };
}

function parseLine(line: string): ManifestLine | undefined {
  return ManifestLine.safeParse(readCheckedLine(line)).data;
}
