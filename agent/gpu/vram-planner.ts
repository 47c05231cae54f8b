import type { ModelStateKind } from '../../shared/host-snapshot.ts';

/** A server that holds VRAM. MiB are sums over its GPUs, of which each holds an equal share. */
export type Resident = {
  slotId: string;
  gpus: readonly string[];
  heldMiB: number;
  state: ModelStateKind;
  inFlight: number;
  isPinned: boolean;
  isOffered: boolean;
  idleMs: number;
  reloadMs: number;
  canOffload: boolean;
  /** What it keeps on the GPU after an offload. */
  offloadedMiB: number;
};

export type VramView = {
  gpus: readonly { uuid: string; totalMiB: number; freeMiB: number; reserveMiB: number; usable: boolean }[];
  residents: readonly Resident[];
  hostRamFreeMiB: number;
};

/** `needMiB` is over all GPUs and on top of what the slot holds now. `onGpus` is set where it is placed already. */
export type VramWant = { slotId: string; needMiB: number; gpuCount: number; onGpus?: readonly string[] };

export type Eviction = { slotId: string; by: 'offload' | 'release' };

export type VramPlan =
  | { kind: 'fits'; gpus: readonly string[]; evict: readonly Eviction[] }
  | { kind: 'wait'; blockedBy: readonly string[] }
  | { kind: 'impossible'; shortMiB: number; largestMiB: number };

/** Chooses the GPUs and evicts idle servers, cheapest regret first, until the want fits. Never a busy or pinned one. */
export function planVram(want: VramWant, view: VramView): VramPlan {
  const sets = gpuSets(want, view);
  if (want.needMiB <= 0 && want.onGpus !== undefined) return { kind: 'fits', gpus: want.onGpus, evict: [] };
  const others = view.residents.filter(({ slotId }) => modelOf(slotId) !== modelOf(want.slotId));

  // 1. Evicting only what is idle, on the GPUs where that costs least.
  const fitting = sets
    .map((gpus) => ({ gpus, evict: evictions(want, view, { gpus, from: others.filter(isIdle) }) }))
    .filter((option) => option.evict !== undefined)
    .sort((a, b) => (a.evict?.length ?? 0) - (b.evict?.length ?? 0) || freeOn(view, b.gpus) - freeOn(view, a.gpus));
  const best = fitting[0];
  if (best?.evict !== undefined) return { kind: 'fits', gpus: best.gpus, evict: best.evict };

  // 2. With the memory of those that are busy now. They end by themselves; nobody ends them.
  const mayGo = others.filter((resident) => isIdle(resident) || isBusy(resident));
  for (const gpus of sets) {
    if (largestOn(gpus, want, { view, without: mayGo }) < want.needMiB) continue;
    const blockedBy = mayGo.filter((resident) => isBusy(resident) && touches(resident, gpus));
    if (blockedBy.length > 0) return { kind: 'wait', blockedBy: blockedBy.map(({ slotId }) => slotId) };
  }

  // 3. Not even then.
  const largestMiB = Math.max(0, ...sets.map((gpus) => largestOn(gpus, want, { view, without: mayGo })));
  return { kind: 'impossible', shortMiB: Math.max(0, want.needMiB - largestMiB), largestMiB };
}

