import { readFile } from 'node:fs/promises';

/** One finished job: when the bridge took it for a host and when its engine time was over, on one clock for all bridges. */
export type JobSpan = { endMs: number; runMs: number };

/** The jobs of a batch from its results file, which has times in seconds since the batch was started. */
export async function jobSpans(answers: readonly Record<string, unknown>[], fromMs: number): Promise<JobSpan[]> {
  const files = answers.flatMap(({ results_file: file }) => (typeof file === 'string' ? [file] : []));
  const texts = await Promise.all(files.map((file) => readFile(file, 'utf8')));
  return texts.flatMap((text) => spansIn(text, fromMs));
}

/** PURE. */
export function spansIn(text: string, fromMs: number): JobSpan[] {
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as { finished_seconds: number; generation_time_seconds: number }) // as the tool wrote it
    .map((line) => ({
      endMs: fromMs + line.finished_seconds * 1000,
      runMs: line.generation_time_seconds * 1000,
    }));
}

/**
 * PURE. The largest share by which one bridge had less engine time than the one that had most, at the end of any job after
 * the first `afterJobs` and until the first bridge has all of its jobs.
 */
export function largestLead(bridges: readonly (readonly JobSpan[])[], { afterJobs }: { afterJobs: number }): number {
  const untilMs = Math.min(...bridges.map((spans) => Math.max(...spans.map(({ endMs }) => endMs))));
  const ends = bridges.flatMap((spans) => spans.map(({ endMs }) => endMs)).sort((a, b) => a - b);
  const moments = ends.slice(afterJobs - 1).filter((ms) => ms < untilMs);
  const leads = moments.map((atMs) => {
    const served = bridges.map((spans) => servedUntil(spans, atMs));
    return 1 - Math.min(...served) / Math.max(...served);
  });
  return Math.max(0, ...leads);
}

/** A job that still runs counts with the part that is done. */
function servedUntil(spans: readonly JobSpan[], atMs: number): number {
  return spans.reduce((sum, { endMs, runMs }) => sum + Math.max(0, Math.min(runMs, atMs - (endMs - runMs))), 0);
}
