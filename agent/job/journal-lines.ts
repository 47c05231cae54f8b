import { z } from 'zod';
import { readCheckedLine, toCheckedLine } from '../../shared/checked-line.ts';
import { Job, JobError, JobResult } from '../../shared/job.ts';

const key = { at: z.number(), tokenId: z.string(), jobId: z.string(), attempt: z.int() };

export type LineKey = z.infer<z.ZodObject<typeof key>>;

/** One line of the journal. `at` is wall time, only ever compared with other wall times of this host, in hours. */
const Line = z.discriminatedUnion('event', [
  z.object({ event: z.literal('taken'), ...key, job: Job }),
  z.object({ event: z.literal('done'), ...key, result: JobResult }),
  z.object({ event: z.literal('failed'), ...key, error: JobError }),
  z.object({ event: z.literal('cancelled'), ...key }),
  z.object({ event: z.literal('acked'), ...key }),
]);
export type Line = z.infer<typeof Line>;

export type JobEnd =
  { state: 'done'; result: JobResult } | { state: 'failed'; error: JobError } | { state: 'cancelled' };

/** One attempt as the journal knows it. `end` is there from the moment its line is on disk. */
export type Attempt = {
  readonly tokenId: string;
  readonly job: Job;
  readonly end: (JobEnd & { atMs: number }) | undefined;
  readonly isAcked: boolean;
};

/** An attempt's id within this host. */
export function keyOf(tokenId: string, jobId: string, attempt: number): string {
  return `${tokenId}/${jobId}/${attempt}`;
}

/** The attempt a line is about. */
export function idOf({ tokenId, jobId, attempt }: Line): string {
  return keyOf(tokenId, jobId, attempt);
}

/** undefined for what was damaged: it is counted, and the whole file is kept aside. */
export function parseLine(text: string): Line | undefined {
  try {
    const line = Line.parse(readCheckedLine(text));
    const isTorn = line.event === 'taken' && keyOf(line.tokenId, line.job.jobId, line.job.attempt) !== idOf(line);
    return isTorn ? undefined : line;
  } catch {
    return undefined;
  }
}

/** The end that a line tells. */
export function endOf(line: Exclude<Line, { event: 'taken' | 'acked' }>): JobEnd {
  if (line.event === 'done') return { state: 'done', result: line.result };
  if (line.event === 'failed') return { state: 'failed', error: line.error };
  return { state: 'cancelled' };
}

/** An attempt as the fewest lines that tell the same. */
export function linesOf({ tokenId, job, end, isAcked }: Attempt): string[] {
  const at = end?.atMs ?? Date.now();
  const key = { at, tokenId, jobId: job.jobId, attempt: job.attempt };
  const lines: Line[] = [{ event: 'taken', ...key, job }];
  if (end?.state === 'done') lines.push({ event: 'done', ...key, result: end.result });
  if (end?.state === 'failed') lines.push({ event: 'failed', ...key, error: end.error });
  if (end?.state === 'cancelled') lines.push({ event: 'cancelled', ...key });
  if (isAcked) lines.push({ event: 'acked', ...key });
  return lines.map(toCheckedLine);
}