/** The least that must go so that each GPU has room for its share; undefined where even all of `from` is not enough. */
function evictions(
  want: VramWant,
  view: VramView,
  { gpus, from }: { gpus: readonly string[]; from: readonly Resident[] },
): Eviction[] | undefined {
  const candidates = from
    .filter((resident) => resident.heldMiB > 0 && touches(resident, gpus))
    .sort((a, b) => regret(a) - regret(b));
  const chosen = new Map<Resident, Eviction['by']>();
  const isShort = (uuid: string): boolean => roomOn(uuid, view, chosen) < share(want);
  const fits = (): boolean => !gpus.some(isShort);

  // a. Cheapest first, and only where memory is still missing.
  let ramMiB = view.hostRamFreeMiB;
  for (const resident of candidates) {
    if (fits()) break;
    if (!resident.gpus.some((uuid) => gpus.includes(uuid) && isShort(uuid))) continue;
    const toRamMiB = resident.heldMiB - resident.offloadedMiB;
    const canOffload = resident.state === 'ready' && resident.canOffload && toRamMiB > 0 && toRamMiB <= ramMiB;
    if (canOffload) ramMiB -= toRamMiB;
    chosen.set(resident, canOffload ? 'offload' : 'release');
  }
  // b. What an offload leaves on the GPU may be what is missing.
  for (const [resident, by] of chosen) {
    if (fits()) break;
    if (by === 'offload') chosen.set(resident, 'release');
  }
  if (!fits()) return undefined;
  // c. Nobody goes in vain: a later, larger one may have made an earlier one unnecessary.
  for (const [resident, by] of [...chosen].reverse()) {
    chosen.delete(resident);
    if (!fits()) chosen.set(resident, by);
  }
  return candidates.flatMap((resident) => {
    const by = chosen.get(resident);
    return by === undefined ? [] : [{ slotId: resident.slotId, by }];
  });
}

/** What evicting costs later, per MiB freed now: a model that is offered work counts as used this moment. */
function regret({ reloadMs, idleMs, isOffered, heldMiB }: Resident): number {
  return reloadMs / (60_000 + (isOffered ? 0 : idleMs)) / heldMiB;
}

/** Replicas are `alias`, `alias#2` ...: one never makes room for another, which would gain nothing. */
function modelOf(slotId: string): string {
  return slotId.replace(/#\d+$/, '');
}

/** In a steady state without a job. Servers on their way somewhere are as good as busy. */
function isIdle({ state, inFlight, isPinned }: Resident): boolean {
  return !isPinned && inFlight === 0 && (state === 'ready' || state === 'offloaded');
}

function isBusy(resident: Resident): boolean {
  if (resident.state === 'releasing') return true; // its memory comes back, pinned or not
  return !resident.isPinned && !isIdle(resident);
}

function touches(resident: Resident, gpus: readonly string[]): boolean {
  return resident.gpus.some((uuid) => gpus.includes(uuid));
}

function share({ needMiB, gpuCount, onGpus }: VramWant): number {
  return needMiB / (onGpus?.length ?? gpuCount);
}

/** Room above the reserve once the chosen have gone. */
function roomOn(uuid: string, view: VramView, chosen: ReadonlyMap<Resident, Eviction['by']>): number {
  const gpu = view.gpus.find((candidate) => candidate.uuid === uuid);
  if (gpu === undefined) return -Infinity;
  let roomMiB = gpu.freeMiB - gpu.reserveMiB;
  for (const [resident, by] of chosen) {
    if (!resident.gpus.includes(uuid)) continue;
    const freesMiB = resident.heldMiB - (by === 'offload' ? resident.offloadedMiB : 0);
    roomMiB += freesMiB / resident.gpus.length;
  }
  return roomMiB;
}

function largestOn(
  gpus: readonly string[],
  want: VramWant,
  { view, without }: { view: VramView; without: readonly Resident[] },
): number {
  const gone = new Map(without.map((resident) => [resident, 'release'] as const));
  const smallest = Math.min(...gpus.map((uuid) => roomOn(uuid, view, gone)));
  return Math.max(0, smallest) * (want.onGpus?.length ?? want.gpuCount);
}

function freeOn(view: VramView, gpus: readonly string[]): number {
  return view.gpus.filter(({ uuid }) => gpus.includes(uuid)).reduce((sum, { freeMiB }) => sum + freeMiB, 0);
}

/** Every choice of `gpuCount` usable GPUs; the only one there is for a server that is placed already. */
function gpuSets(want: VramWant, view: VramView): (readonly string[])[] {
  const usable = view.gpus.filter((gpu) => gpu.usable).map(({ uuid }) => uuid);
  if (want.onGpus !== undefined) return want.onGpus.every((uuid) => usable.includes(uuid)) ? [want.onGpus] : [];
  return combinations(usable, want.gpuCount);
}

function combinations(items: readonly string[], size: number): string[][] {
  if (size === 0) return [[]];
  return items.flatMap((first, at) => combinations(items.slice(at + 1), size - 1).map((rest) => [first, ...rest]));
}
