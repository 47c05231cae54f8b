import type { JobError } from '../../shared/job.ts';
import { isOver } from './job-state.ts';
import type { ManifestHeader, ManifestLine } from './manifest-lines.ts';
import { ManifestState } from './manifest-lines.ts';

type JobLine = Extract<ManifestLine, { type: 'job' }>;

export type RepairOptions = {
  batchId: string;
  /** Where the damaged file is kept. */
  keptAs: string;
  /** How many of its lines could not be read. */
  damaged: number;
  /** When the batch was written, as far as its file tells; for a header that was lost. */
  createdAt: string;
  newId: () => string;
};

const LOST_PROMPT = '(lost: its line in the record of the batch was damaged)';
const LOST: JobError = {
  code: 'JOB_NOT_FOUND',
  message:
    'The record of this image was damaged on the disk of this machine, so that nobody knows any more what was asked ' +
    'for. The other images of its batch go on. Ask for this one again.',
  retryable: false,
};

/**
 * A damaged manifest made whole again from the lines that can be read: every job whose line is left keeps its state, an
 * image whose line is lost counts as failed unless it was saved, and nothing is done again. Undefined where no job is left.
 */
export function repairManifest(lines: readonly ManifestLine[], o: RepairOptions): ManifestLine[] | undefined {
  const jobs = lines.flatMap((line) => (line.type === 'job' ? [line] : []));
  const [like] = jobs;
  if (like === undefined) return undefined;
  const header = lines.find((line) => line.type === 'batch') ?? remadeHeader(jobs, o);
  const standIns = lostJobs({ lines, jobs, header, like }, o.newId);
  const rest = lines.filter(({ type }) => type !== 'batch' && type !== 'job' && type !== 'ended');
  const repaired: ManifestLine = { type: 'repaired', damaged: o.damaged, lost: standIns.length, keptAs: o.keptAs };
  const all: ManifestLine[] = [header, ...jobs, ...standIns, repaired, ...rest];
  const before = replay(all);
  const failed = standIns.filter(({ jobId }) => before.job(jobId)?.state.kind !== 'done');
  all.push(...failed.map(({ jobId }): ManifestLine => ({ type: 'failed', jobId, error: LOST, endedInMs: 0 })));
  // An end is believed only where every job has one: what was lost of theirs is found out by going on.
  const ended = lines.filter(({ type }) => type === 'ended');
  const after = replay(all);
  return after.jobs.every(({ state }) => isOver(state)) ? [...all, ...ended] : all;
}

/** The class and the order it was asked with are lost; these harm nobody. */
function remadeHeader(jobs: readonly JobLine[], { batchId, createdAt }: RepairOptions): ManifestHeader {
  return {
    type: 'batch',
    version: 1,
    batchId,
    kind: jobs[0]?.request.kind ?? 'generate',
    class: 'batch',
    order: 'longest-first',
    maxConcurrent: null,
    host: null,
    client: 'unknown',
    createdAt,
    total: Math.max(...jobs.map(({ index }) => index)) + 1,
  };
}

/** One for each index without a line; by the ids that other lines still tell. */
function lostJobs(
  o: { lines: readonly ManifestLine[]; jobs: readonly JobLine[]; header: ManifestHeader; like: JobLine },
  newId: () => string,
): JobLine[] {
  const known = new Set(o.jobs.map(({ jobId }) => jobId));
  const there = new Set(o.jobs.map(({ index }) => index));
  const told = o.lines.flatMap((line) => ('jobId' in line && !known.has(line.jobId) ? [line.jobId] : []));
  const ids = [...new Set(told)];
  const missing = Array.from({ length: o.header.total }, (_, index) => index).filter((index) => !there.has(index));
  return missing.map((index, rank) => ({
    ...o.like,
    jobId: ids[rank] ?? newId(),
    index,
    request: { ...o.like.request, prompt: LOST_PROMPT },
    name: null,
  }));
}

function replay(lines: readonly ManifestLine[]): ManifestState {
  const state = new ManifestState();
  for (const line of lines) state.apply(line);
  return state;
}
