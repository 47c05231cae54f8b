import type { AppError } from '../../shared/errors.ts';
import type { ModelStateKind } from '../../shared/host-snapshot.ts';
import type { ServiceTime } from '../../shared/service-time.ts';
import type { Weights } from '../weights/weights.ts';
import type { MissingWeights } from '../weights/weights-text.ts';
import { missingWeights } from '../weights/weights-text.ts';
import { loadedMiB } from './footprint.ts';
import type { Learned } from './learned.ts';
import type { Room } from './room.ts';
import type { Slot } from './slot.ts';
import { isUp, isWokenByJob, reloadMs } from './slot.ts';

export type SlotFacts = {
  state: ModelStateKind;
  /** Why agent.yaml wants it no more; absent for one that stays. */
  leaving?: string;
  /** Its weights are not on the disk; absent when they are, or its server has them already. */
  download?: MissingWeights;
  /** A job could start without a load or a wake. */
  isReady: boolean;
  gpus: readonly string[];
  heldMiB: number;
  error?: AppError;
  retryInMs?: number;
  loadedMiB: number;
  peakMiB: number;
  /** Expected time until ready from the present state; 0 when it is. */
  reloadMs: number;
  loadMs: number;
  wakeMs: number;
  idleMs: number;
  heldAwayMs: number;
  service: ServiceTime;
};

/** What is published of a peak is that of one megapixel. */
const ONE_MEGAPIXEL = 1;

/** One slot as whoever grants and ranks sees it: what it is now, and what it would take to be ready. */
export function slotFacts(
  slot: Slot,
  { learned, room, weights, heldAwayMs }: { learned: Learned; room: Room; weights: Weights; heldAwayMs: number },
): SlotFacts {
  const { server, model } = slot;
  const { state } = server;
  const loadMs = learned.loadMs(model);
  const wakeMs = isWokenByJob(slot) ? 0 : learned.wakeMs(model);
  const retry = state.kind === 'failed' ? state.retry : 'never';
  const retryInMs = retry === 'never' ? undefined : Math.max(0, retry.atMs - performance.now());
  const download = missingWeightsOf(slot, weights);
  return {
    state: state.kind,
    ...(slot.leaving !== undefined && { leaving: slot.leaving }),
    ...(download !== undefined && { download }),
    isReady: isUp(slot),
    gpus: server.gpus,
    heldMiB: server.heldMiB,
    ...(state.kind === 'failed' && { error: state.error }),
    ...(retryInMs !== undefined && { retryInMs }),
    loadedMiB: loadedMiB(learned.of(model.id), model),
    peakMiB: room.peakMiB(model, ONE_MEGAPIXEL),
    reloadMs: (download?.leftMs ?? 0) + reloadMs(slot, { loadMs, wakeMs, retryInMs: retryInMs ?? 0 }),
    loadMs,
    wakeMs,
    idleMs: server.idleMs,
    heldAwayMs,
    service: learned.service(model),
  };
}

/** Only of a server that has yet to be started: one that is up has its weights already. */
export function missingWeightsOf({ server, model }: Slot, weights: Weights): MissingWeights | undefined {
  if (server.state.kind !== 'released' && server.state.kind !== 'failed') return undefined;
  return missingWeights(weights.stateOf(model), performance.now());
}
