import type { ModelId } from '../../shared/job.ts';
import type { SlotView } from './choice.ts';
import type { FitsFor, Tick } from './choice-tick.ts';
import {
  demand,
  fitFor,
  grant,
  hasReadySibling,
  inTheWay,
  isInPlace,
  isInUse,
  isOpen,
  linesFor,
} from './choice-tick.ts';
import { rememberEarly } from './turn-memory.ts';

/** PURE. 2. Turns: who is due, which slots must go, and the one grant once they are idle. */
export function grantDue(tick: Tick): void {
  const due: { slotId: string; isEarly: boolean }[] = [];
  const models = new Set<ModelId>();
  for (const slot of dueOrder(tick)) {
    if (models.has(slot.model)) continue;
    const found = dueTurnOver(tick, slot) ?? dueEarly(tick, slot);
    if (found === undefined) continue;
    models.add(slot.model);
    for (const other of found.mustGo) tick.closed.set(other.slotId, slot.model);
    // 4. Victims are closed and the GPUs are taken in the same tick, granted or not.
    for (const gpu of found.gpus) tick.awaited.add(gpu);
    const isFree =
      found.mustGo.every((other) => other.phase === 'idle') && !found.gpus.some((gpu) => tick.busy.has(gpu));
    // The next turn is cut short no earlier than one swap time after this model is ready: half of the time, work is done.
    if (found.isEarly && isFree) tick.memory = rememberEarly(tick.memory, found.gpus, tick.nowMs + slot.swapMs);
    else if (found.isEarly && !isDueEarly(tick, slot)) tick.memory = rememberEarly(tick.memory, found.gpus, tick.nowMs);
    if (isFree) grant(tick, { slot, ...found, startsInMs: slot.swapMs, isDue: true, isLead: false });
    else due.push({ slotId: slot.slotId, isEarly: found.isEarly });
  }
  tick.memory = { ...tick.memory, due };
}

/** Idle slots that cannot start where things are: those already due first, then waiting people, then most work per worker. */
function dueOrder(tick: Tick): SlotView[] {
  const rank = (slot: SlotView): number => {
    if (tick.memory.due.some((due) => due.slotId === slot.slotId)) return 0;
    return isInteractiveOverdue(tick, slot) ? 1 : 2;
  };
  return tick.slots
    .filter((slot) => isOpen(slot) && (tick.memory.notDueUntilMs[slot.model] ?? 0) <= tick.nowMs)
    .filter((slot) => linesFor(tick, slot).length > 0 && !isInPlace(tick, slot))
    .sort((a, b) => rank(a) - rank(b) || demand(tick, b) - demand(tick, a));
}

function isDueEarly(tick: Tick, slot: SlotView): boolean {
  return tick.memory.due.some((due) => due.slotId === slot.slotId && due.isEarly);
}

type Due = FitsFor & { mustGo: readonly SlotView[]; isEarly: boolean };

function dueTurnOver(tick: Tick, slot: SlotView): Due | undefined {
  return takeOver(tick, slot, (other) => isTurnOver(tick, other) && !hasReadySibling(tick, slot));
}

/** 2. A person waits: the turn is cut short, at most once per swap time on each GPU. */
function dueEarly(tick: Tick, slot: SlotView): Due | undefined {
  if (hasReadySibling(tick, slot) || !isInteractiveOverdue(tick, slot)) return undefined;
  const found = takeOver(tick, slot, () => true);
  if (found === undefined || (!isDueEarly(tick, slot) && isWorthFinishing(tick, slot, found.mustGo))) return undefined;
  const isTooSoon = found.gpus.some((gpu) => tick.nowMs - (tick.memory.earlyAt[gpu] ?? -Infinity) < slot.swapMs);
  return isTooSoon && !isDueEarly(tick, slot) ? undefined : { ...found, isEarly: true };
}

/**
 * The plan for a slot if everything that may go were idle. A model with candidates may go only when `mayGo` says so; one
 * without candidates always may. undefined: it does not fit even then, or it would take nothing from anyone.
 */
function takeOver(tick: Tick, slot: SlotView, mayGo: (other: SlotView) => boolean): Due | undefined {
  const isStaying = (other: SlotView): boolean =>
    other.phase === 'granted' ||
    other.phase === 'accepted' ||
    other.isMoving ||
    (isInUse(tick, other) && (other.model === slot.model || !mayGo(other)));
  const staying = tick.slots.filter((other) => other !== slot && isStaying(other));
  const granted = tick.grants.flatMap((each) => each.gpus);
  const found = fitFor(tick, slot, {
    without: new Set([...tick.awaited, ...granted, ...staying.flatMap((other) => other.gpus)]),
    areAllIdle: true,
  });
  if (found === undefined) return undefined;
  const mustGo = inTheWay(tick, slot, found);
  return mustGo.length === 0 ? undefined : { ...found, mustGo, isEarly: false };
}

/**
 * What is left of their work takes less time than to bring them back for it. Counts for so long only, from when the person
 * became impatient or they became ready: work that keeps coming would make it true for ever.
 */
function isWorthFinishing(tick: Tick, slot: SlotView, others: readonly SlotView[]): boolean {
  const inUse = others.filter((other) => isInUse(tick, other));
  const leftMs = inUse.flatMap((other) => linesFor(tick, other)).reduce((sum, line) => sum + line.workMs, 0);
  const backMs = inUse.reduce((sum, other) => sum + other.swapMs, 0);
  const readyMs = Math.min(...inUse.map((other) => tick.nowMs - (tick.memory.turns[other.slotId] ?? tick.nowMs)));
  return leftMs < backMs && (impatientMs(tick, slot) < backMs || readyMs < backMs);
}

/** How long the first person has waited beyond their patience; below 0 while they are patient. */
function impatientMs(tick: Tick, slot: SlotView): number {
  const people = linesFor(tick, slot).filter((line) => line.class === 'interactive');
  return Math.max(...people.map((line) => line.waitingMs)) - patienceMs(tick, slot);
}

/** 2. A turn is max(30 s, 3 x swap time). */
function isTurnOver(tick: Tick, slot: SlotView): boolean {
  return turnEndsInMs(tick, slot) <= 0;
}

/** Time until the turn of a ready model is over; negative once it is. */
export function turnEndsInMs(tick: Tick, slot: SlotView): number {
  return (tick.memory.turns[slot.slotId] ?? tick.nowMs) + Math.max(tick.turnMs, 3 * slot.swapMs) - tick.nowMs;
}

/** 2. An interactive line has waited max(10 s, swap / 4): 10 s is a third of the shortest turn. */
function isInteractiveOverdue(tick: Tick, slot: SlotView): boolean {
  return impatientMs(tick, slot) >= 0;
}

/** So long an interactive line waits before it is due early. */
export function patienceMs(tick: Tick, slot: SlotView): number {
  return Math.max(tick.turnMs / 3, slot.swapMs / 4);
}
