import type { ModelStateKind } from '../../shared/host-snapshot.ts';
import type { Evictions } from './evictions.ts';
import { cheapestEvictions, freedOnEach } from './evictions.ts';

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
  /** To ready again after a release, and after an offload. */
  reloadMs: number;
  wakeMs: number;
  canOffload: boolean;
  /** What it keeps on the GPU after an offload. */
  offloadedMiB: number;
};

export type GpuRoom = {
  uuid: string;
  totalMiB: number;
  freeMiB: number;
  reserveMiB: number;
  /** Its free memory is known now, so that more of it may be given away. */
  usable: boolean;
  /** It cannot be read, or the memory of a dead server is missing there: not even what is placed there may begin a job. */
  isOut: boolean;
  /** A part of a MIG GPU: CUDA shows a process one of them at most, so no server spans several. */
  isMigInstance?: boolean;
};

export type VramView = {
  gpus: readonly GpuRoom[];
  residents: readonly Resident[];
  hostRamFreeMiB: number;
};

/** `needMiB` is over all GPUs and on top of what the slot holds now. `onGpus` is set where it is placed already. */
export type VramWant = {
  slotId: string;
  needMiB: number;
  gpuCount: number;
  onGpus?: readonly string[];
  /** Over all GPUs, where it would be started anew. Set where it may be: it is placed, idle, and ours to end. */
  elsewhereMiB?: number | undefined;
};

export type Eviction = { slotId: string; by: 'offload' | 'release' };

export type VramPlan =
  | { kind: 'fits'; gpus: readonly string[]; evict: readonly Eviction[] }
  | { kind: 'wait'; blockedBy: readonly string[] }
  /** Less by `shortMiB`, and it would fit, or fit later: then it is `largestMiB`. */
  | { kind: 'impossible'; shortMiB: number; largestMiB: number };

/** Over all choices of GPUs together, so that a large host decides as fast as a small one. */
const MAX_STEPS = 5_000;
/** Enough to find one set of evictions, whatever the choice. */
const MIN_STEPS = 100;

/**
 * PURE. Chooses the GPUs and evicts idle servers so that the want fits: of all ways the one with the least regret. Never a
 * busy or pinned server, never more than needed; all sums are of whole MiB, so that its numbers are exact.
 * Where the GPUs of a placed server can never give it enough, it is itself the first of those that go, to be started elsewhere.
 */
export function planVram(want: VramWant, view: VramView): VramPlan {
  const here = planHere(want, view);
  if (here.kind !== 'impossible' || want.elsewhereMiB === undefined) return here;
  const elsewhere = planElsewhere({ ...want, needMiB: want.elsewhereMiB }, view);
  if (elsewhere?.kind !== 'impossible') return elsewhere ?? here;
  const shortMiB = Math.min(here.shortMiB, elsewhere.shortMiB);
  return { kind: 'impossible', shortMiB, largestMiB: Math.max(0, want.needMiB - shortMiB) };
}

function planHere(want: VramWant, view: VramView): VramPlan {
  if (want.onGpus !== undefined && want.needMiB <= 0) return inPlace(want.onGpus, view);
  const sets = gpuSets(want, view);
  const others = view.residents.filter(({ slotId }) => modelOf(slotId) !== modelOf(want.slotId));

  // 1. Evicting only what is idle, on the GPUs where that is regretted least.
  const maxSteps = Math.max(MIN_STEPS, Math.floor(MAX_STEPS / Math.max(1, sets.length)));
  const best = sets
    .flatMap((gpus) => {
      const found = evictions(want, view, { gpus, from: others.filter(isIdle), maxSteps });
      return found === undefined ? [] : [{ gpus, ...found }];
    })
    .sort(
      (a, b) => a.regret - b.regret || a.evict.length - b.evict.length || freeOn(view, b.gpus) - freeOn(view, a.gpus),
    )[0];
  if (best !== undefined) return { kind: 'fits', gpus: best.gpus, evict: best.evict };

  // 2. With the memory of those that are busy now. They end by themselves; nobody ends them.
  const mayGo = others.filter((resident) => isIdle(resident) || isBusy(resident));
  const blocked = sets
    .filter((gpus) => largestOn(gpus, { view, without: mayGo }) >= want.needMiB)
    .map((gpus) => mayGo.filter((resident) => isBusy(resident) && touches(resident, gpus)))
    .sort((a, b) => a.length - b.length)[0];
  if (blocked !== undefined) return { kind: 'wait', blockedBy: blocked.map(({ slotId }) => slotId) };

  // 3. Not even then. A reserve that others have eaten into is missing on top of the want.
  const roomMiB = sets.length === 0 ? 0 : Math.max(...sets.map((gpus) => largestOn(gpus, { view, without: mayGo })));
  return { kind: 'impossible', shortMiB: want.needMiB - roomMiB, largestMiB: Math.max(0, roomMiB) };
}

