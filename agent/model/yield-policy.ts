import { isIdle, planVram } from '../gpu/vram-planner.ts';
import type { Eviction, GpuRoom, VramView } from '../gpu/vram-planner.ts';

/** What the policy remembers from one look to the next. Plain data; only `whatToYield` makes a new one. */
export type YieldMemory = {
  /** Per GPU: what programs that are not ours held there when there was last room above the reserve. */
  calmMiB: Readonly<Record<string, number>>;
  /** Per slot: how often it had to go lately, and when that was. */
  gone: Readonly<Record<string, { times: number; atMs: number }>>;
};

export const CALM: YieldMemory = { calmMiB: {}, gone: {} };

export type YieldFacts = {
  nowMs: number;
  view: VramView;
  /** Per GPU: what programs that are not ours hold there, by name. */
  foreignMiB: Readonly<Record<string, number>>;
};

/** One GPU on which our idle servers make way. `holdMs`: so long batch work does not bring that model back. */
export type Yielding = {
  uuid: string;
  /** By which the other programs have grown. */
  grownMiB: number;
  /** Missing up to the reserve. */
  shortMiB: number;
  evict: readonly (Eviction & { holdMs: number })[];
};

/** Less growth than this is the coming and going of contexts. */
const NOISE_MIB = 64;
/** Frees so much more than is missing, or every few MiB that the other program takes would cost one more model. */
const MARGIN_MIB = 512;
/** Batch work waits a minute, and twice as long each time that the model had to go again within ten minutes. */
const HOLD_MS = 60_000;
const LONGEST_HOLD_MS = 600_000;

/**
 * PURE. Which idle servers make way for programs that are not ours, with `yield_to_foreign`. A GPU is pressed when less
 * than its reserve is free and another program has grown there since there was last room. Then as many idle ones go as bring
 * back the reserve and a margin, least regret first, by offload where host RAM allows; where not even all of them bring it
 * back, all go, and what is left of offloaded ones goes last. Never a busy or pinned one.
 * Nothing comes back by itself while it lasts: what would not leave the reserve does not fit. A batch job waits for the hold
 * besides, so that a program whose memory goes up and down does not move a model each time.
 */
export function whatToYield(facts: YieldFacts, memory: YieldMemory): { yields: Yielding[]; memory: YieldMemory } {
  const calmMiB: Record<string, number> = { ...memory.calmMiB };
  const gone = Object.fromEntries(
    Object.entries(memory.gone).filter(([, { atMs }]) => facts.nowMs - atMs < 2 * LONGEST_HOLD_MS),
  );
  const yields: Yielding[] = [];
  for (const gpu of facts.view.gpus) {
    if (!gpu.usable || gpu.isOut) continue;
    const foreignMiB = facts.foreignMiB[gpu.uuid] ?? 0;
    const shortMiB = gpu.reserveMiB - gpu.freeMiB;
    const before = calmMiB[gpu.uuid];
    if (shortMiB <= 0 || before === undefined) {
      calmMiB[gpu.uuid] = foreignMiB;
      continue;
    }
    if (foreignMiB <= before + NOISE_MIB) continue; // our own jobs need more than was thought
    const taken = yields.flatMap(({ evict }) => evict.map(({ slotId }) => slotId));
    const residents = facts.view.residents.filter(({ slotId }) => !taken.includes(slotId));
    const evict = evictions(gpu, { ...facts.view, residents }).map((eviction) => {
      const last = gone[eviction.slotId];
      const isAgain = last !== undefined && facts.nowMs - last.atMs < LONGEST_HOLD_MS;
      const times = isAgain ? last.times + 1 : 1;
      gone[eviction.slotId] = { times, atMs: facts.nowMs };
      return { ...eviction, holdMs: Math.min(LONGEST_HOLD_MS, HOLD_MS * 2 ** (times - 1)) };
    });
    yields.push({ uuid: gpu.uuid, grownMiB: foreignMiB - before, shortMiB, evict });
  }
  return { yields, memory: { calmMiB, gone } };
}

function evictions({ uuid }: GpuRoom, view: VramView): readonly Eviction[] {
  const plan = planVram({ slotId: '', needMiB: MARGIN_MIB, gpuCount: 1, onGpus: [uuid] }, view);
  if (plan.kind === 'fits') return plan.evict;
  const idle = view.residents.filter((resident) => isIdle(resident) && resident.gpus.includes(uuid));
  const ready = idle.filter(({ state }) => state === 'ready');
  let ramMiB = view.hostRamFreeMiB;
  return (ready.length > 0 ? ready : idle).map(({ slotId, state, canOffload, heldMiB, offloadedMiB }) => {
    const toRamMiB = heldMiB - offloadedMiB;
    const isOffload = state === 'ready' && canOffload && toRamMiB > 0 && toRamMiB <= ramMiB;
    if (isOffload) ramMiB -= toRamMiB;
    return { slotId, by: isOffload ? 'offload' : 'release' };
  });
}
