import { z } from 'zod';
import { pause } from '../../../shared/abort.ts';
import { AppError } from '../../../shared/errors.ts';
import type { BatchView } from '../../fleet/batch-view.ts';
import type { Fleet } from '../../fleet/fleet.ts';
import { plural, resultsFileJson, statusOf } from '../answers.ts';
import type { ToolContext } from '../tool.ts';
import { defineTool, ENDS } from '../tool.ts';

/** Another process that works on a batch looks every second whether it shall end. */
const OBEYED_MS = 4_000;
const LOOK_EVERY_MS = 100;
/** All of a large batch are in its results file: clients drop an answer that is too long. */
const MAX_FILES = 1_000;

const input = z.strictObject({ batch_id: z.string().min(1).max(100).describe('batch_id, or a job_id') });

const output = z.object({
  status: z.string(),
  batch_id: z.string(),
  message: z.string(),
  completed: z.int(),
  failed: z.int(),
  cancelled: z.int(),
  files_saved: z.array(z.string()),
  results_file: z.string().optional(),
  still_running: z.array(z.object({ job_id: z.string(), host: z.string() })),
});

export const cancelBatch = defineTool({
  name: 'cancel_batch',
  title: 'Cancel a batch or job',
  description:
    'Stop a batch or one job: what waits is dropped, finished images are kept. still_running names hosts that ' +
    'end one unseen.',
  annotations: ENDS,
  input,
  output,
  run,
});

async function run(args: z.output<typeof input>, context: ToolContext): Promise<z.input<typeof output>> {
  const { batch_id: id } = args;
  const fleet = await context.fleet();
  const before = fleet.find(id);
  if (before === undefined) {
    throw new AppError('JOB_NOT_FOUND', `No batch or job has the id ${id}. Nothing was stopped. Check the id.`);
  }
  const view = isOver(before, id) ? before : await obeyed(await fleet.cancel(id), { id, fleet, context });
  const stillRunning = view.jobs.flatMap(({ jobId, stillRunningOn }) =>
    stillRunningOn === undefined ? [] : [{ job_id: jobId, host: stillRunningOn }],
  );
  return {
    status: view.state === 'failed' ? 'cancelled' : statusOf(view),
    batch_id: view.batchId,
    message: messageOf(view, { id, before, busyHosts: [...new Set(stillRunning.map(({ host }) => host))] }),
    completed: view.completed,
    failed: view.failed,
    cancelled: view.cancelled,
    files_saved: view.jobs.flatMap(({ filePath }) => filePath ?? []).slice(0, MAX_FILES),
    ...(await resultsFileJson(view)).json,
    still_running: stillRunning,
  };
}

/** What is being saved ends first, and another process needs a moment to see the wish. */
async function obeyed(
  view: BatchView,
  { id, fleet, context }: { id: string; fleet: Fleet; context: ToolContext },
): Promise<BatchView> {
  const startedMs = performance.now();
  let latest = view;
  while (!isOver(latest, id) && performance.now() - startedMs < OBEYED_MS) {
    await pause(LOOK_EVERY_MS, context.signal);
    context.signal.throwIfAborted();
    latest = fleet.find(id) ?? latest;
  }
  return latest;
}

function isOver(view: BatchView, id: string): boolean {
  const job = view.jobs.find(({ jobId }) => jobId === id);
  if (job === undefined) return view.state !== 'running';
  return job.state === 'done' || job.state === 'failed' || job.state === 'cancelled';
}

function messageOf(view: BatchView, o: { id: string; before: BatchView; busyHosts: readonly string[] }): string {
  const kept = view.completed === 0 ? 'None was finished.' : `${plural(view.completed, 'finished image')} kept.`;
  if (isOver(o.before, o.id)) return `It had already ended; nothing was stopped. ${kept}`;
  if (!isOver(view, o.id)) {
    return `The window of this machine that works on it was asked to stop it and has not answered yet. Ask get_job, id ${o.id}.`;
  }
  const stopped = view.cancelled - o.before.cancelled;
  const goesOn = view.state === 'running' ? ' The others of its batch go on.' : '';
  const busy =
    o.busyHosts.length === 0
      ? ''
      : ` Still busy with what cannot be interrupted and is thrown away: ${o.busyHosts.join(', ')}.`;
  return `${plural(stopped, 'image')} stopped. ${kept}${goesOn}${busy}`;
}
