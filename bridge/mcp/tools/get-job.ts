import { z } from 'zod';
import { pause } from '../../../shared/abort.ts';
import { AppError } from '../../../shared/errors.ts';
import type { BatchView, JobView } from '../../fleet/batch-view.ts';
import type { Fleet } from '../../fleet/fleet.ts';
import { activityOf, fractionOf } from '../activity.ts';
import {
  plural,
  previewsFor,
  progressJson,
  qualityJson,
  sentence,
  resultsFileJson,
  resultsJson,
  shownJobs,
  statusOf,
  throwIfFailed,
} from '../answers.ts';
import { waitSeconds } from '../arguments.ts';
import { resultLinks } from '../result-links.ts';
import type { ImageAnswer } from '../results.ts';
import type { ToolContext } from '../tool.ts';
import { defineImageTool, READS } from '../tool.ts';
import { seconds } from '../units.ts';

/** Batches of other processes are read from their manifests, which announce nothing. */
const LOOK_EVERY_MS = 200;
/** A look at 10,000 jobs takes a while: no more than this share of the time goes into looks. */
const LOOKING_SHARE = 0.1;

const input = z.strictObject({
  id: z.string().min(1).max(100).describe('job_id or batch_id'),
  wait_seconds: waitSeconds.describe('Default 0'),
});

export const getJob = defineImageTool({
  name: 'get_job',
  title: 'Look at a job or batch',
  description: 'How far a job or batch is, and its results so far; wait_seconds waits for the end.',
  annotations: READS,
  input,
  run,
});

async function run(args: z.output<typeof input>, context: ToolContext): Promise<ImageAnswer> {
  const fleet = await context.fleet();
  const view = await viewOf(args.id, { fleet, context, waitMs: (args.wait_seconds ?? 0) * 1_000 });
  const job = view.jobs.find(({ jobId }) => jobId === args.id);
  const shown = job === undefined ? view : onlyJob(view, job);
  throwIfFailed(shown);
  const { previews, notes } =
    shown.state === 'running'
      ? { previews: [], notes: [] }
      : await previewsFor(shown.jobs, { asked: undefined, settings: context.settings });
  const file = job === undefined ? await resultsFileJson(view) : { json: {}, notes: [] };
  return {
    sentence: sentenceOf(shown),
    json: {
      status: statusOf(shown),
      state: job === undefined ? view.state : jobStateWord(job),
      ...(job !== undefined && { job_id: job.jobId }),
      batch_id: view.batchId,
      kind: view.kind,
      created_at: view.createdAt,
      ...progressJson(shown, job),
      elapsed_seconds: seconds(view.elapsedMs),
      results: resultsJson(shown),
      ...file.json,
      ...(job === undefined ? qualityJson(view) : { routing: job.routing }),
      notes: [...(job?.result?.notes ?? []), ...view.notes, ...file.notes, ...notes],
    },
    previews,
    links: shown.state === 'running' ? [] : resultLinks(shownJobs(shown)),
  };
}

/** The batch of an id, at its end or when the wait is over. A call that is taken back ends only the waiting. */
async function viewOf(
  id: string,
  { fleet, context, waitMs }: { fleet: Fleet; context: ToolContext; waitMs: number },
): Promise<BatchView> {
  const startedMs = performance.now();
  while (true) {
    const lookedAtMs = performance.now();
    const view = fleet.find(id);
    if (view === undefined) {
      throw new AppError(
        'JOB_NOT_FOUND',
        `No job or batch has the id ${id}. Batches are remembered for 30 days after their end. Check the id.`,
      );
    }
    context.progress(() => ({ message: activityOf(view), fraction: fractionOf(view) }));
    const job = view.jobs.find(({ jobId }) => jobId === id);
    const isOver = job === undefined ? view.state !== 'running' : onlyJob(view, job).state !== 'running';
    if (isOver || performance.now() - startedMs >= waitMs) return view;
    const everyMs = Math.max(LOOK_EVERY_MS, (performance.now() - lookedAtMs) / LOOKING_SHARE);
    await pause(Math.min(everyMs, waitMs), context.signal);
    context.signal.throwIfAborted();
  }
}

/** A batch reduced to one of its jobs. */
function onlyJob(view: BatchView, job: JobView): BatchView {
  const is = (state: JobView['state']): number => (job.state === state ? 1 : 0);
  const { quality: _, ...rest } = view;
  return {
    ...rest,
    jobs: [job],
    total: 1,
    completed: is('done'),
    failed: is('failed'),
    cancelled: is('cancelled'),
    state: is('done') ? 'success' : is('failed') ? 'failed' : is('cancelled') ? 'cancelled' : 'running',
    etaMs: job.etaMs,
  };
}

function jobStateWord(job: JobView): 'waiting' | 'running' | 'success' | 'failed' | 'cancelled' {
  switch (job.state) {
    case 'waiting':
    case 'taking':
    case 'accepted':
    case 'unsure':
      return 'waiting';
    case 'running':
    case 'fetching':
    case 'saving':
      return 'running';
    case 'done':
      return 'success';
    case 'failed':
    case 'cancelled':
      return job.state;
  }
}

function sentenceOf(view: BatchView): string {
  if (view.state === 'running') return sentence(`Running: ${activityOf(view)}`);
  const failed = view.failed > 0 ? `, ${view.failed} failed` : '';
  const cancelled = view.cancelled > 0 ? `, ${view.cancelled} cancelled` : '';
  return `Ended: ${plural(view.completed, 'image')} saved${failed}${cancelled}.`;
}
