import { z } from 'zod';
import type { BatchView } from '../../fleet/batch-view.ts';
import { activityOf } from '../activity.ts';
import { plural, quoted } from '../answers.ts';
import { defineTool, READS } from '../tool.ts';
import { seconds } from '../units.ts';

const DEFAULT_LIMIT = 20;
const MOST = 100;
/** With a state asked for, so many of the newest are looked through: each is read from its record. */
const SEARCHED = 200;

const input = z.strictObject({
  state: z.enum(['running', 'success', 'partial', 'failed', 'cancelled']).optional(),
  limit: z.int().min(1).max(MOST).optional().describe(`Default ${DEFAULT_LIMIT}`),
});

const JobEntry = z.object({
  batch_id: z.string(),
  job_id: z.string().optional(),
  kind: z.string(),
  state: z.string(),
  created_at: z.string(),
  model: z.string(),
  prompt: z.string(),
  completed: z.int(),
  failed: z.int(),
  cancelled: z.int(),
  total: z.int(),
  activity: z.string(),
  eta_seconds: z.number().nullable(),
  elapsed_seconds: z.number(),
  is_ours: z.boolean(),
});

const output = z.object({ status: z.string(), message: z.string(), jobs: z.array(JobEntry) });

export const listJobs = defineTool({
  name: 'list_jobs',
  title: 'List jobs and batches',
  description: 'Jobs and batches of this machine, newest first, also those of other windows.',
  annotations: READS,
  input,
  output,
  run: async ({ state, limit = DEFAULT_LIMIT }, context) => {
    const fleet = await context.fleet();
    const all = fleet.list(state === undefined ? limit : SEARCHED);
    const views = state === undefined ? all : all.filter((view) => view.state === state);
    const jobs = views.slice(0, limit).map(entryOf);
    const among = all.length < SEARCHED ? '' : ` among the newest ${SEARCHED}`;
    const what = state === undefined ? '' : ` with state ${state}${among}`;
    return {
      status: 'success',
      message: jobs.length === 0 ? `There are no jobs${what}.` : `${plural(jobs.length, 'entry', 'entries')}${what}.`,
      jobs,
    };
  },
});

/** A call for one image is its job, any other a batch. */
function entryOf(view: BatchView): z.input<typeof JobEntry> {
  const [first] = view.jobs;
  return {
    batch_id: view.batchId,
    ...(view.total === 1 && first !== undefined && { job_id: first.jobId }),
    kind: view.kind,
    state: view.state,
    created_at: view.createdAt,
    model: first?.model ?? '',
    prompt: quoted(first?.prompt ?? ''),
    completed: view.completed,
    failed: view.failed,
    cancelled: view.cancelled,
    total: view.total,
    activity: activityOf(view),
    eta_seconds: view.etaMs === null ? null : seconds(view.etaMs),
    elapsed_seconds: seconds(view.elapsedMs),
    is_ours: view.isOurs,
  };
}
