import type { JobClass, ModelId } from '../../shared/job.ts';
import { planVram } from '../gpu/vram-planner.ts';
import type { VramPlan, VramView } from '../gpu/vram-planner.ts';
import type { ChoiceView, Grant, LineView, SlotView } from './choice.ts';
import type { TurnMemory } from './turn-memory.ts';
import { INTERACTIVE_IN_A_ROW, refreshMemory, rememberGrant } from './turn-memory.ts';

/** PURE. One run of the choice: the view, and what this run has decided so far. */
export type Tick = ChoiceView & {
  memory: TurnMemory;
  readonly grants: Grant[];
  readonly closed: Map<string, ModelId>;
  /** GPUs that run or will run a job, or have a transition under way: jobs_per_gpu is 1, transitions are one at a time. */
  readonly busy: Set<string>;
  /** GPUs that wait for a due model. */
  readonly awaited: Set<string>;
};

/** Nothing is decided yet; what runs, or is on its way somewhere, keeps its GPUs. */
export function startTick(view: ChoiceView, before: TurnMemory): Tick {
  const memory = refreshMemory(before, {
    nowMs: view.nowMs,
    ready: view.slots.filter((slot) => slot.isReady).map((slot) => slot.slotId),
    tokens: new Set([...view.lines, ...view.slots.flatMap((slot) => slot.work)].map((each) => each.tokenId)),
    sessions: new Set(view.lines.map((line) => line.sessionId)),
  });
  const busy = new Set(
    view.slots.filter((slot) => slot.phase !== 'idle' || slot.isMoving).flatMap((slot) => slot.gpus),
  );
  return { ...view, memory, grants: [], closed: new Map(), busy, awaited: new Set() };
}

/** Decides a grant: its GPUs are taken from now on, and its line has one job less. */
export function grant(
  tick: Tick,
  found: FitsFor & Pick<Grant, 'startsInMs' | 'isDue' | 'isLead'> & { slot: SlotView },
): void {
  const { slot, line, gpus, evict, startsInMs, isDue, isLead } = found;
  const doesBatchWait = linesFor(tick, slot).some((each) => each.class === 'batch');
  tick.memory = rememberGrant(tick.memory, {
    slotId: slot.slotId,
    model: slot.model,
    class: line.class,
    doesBatchWait,
  });
  tick.grants.push({ slotId: slot.slotId, line, gpus, evict, startsInMs, isDue, isLead });
  for (const gpu of gpus) tick.busy.add(gpu);
}

/** What a slot could be granted: a line, the GPUs, and who has to go. */
export type FitsFor = { line: LineView; gpus: readonly string[]; evict: Grant['evict'] };

/** The first line, in the order of rule 3, whose plan fits when the GPUs of `without` are left out. */
export function fitFor(
  tick: Tick,
  slot: SlotView,
  { without, areAllIdle }: { without: ReadonlySet<string>; areAllIdle?: boolean },
): FitsFor | undefined {
  const vram: VramView = {
    ...tick.vram,
    gpus: tick.vram.gpus.map((gpu) => (without.has(gpu.uuid) ? { ...gpu, usable: false } : gpu)),
    residents: areAllIdle ? tick.vram.residents.map((each) => ({ ...each, inFlight: 0 })) : tick.vram.residents,
  };
  for (const line of linesFor(tick, slot)) {
    const want = line.wants.find((each) => each.slotId === slot.slotId);
    const plan: VramPlan | undefined = want && planVram(want, vram);
    if (plan?.kind !== 'fits') continue;
    const gpus = [...new Set([...plan.gpus, ...slot.gpus])];
    if (!gpus.some((gpu) => without.has(gpu))) return { line, gpus, evict: plan.evict };
  }
  return undefined;
}

/** 3. Lines of the slot's model: interactive first but 3 in a row at most while batch waits, then by fairness. */
export function linesFor(tick: Tick, slot: SlotView): LineView[] {
  const lines = tick.lines.filter(
    (line) =>
      line.model === slot.model &&
      !line.isDeclined &&
      line.count > tick.grants.filter((each) => each.line.lineId === line.lineId).length &&
      !(slot.isHeldAway && line.class === 'batch'),
  );
  const fairness = byFairness(tick, lines);
  const first: JobClass = (tick.memory.streaks[slot.model] ?? 0) >= INTERACTIVE_IN_A_ROW ? 'batch' : 'interactive';
  return lines.sort((a, b) => Number(b.class === first) - Number(a.class === first) || fairness(a, b));
}

