import { z } from 'zod';
import { AppError } from '../../../shared/errors.ts';
import { plural, statusOf } from '../answers.ts';
import type { ToolContext } from '../tool.ts';
import { defineTool, ENDS } from '../tool.ts';

const input = z.strictObject({ batch_id: z.string().min(1).max(100).describe('batch_id, or a job_id') });

const output = z.object({
  status: z.string(),
  batch_id: z.string(),
  message: z.string(),
  completed: z.int(),
  failed: z.int(),
  cancelled: z.int(),
  files_saved: z.array(z.string()),
  still_running: z.array(z.object({ job_id: z.string(), host: z.string() })),
});

export const cancelBatch = defineTool({
  name: 'cancel_batch',
  title: 'Cancel a batch or job',
  description:
    'Stop a batch (or one job): what waits is dropped, finished images are kept. An image that an engine is already ' +
    'making cannot be interrupted; it ends unseen and is listed in still_running with the host it keeps busy.',
  annotations: ENDS,
  input,
  output,
  run,
});

async function run(args: z.output<typeof input>, context: ToolContext): Promise<z.input<typeof output>> {
  const fleet = await context.fleet();
  if (fleet.find(args.batch_id) === undefined) {
    throw new AppError(
      'JOB_NOT_FOUND',
      `No batch or job has the id ${args.batch_id}. Nothing was stopped. Check the id.`,
    );
  }
  const view = await fleet.cancel(args.batch_id);
  const stillRunning = view.jobs.flatMap(({ jobId, stillRunningOn }) =>
    stillRunningOn === undefined ? [] : [{ job_id: jobId, host: stillRunningOn }],
  );
  return {
    status: view.state === 'failed' ? 'cancelled' : statusOf(view),
    batch_id: view.batchId,
    message: messageOf(view, stillRunning.length),
    completed: view.completed,
    failed: view.failed,
    cancelled: view.cancelled,
    files_saved: view.jobs.flatMap(({ filePath }) => (filePath === undefined ? [] : [filePath])),
    still_running: stillRunning,
  };
}

function messageOf(view: { completed: number; cancelled: number; state: string }, stillRunning: number): string {
  if (view.state === 'success') return 'The batch had already ended; nothing was stopped.';
  const busy =
    stillRunning === 0 ? '' : ` Still busy with what cannot be interrupted: ${plural(stillRunning, 'engine')}.`;
  return `${plural(view.cancelled, 'image')} stopped, ${plural(view.completed, 'finished one')} kept.${busy}`;
}
