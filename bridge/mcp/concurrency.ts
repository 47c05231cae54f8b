import type { HostSnapshot, ModelStatus } from '../../shared/host-snapshot.ts';

/** An image needs about this much beside the model, by the predecessors' rule of thumb; more than four never helped. */
const MIB_PER_IMAGE = 2 * 1024;
const MOST_AT_ONCE = 4;

/**
 * PURE. How many images of one model a host can usefully make at once: what the VRAM beside the model carries, at least one,
 * at most four, and never more than it has slots for it.
 */
export function concurrentOn(snapshot: HostSnapshot, model: ModelStatus): number {
  const slots = model.slots.filter(({ phase }) => phase !== 'cannot').length;
  const byMemory = Math.floor(besideMiB(snapshot, model) / MIB_PER_IMAGE);
  return Math.min(slots, Math.max(1, Math.min(MOST_AT_ONCE, byMemory)));
}

/** The most any one model of the host can do at once: different ones take turns on a GPU. */
export function concurrentAtMost(snapshot: HostSnapshot): number {
  return Math.max(0, ...snapshot.models.map((model) => concurrentOn(snapshot, model)));
}

/** Free once the model is loaded. What other models of ours hold may go for it. */
function besideMiB({ gpus }: HostSnapshot, model: ModelStatus): number {
  const own = gpus.filter(({ uuid }) => model.gpus.length === 0 || model.gpus.includes(uuid));
  const isUp = model.state === 'ready';
  const rooms = own.map(({ freeMiB, oursMiB }) => (freeMiB ?? 0) + (isUp ? 0 : oursMiB - model.loadedMiB));
  return Math.max(0, ...rooms);
}
