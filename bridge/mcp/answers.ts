import { dirname } from 'node:path';
import { AppError, isErrorCode, toAppError } from '../../shared/errors.ts';
import type { JobResult } from '../../shared/job.ts';
import type { BatchView, JobView } from '../fleet/batch-view.ts';
import { previewsOf } from '../output/preview.ts';
import type { Preview } from '../output/preview.ts';
import { writeOnce } from '../output/results-file.ts';
import { activityOf } from './activity.ts';
import type { Json } from './results.ts';
import type { ToolSettings } from './tool.ts';
import { seconds } from './units.ts';

const MAX_RESULTS = 20;
const QUOTED = 80;

/** A job whose file is there. */
export type MadeImage = JobView & { result: JobResult; filePath: string };

export function isMade(job: JobView): job is MadeImage {
  return job.result !== undefined && job.filePath !== undefined;
}

/** `status` of an answer; a batch of which nothing came out is a failure and has none. */
export function statusOf(view: BatchView): 'running' | 'success' | 'partial' | 'cancelled' {
  return view.state === 'failed' ? 'partial' : view.state;
}

/** The end of a call whose work goes on: the ids to ask with, and how far it is. */
export function runningAnswer(view: BatchView): { sentence: string; json: Json; previews: Preview[] } {
  const [only] = view.jobs;
  const id = view.total === 1 && only !== undefined ? only.jobId : view.batchId;
  return {
    sentence: `${sentence(`Still running: ${activityOf(view)}`)} The work goes on; ask with get_job, id ${id}.`,
    json: { status: 'running', ...(view.total === 1 && { job_id: id }), batch_id: view.batchId, ...progressJson(view) },
    previews: [],
  };
}

/** How far a batch, or one job of it, is. */
export function progressJson(view: BatchView, job = view.total === 1 ? view.jobs[0] : undefined): Json {
  const running = job ?? view.jobs.find(({ state }) => state === 'running');
  return {
    progress: {
      step: running?.progress.step ?? 0,
      total_steps: running?.progress.steps ?? 0,
      completed: view.completed,
      failed: view.failed,
      cancelled: view.cancelled,
      total: view.total,
    },
    eta_seconds: view.etaMs === null ? null : seconds(view.etaMs),
    queue_position: job?.ahead ?? null,
    ...(job?.host !== undefined && { host: job.host }),
    activity: activityOf(view),
  };
}

/** The first results and failures of a batch; the others are in its results file. */
export function resultsJson(view: BatchView): Json[] {
  return shownJobs(view).map((job) => resultJson(job, { promptLength: QUOTED }));
}

export function shownJobs({ jobs }: BatchView): JobView[] {
  const done = jobs.filter((job) => job.state === 'done').slice(0, MAX_RESULTS);
  const failed = jobs.filter((job) => job.state === 'failed').slice(0, MAX_RESULTS);
  return [...done, ...failed].sort((a, b) => a.index - b.index);
}

/**
 * All results as JSONL beside the images, for a batch that is over and too large for an answer. The bridge that ends a batch
 * writes it; where that failed, or the file was deleted, whoever asks for the batch does.
 */
export async function resultsFile(view: BatchView): Promise<string | undefined> {
  const first = view.jobs.find((job) => job.filePath !== undefined)?.filePath;
  if (view.state === 'running' || view.total <= MAX_RESULTS || first === undefined) return undefined;
  return writeOnce({
    directory: dirname(first),
    name: `batch_${view.batchId}.jsonl`,
    text: () => view.jobs.map((job) => `${JSON.stringify(resultJson(job, { promptLength: Infinity }))}\n`).join(''),
  });
}

/** As a part of an answer. That it cannot be written is a note: the images are there all the same. */
export async function resultsFileJson(view: BatchView): Promise<{ json: Json; notes: string[] }> {
  try {
    const path = await resultsFile(view);
    return { json: path === undefined ? {} : { results_file: path }, notes: [] };
  } catch (error) {
    const { message } = toAppError(error);
    return { json: {}, notes: [`The results file could not be written (${message}); get_job tries again.`] };
  }
}

export function qualityJson(view: BatchView): Json {
  if (view.quality === undefined) return {};
  const { makespanMs, lowerBoundMs, ratio, jobsByHost, swaps, reRuns } = view.quality;
  return {
    quality: {
      makespan_seconds: seconds(makespanMs),
      lower_bound_seconds: seconds(lowerBoundMs),
      ratio: Math.round(ratio * 1_000) / 1_000,
      images_per_host: jobsByHost,
      ...(swaps !== undefined && { swaps }),
      ...(reRuns !== undefined && { re_runs: reRuns }),
    },
  };
}

/** Throws what made a batch fail: its first error, with what was tried. */
export function throwIfFailed(view: BatchView): void {
  const job = view.jobs.find(({ state }) => state === 'failed');
  if (view.state !== 'failed' || job === undefined) return;
  const { code, message } = job.error ?? { code: 'INTERNAL', message: 'The job failed without a reason.' };
  const all = view.total === 1 ? '' : ` All ${view.total} images of batch ${view.batchId} failed; this was the first.`;
  throw new AppError(isErrorCode(code) ? code : 'ENGINE_FAILED', `${message}${all}`);
}

/** Previews of what is done, unless the call or the configuration wants none. */
export async function previewsFor(
  jobs: readonly JobView[],
  o: { asked: 'inline' | 'none' | undefined; settings: ToolSettings },
): Promise<{ previews: Preview[]; notes: string[] }> {
  if ((o.asked ?? o.settings.preview) === 'none') return { previews: [], notes: [] };
  const paths = jobs.flatMap((job) => (job.state === 'done' ? [job.previewPath ?? job.filePath ?? []].flat() : []));
  return previewsOf(paths);
}

/** Texts of hosts end with a stop or not. */
export function sentence(text: string): string {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

export function plural(count: number, word: string, many = `${word}s`): string {
  return `${count} ${count === 1 ? word : many}`;
}

/** As much of a prompt as tells it from others. */
export function quoted(prompt: string, length = QUOTED): string {
  return prompt.length <= length ? prompt : `${prompt.slice(0, length - 1)}…`;
}

function resultJson(job: JobView, { promptLength }: { promptLength: number }): Json {
  return {
    index: job.index,
    job_id: job.jobId,
    ...(job.inputFiles !== undefined && { inputs: job.inputFiles }),
    prompt: quoted(job.prompt, promptLength),
    seed: job.seed,
    ...(job.host !== undefined && { host: job.host }),
    ...(job.filePath !== undefined && { file_path: job.filePath }),
    attempts: job.attempts.length,
    ...(job.result !== undefined && { generation_time_seconds: seconds(job.result.runMs) }),
    ...(job.timings !== undefined && {
      started_seconds: seconds(job.timings.startedInMs),
      finished_seconds: seconds(job.timings.endedInMs),
    }),
    ...(job.error !== undefined && { error: `${job.error.code}: ${job.error.message}` }),
    ...(job.state === 'cancelled' && { cancelled: true }),
  };
}