/**
 * 3. The token that has had the least run time, its jobs on the slots included; then the session; then by turns. Who is
 * behind by less than half a job is level: only so can hosts, which know nothing of each other, differ in whom they
 * serve first. If all began with the same one, it would be ahead by a job on each of them again and again.
 */
export function byFairness(tick: Tick, lines: readonly LineView[]): (a: LineView, b: LineView) => number {
  const token = excessMs(tick, { lines, of: 'tokenId', served: tick.memory.servedMs });
  const session = excessMs(tick, { lines, of: 'sessionId', served: tick.memory.sessionMs });
  const turn = turnOf(lines);
  return (a, b) => token(a) - token(b) || session(a) - session(b) || turn(a) - turn(b) || b.waitingMs - a.waitingMs;
}

/** How much more than half a job each has had than the one that has had the least. */
function excessMs(
  tick: Tick,
  o: { lines: readonly LineView[]; of: 'tokenId' | 'sessionId'; served: Readonly<Record<string, number>> },
): (line: LineView) => number {
  const had = new Map(Object.entries(o.served));
  const add = (id: string, ms: number): void => void had.set(id, (had.get(id) ?? 0) + ms);
  for (const { work } of tick.slots) for (const each of work) add(each[o.of], each.expectedMs);
  for (const { line } of tick.grants) add(line[o.of], jobMs(line));
  const hadMs = (line: LineView): number => had.get(line[o.of]) ?? 0;
  const leastMs = Math.min(...o.lines.map(hadMs));
  const levelMs = o.lines.reduce((sum, line) => sum + jobMs(line), 0) / o.lines.length / 2;
  return (line) => Math.max(0, hadMs(line) - leastMs - levelMs);
}

/** Bridges in one order on all hosts, but each host begins with another one: the first bridge's rank for it says with which. */
function turnOf(lines: readonly LineView[]): (line: LineView) => number {
  const bridges = [...new Set(lines.map(({ bridgeId }) => bridgeId))].sort();
  const rank = lines.find(({ bridgeId }) => bridgeId === bridges[0])?.rank ?? 0;
  return ({ bridgeId }) => (bridges.indexOf(bridgeId) + rank) % bridges.length;
}

function jobMs({ workMs, count }: LineView): number {
  return count > 0 ? workMs / count : 0;
}

/** What the lines of a model weigh: work that other hosts are already busy with counts less. */
export function demand(tick: Tick, slot: SlotView): number {
  return linesFor(tick, slot).reduce((sum, line) => sum + line.workMs / (line.inFlight + 1), 0);
}

/** It could be granted, as far as the slot itself goes. */
export function isOpen(slot: SlotView): boolean {
  return slot.phase === 'idle' && !slot.cannot && !slot.isMoving;
}

export function isGranted(tick: Tick, slot: SlotView): boolean {
  return tick.grants.some((each) => each.slotId === slot.slotId);
}

/** Ready with candidates: the model whose turn it may be. */
export function isInUse(tick: Tick, slot: SlotView): boolean {
  return slot.isReady && !slot.cannot && linesFor(tick, slot).length > 0;
}

/** Its job could start without anybody's leaving: it is a plain candidate, even while its GPU is busy. */
export function isInPlace(tick: Tick, slot: SlotView): boolean {
  return slot.isReady && fitFor(tick, slot, { without: new Set() })?.evict.length === 0;
}

/** The others that a plan ends or keeps waiting: its victims, what runs on its GPUs, and what would be granted there. */
export function inTheWay(tick: Tick, slot: SlotView, plan: FitsFor): SlotView[] {
  return tick.slots.filter(
    (other) =>
      other !== slot &&
      (plan.evict.some((victim) => victim.slotId === other.slotId) ||
        (other.gpus.some((gpu) => plan.gpus.includes(gpu)) && (other.phase !== 'idle' || isInUse(tick, other)))),
  );
}

/** Another replica of its model serves already: nobody is evicted for one more. */
export function hasReadySibling(tick: Tick, slot: SlotView): boolean {
  return tick.slots.some((other) => other !== slot && other.model === slot.model && other.isReady && !other.cannot);
}
