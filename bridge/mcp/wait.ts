import { Deadline } from '../../shared/abort.ts';
import type { Batch } from '../fleet/batch.ts';
import type { BatchView } from '../fleet/batch-view.ts';
import { activityOf, fractionOf } from './activity.ts';
import type { ToolContext } from './tool.ts';

/** The end of the batch, or its state when the client's patience ends. A call that is taken back takes the batch with it. */
export async function waitForBatch(
  batch: Batch,
  context: ToolContext,
  { waitSeconds }: { waitSeconds: number | undefined },
): Promise<BatchView> {
  context.progress(() => {
    const view = batch.view();
    return { message: activityOf(view), fraction: fractionOf(view) };
  });
  using patience = new Deadline({ ms: patienceMs(context, waitSeconds), signal: context.signal });
  try {
    return await batch.wait(patience.signal);
  } catch (error) {
    if (context.signal.aborted) {
      if (context.cancelReason() === 'asked') await batch.cancel();
      throw error;
    }
    if (patience.isExpired) return batch.view();
    throw error;
  }
}

/** What the caller asked for, else what its client is known to wait. */
export function patienceMs({ syncWaitMs }: Pick<ToolContext, 'syncWaitMs'>, waitSeconds: number | undefined): number {
  return waitSeconds === undefined ? syncWaitMs : waitSeconds * 1_000;
}
