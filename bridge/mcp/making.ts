import { megapixelsOf } from '../../shared/job.ts';
import type { BatchOrder } from '../fleet/batch-order.ts';
import type { BatchView } from '../fleet/batch-view.ts';
import type { Fleet } from '../fleet/fleet.ts';
import { checkWritable } from '../output/roots.ts';
import type { ToolContext } from './tool.ts';
import { waitForBatch } from './wait.ts';

/** What a PNG takes at most, more or less: photographs compress badly. */
const BYTES_PER_MEGAPIXEL = 2_000_000;

/**
 * Starts a batch and waits for it as long as the client does. A directory that cannot be written is refused first: no GPU
 * works for an image that cannot be saved.
 */
export async function makeImages(
  order: Omit<BatchOrder, 'client'>,
  { fleet, context, waitSeconds }: { fleet: Fleet; context: ToolContext; waitSeconds: number | undefined },
): Promise<BatchView> {
  const megapixels = order.jobs.reduce((sum, { request }) => sum + megapixelsOf(request), 0);
  for (const directory of new Set(order.jobs.map((job) => job.directory))) {
    await checkWritable(directory, { needBytes: megapixels * BYTES_PER_MEGAPIXEL });
  }
  context.signal.throwIfAborted();
  const batch = await fleet.start({ ...order, client: context.client.name });
  return waitForBatch(batch, context, { waitSeconds });
}
