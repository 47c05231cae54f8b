import type { ModelStateKind, ModelStatus } from '../../shared/host-snapshot.ts';
import { loadedMiB } from './footprint.ts';
import type { Learned } from './learned.ts';
import type { Room } from './room.ts';
import type { Slot } from './slot.ts';
import { isAttached } from './slot.ts';
import type { WeightsState } from '../weights/weights.ts';
import { downloadText } from '../weights/weights-text.ts';

/** One model of the host's status; `slots` are its replicas, of which the one that is furthest on its way stands for it. */
export function statusOf(
  slots: readonly Slot[],
  {
    learned: all,
    room,
    heldAwayMs,
    weights,
  }: { learned: Learned; room: Room; heldAwayMs: number; weights: WeightsState },
): Omit<ModelStatus, 'slots'> | undefined {
  const [first] = [...slots].sort((a, b) => RANK[b.server.state.kind] - RANK[a.server.state.kind]);
  if (first === undefined) return undefined;
  const { server, model, detail } = first;
  const { state } = server;
  const learned = all.of(model.id);
  const capacity = room.capacity(model);
  const shown = state.kind === 'failed' ? state.error.message : detail;
  const sum = (of: (slot: Slot) => number): number => slots.reduce((total, slot) => total + of(slot), 0);
  return {
    model: model.id,
    alias: model.alias,
    engine: model.engine,
    isAttached: isAttached(model),
    // What the configuration allows is what the bridges may ask for.
    profile: { ...model.profile, capabilities: model.capabilities },
    profileFrom: model.profileFrom,
    state: state.kind,
    ...(shown !== undefined && { detail: shown }),
    // Instead of both, as long as no server of it has its weights already.
    ...(state.kind === 'released' && downloadStatus(weights)),
    gpus: [...new Set(slots.flatMap((slot) => slot.server.gpus))],
    heldMiB: sum((slot) => slot.server.heldMiB),
    isPinned: model.pin,
    offloadAfterMs: model.offloadAfterMs,
    releaseAfterMs: model.releaseAfterMs,
    loadedMiB: loadedMiB(learned, model),
    peakMiB: room.peakMiB(model, 1),
    ...(capacity !== undefined && { capacity }),
    isMeasured: learned.loadedMiB !== null,
    loadMs: all.loadMs(model),
    wakeMs: all.wakeMs(model),
    service: all.service(model),
    idleMs: Math.min(...slots.map((slot) => slot.server.idleMs)),
    heldAwayMs,
    jobsDone: sum((slot) => slot.server.counts.jobsDone),
    loads: sum((slot) => slot.server.counts.loads),
    wakes: sum((slot) => slot.server.counts.wakes),
    offloads: sum((slot) => slot.server.counts.offloads),
    releases: sum((slot) => slot.server.counts.releases),
    ...(server.version !== undefined && { version: server.version }),
  };
}

/** For whoever looks, the download is the first part of loading. */
function downloadStatus(weights: WeightsState): Pick<ModelStatus, 'state' | 'detail' | 'download'> | undefined {
  const detail = downloadText(weights);
  switch (weights.kind) {
    case 'present':
      return undefined;
    case 'absent':
      return detail === undefined ? undefined : { state: 'released', detail };
    case 'queued': {
      const download = { doneMiB: 0, totalMiB: null, mibPerSecond: null, leftMs: null };
      return { state: 'loading', ...(detail !== undefined && { detail }), download };
    }
    case 'downloading': {
      const { doneMiB, totalMiB, mibPerSecond, leftMs } = weights;
      return {
        state: 'loading',
        ...(detail !== undefined && { detail }),
        download: { doneMiB, totalMiB, mibPerSecond, leftMs },
      };
    }
    case 'failed':
      return { state: 'failed', detail: weights.error.message };
  }
}

const RANK: Record<ModelStateKind, number> = {
  ready: 7,
  loading: 6,
  offloading: 5,
  offloaded: 4,
  releasing: 3,
  released: 2,
  failed: 1,
  unknown: 0,
};