/** As if it had been released. Undefined where nothing can be said of its GPUs now, so that its end could not be verified. */
function planElsewhere({ onGpus = [], ...want }: VramWant, view: VramView): VramPlan | undefined {
  const self = view.residents.find(({ slotId }) => slotId === want.slotId);
  if (self === undefined || !onGpus.every((uuid) => usableGpus(view).includes(uuid))) return undefined;
  const freedMiB = freedOnEach(self, 'release');
  const gpus = view.gpus.map((gpu) =>
    self.gpus.includes(gpu.uuid) ? { ...gpu, freeMiB: gpu.freeMiB + freedMiB } : gpu,
  );
  const plan = planHere(want, { ...view, gpus, residents: view.residents.filter((resident) => resident !== self) });
  if (plan.kind !== 'fits') return plan;
  return { ...plan, evict: [{ slotId: self.slotId, by: 'release' }, ...plan.evict] };
}

/** It needs nothing more than it has: no reading can be in the way, only the state of its GPUs. */
function inPlace(gpus: readonly string[], view: VramView): VramPlan {
  const isIn = gpus.every((uuid) => view.gpus.some((gpu) => gpu.uuid === uuid && !gpu.isOut));
  return isIn ? { kind: 'fits', gpus, evict: [] } : { kind: 'impossible', shortMiB: 0, largestMiB: 0 };
}

function evictions(
  want: VramWant,
  view: VramView,
  { gpus, from, maxSteps }: { gpus: readonly string[]; from: readonly Resident[]; maxSteps: number },
): Evictions | undefined {
  const shareMiB = Math.ceil(want.needMiB / gpus.length);
  const short = new Map(gpus.map((uuid) => [uuid, shareMiB - roomOn(uuid, view)]));
  return cheapestEvictions(short, { from, hostRamFreeMiB: view.hostRamFreeMiB, maxSteps });
}

/** Replicas are `alias`, `alias#2` ...: one never makes room for another, which would gain nothing. */
function modelOf(slotId: string): string {
  return slotId.replace(/#\d+$/, '');
}

/** In a steady state without a job. Servers on their way somewhere are as good as busy. */
export function isIdle({ state, inFlight, isPinned }: Resident): boolean {
  return !isPinned && inFlight === 0 && (state === 'ready' || state === 'offloaded');
}

function isBusy(resident: Resident): boolean {
  if (resident.state === 'releasing') return true; // its memory comes back, pinned or not
  return !resident.isPinned && !isIdle(resident);
}

function touches(resident: Resident, gpus: readonly string[]): boolean {
  return resident.gpus.some((uuid) => gpus.includes(uuid));
}

/** Whole MiB above the reserve. */
function roomOn(uuid: string, { gpus }: VramView): number {
  const gpu = gpus.find((candidate) => candidate.uuid === uuid);
  return gpu === undefined ? -Infinity : Math.floor(gpu.freeMiB - gpu.reserveMiB);
}

/** The largest want, over all these GPUs, once all of `without` have gone; below 0 where even the reserve is in use. */
function largestOn(
  gpus: readonly string[],
  { view, without }: { view: VramView; without: readonly Resident[] },
): number {
  const rooms = gpus.map((uuid) => {
    const gone = without.filter((resident) => resident.gpus.includes(uuid));
    return gone.reduce((sum, resident) => sum + freedOnEach(resident, 'release'), roomOn(uuid, view));
  });
  return Math.min(...rooms) * gpus.length;
}

function freeOn(view: VramView, gpus: readonly string[]): number {
  return view.gpus.filter(({ uuid }) => gpus.includes(uuid)).reduce((sum, { freeMiB }) => sum + freeMiB, 0);
}

/** Every choice of `gpuCount` usable GPUs; the only one there is for a server that is placed already. */
function gpuSets(want: VramWant, view: VramView): (readonly string[])[] {
  const usable = usableGpus(view);
  if (want.onGpus !== undefined) return want.onGpus.every((uuid) => usable.includes(uuid)) ? [want.onGpus] : [];
  if (want.gpuCount === 1) return usable.map((uuid) => [uuid]);
  const instances = view.gpus.filter(({ isMigInstance }) => isMigInstance).map(({ uuid }) => uuid);
  return combinations(
    usable.filter((uuid) => !instances.includes(uuid)),
    want.gpuCount,
  );
}

function usableGpus({ gpus }: VramView): string[] {
  return gpus.filter(({ usable, isOut }) => usable && !isOut).map(({ uuid }) => uuid);
}

function combinations(items: readonly string[], size: number): string[][] {
  if (size === 0) return [[]];
  return items.flatMap((first, at) => combinations(items.slice(at + 1), size - 1).map((rest) => [first, ...rest]));
}
