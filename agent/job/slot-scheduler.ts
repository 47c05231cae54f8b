import type { Choice, ChoiceView, SlotView } from './choice.ts';
import type { Tick } from './choice-tick.ts';
import {
  byFairness,
  demand,
  fitFor,
  grant,
  inTheWay,
  isGranted,
  isInPlace,
  isOpen,
  linesFor,
  startTick,
} from './choice-tick.ts';
import { grantDue, patienceMs, turnEndsInMs } from './due-model.ts';
import type { TurnMemory } from './turn-memory.ts';

/**
 * Which slots are granted to which lines now, and which close because an absent model is due. Decisions only: the caller
 * sends the grants and calls again at every offer, decline, expiry, end of a job and end of a transition.
 * The numbers 1 to 4 are the rules of "Choice" in docs/PROTOCOL.md.
 */
export function choose(view: ChoiceView, before: TurnMemory): Choice {
  const tick = startTick(view, before);
  grantDue(tick);
  grantFree(tick);
  grantAhead(tick);
  const closed = new Map([...tick.closed].filter(([slotId]) => !tick.grants.some((grant) => grant.slotId === slotId)));
  return { grants: tick.grants, closed, memory: tick.memory, againInMs: againInMs(tick) };
}

/** 1. Idle slots x lines whose plan fits and takes nothing from anyone, ready models first. */
function grantFree(tick: Tick): void {
  for (;;) {
    const next = tick.slots
      .filter((slot) => isOpen(slot) && !tick.closed.has(slot.slotId) && !isGranted(tick, slot))
      .filter((slot) => !slot.gpus.some((gpu) => tick.busy.has(gpu)))
      .sort((a, b) => byReadiness(tick, a, b))
      .flatMap((slot) => {
        const found = fitFor(tick, slot, { without: new Set([...tick.busy, ...tick.awaited]) });
        if (found === undefined || found.evict.length > 0) return [];
        if (!slot.isReady && inTheWay(tick, slot, found).length > 0) return [];
        return [{ slot, ...found, startsInMs: slot.isReady ? 0 : slot.swapMs, isDue: false, isLead: false }];
      })[0];
    if (next === undefined) return;
    grant(tick, next);
  }
}

function byReadiness(tick: Tick, a: SlotView, b: SlotView): number {
  if (a.isReady !== b.isReady) return a.isReady ? -1 : 1;
  const [lineA, lineB] = [linesFor(tick, a)[0], linesFor(tick, b)[0]];
  if (lineA === undefined || lineB === undefined) return lineA === undefined ? 1 : -1;
  return a.isReady ? byFairness(tick, [lineA, lineB])(lineA, lineB) : demand(tick, b) - demand(tick, a);
}

/** In the last `lead` ms of a running job its slot may have one more, unless someone else could use the GPU. */
function grantAhead(tick: Tick): void {
  for (const slot of tick.slots) {
    if (slot.phase !== 'running' || slot.cannot || slot.hasNext || slot.endsInMs === null) continue;
    if (slot.endsInMs > tick.leadMs || tick.closed.has(slot.slotId)) continue;
    const found = fitFor(tick, slot, { without: tick.awaited });
    if (found === undefined || found.evict.length > 0) continue;
    if (inTheWay(tick, slot, found).some((other) => other.phase !== 'idle' || isInPlace(tick, other))) continue;
    grant(tick, { slot, ...found, startsInMs: slot.endsInMs, isDue: false, isLead: true });
  }
}

/** The nearest moment at which a turn ends, a person has waited long enough, a cool-down is over or a lead begins. */
function againInMs(tick: Tick): number | undefined {
  const waiting = tick.slots.filter(
    (slot) => isOpen(slot) && !isGranted(tick, slot) && linesFor(tick, slot).length > 0,
  );
  const times = [
    ...tick.slots.flatMap((slot) => (slot.endsInMs === null || slot.hasNext ? [] : [slot.endsInMs - tick.leadMs])),
    ...(waiting.length > 0 ? tick.slots.filter((slot) => slot.isReady).map((slot) => turnEndsInMs(tick, slot)) : []),
    ...waiting.map((slot) => (tick.memory.notDueUntilMs[slot.model] ?? 0) - tick.nowMs),
    ...waiting.flatMap((slot) => Object.values(tick.memory.earlyAt).map((atMs) => atMs + slot.swapMs - tick.nowMs)),
    ...waiting.flatMap((slot) =>
      linesFor(tick, slot)
        .filter((line) => line.class === 'interactive')
        .map((line) => patienceMs(tick, slot) - line.waitingMs),
    ),
  ].filter((ms) => ms > 0);
  return times.length === 0 ? undefined : Math.min(...times);
}
