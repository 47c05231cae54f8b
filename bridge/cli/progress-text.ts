import { clipped, timeText } from '../../shared/screen-text.ts';
import type { BatchView, JobView } from '../fleet/batch-view.ts';
import type { Doing } from './ask.ts';

/** PURE. What a person reads while images are made. */
const BAR_CELLS = 20;
/** Below this a bar would leave no room for the words. */
const MIN_COLUMNS = 60;
const QUOTED = 48;

/** The line that changes: a bar where there is room, then what is going on. Never as wide as the terminal: that wraps. */
export function progressLine({ message, fraction }: Doing, columns: number): string {
  const bar = fraction === undefined || columns < MIN_COLUMNS ? '' : `${barOf(fraction)} `;
  return clipped(`${bar}${message}`, columns - 1);
}

/** One finished image: how far that is, where it was made, and how long it took; or why there is none. */
export function endedLine(job: JobView, { ended, total }: { ended: number; total: number }): string {
  const count = total === 1 ? '' : `${String(ended).padStart(String(total).length)}/${total}  `;
  const at = job.host === undefined ? '' : ` on ${job.host}`;
  const prompt = total === 1 ? '' : `  ${clipped(job.prompt, QUOTED)}`;
  if (job.state === 'failed') {
    const { code, message } = job.error ?? { code: 'INTERNAL', message: 'The job failed without a reason.' };
    return `${count}failed${at}${prompt}: ${code}: ${clipped(message, undefined)}`;
  }
  const took = job.result === undefined ? '' : ` in ${timeText(job.result.runMs)}`;
  return `${count}made${at}${took}${prompt}`;
}

/** Images that ended since `told`, in the order in which they did. */
export function newlyEnded({ jobs }: BatchView, told: ReadonlySet<string>): JobView[] {
  return jobs
    .filter(({ jobId, state }) => (state === 'done' || state === 'failed') && !told.has(jobId))
    .sort((a, b) => (a.timings?.endedInMs ?? 0) - (b.timings?.endedInMs ?? 0));
}

function barOf(fraction: number): string {
  const full = Math.round(Math.max(0, Math.min(1, fraction)) * BAR_CELLS);
  return `[${'#'.repeat(full)}${'-'.repeat(BAR_CELLS - full)}]`;
}
