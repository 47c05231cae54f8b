import type { ModelStateKind, ModelStatus } from '../../shared/host-snapshot.ts';
import { loadedMiB } from './footprint.ts';
import type { Learned } from './learned.ts';
import type { Room } from './room.ts';
import type { Slot } from './slot.ts';
import { isAttached } from './slot.ts';

/** One model of the host's status; `slots` are its replicas, of which the one that is furthest on its way stands for it. */
export function statusOf(
  slots: readonly Slot[],
  { learned: all, room, heldAwayMs }: { learned: Learned; room: Room; heldAwayMs: number },
): Omit<ModelStatus, 'slots'> | undefined {
  const [first] = [...slots].sort((a, b) => RANK[b.server.state.kind] - RANK[a.server.state.kind]);
  if (first === undefined) return undefined;
  const { server, model, detail } = first;
  const { state } = server;
  const learned = all.of(model.id);
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
    gpus: [...new Set(slots.flatMap((slot) => slot.server.gpus))],
    heldMiB: sum((slot) => slot.server.heldMiB),
    isPinned: model.pin,
    offloadAfterMs: model.offloadAfterMs,
    releaseAfterMs: model.releaseAfterMs,
    loadedMiB: loadedMiB(learned, model),
    peakMiB: room.peakMiB(model, 1),
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
