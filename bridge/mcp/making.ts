import type { BatchOrder } from '../fleet/batch-order.ts';
import type { BatchView } from '../fleet/batch-view.ts';
import type { Fleet } from '../fleet/fleet.ts';
import { estimatedBytes } from '../fleet/room-watch.ts';
import { checkWritable } from '../output/disk-room.ts';
import type { ToolContext } from './tool.ts';
import { waitForBatch } from './wait.ts';

/**
 * Starts a batch and waits for it as long as the client does. A directory that cannot be written is refused first: no GPU
 * works for an image that cannot be saved.
 */
export async function makeImages(
  order: Omit<BatchOrder, 'client'>,
  { fleet, context, waitSeconds }: { fleet: Fleet; context: ToolContext; waitSeconds: number | undefined },
): Promise<BatchView> {
  const needBytes = estimatedBytes(order.jobs.map(({ request }) => request));
  for (const directory of new Set(order.jobs.map((job) => job.directory))) {
    await checkWritable(directory, { needBytes });
  }
  context.signal.throwIfAborted();
  const batch = await fleet.start({ ...order, client: context.client.name });
  context.onBatch?.(batch);
  return waitForBatch(batch, context, { waitSeconds });
}
