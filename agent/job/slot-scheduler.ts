import type { JobClass, ModelId } from '../../shared/job.ts';
import { planVram } from '../gpu/vram-planner.ts';
import type { VramPlan, VramView, VramWant } from '../gpu/vram-planner.ts';
import type { TurnMemory } from './turn-memory.ts';
import { INTERACTIVE_IN_A_ROW, refreshMemory, rememberEarly, rememberGrant } from './turn-memory.ts';

/** One slot as the choice sees it. */
export type SlotView = {
  slotId: string;
  model: ModelId;
  phase: 'idle' | 'granted' | 'accepted' | 'running';
  /** Failed, degraded GPU, draining, disk full, or asked away by a person: never granted. */
  cannot: boolean;
  /** A job could start without a load or wake. */
  isReady: boolean;
  /** Its server is being loaded, offloaded or released without a job. */
  isMoving: boolean;
  /** A person sent the model away: batch lines do not bring it back. */
  isHeldAway: boolean;
  /** Where its server is, and where its open grant will put it. */
  gpus: readonly string[];
  /** Time to bring the model in: from its present state, or, while it is ready, from the state eviction leaves it in. */
  swapMs: number;
  /** Tokens of the jobs it has, with the time each is expected to run. */
  work: readonly { tokenId: string; expectedMs: number }[];
  /** Expected time to the end of the running job; null where it is not known well enough to grant ahead of it. */
  endsInMs: number | null;
  /** One more job is already granted or accepted behind the running one. */
  hasNext: boolean;
};

/** One line of a session's offer. `wants` has the VRAM its largest job needs on each slot of its model. */
export type LineView = {
  lineId: string;
  sessionId: string;
  tokenId: string;
  model: ModelId;
  class: JobClass;
  /** Jobs left: those granted since the line was sent are subtracted. */
  count: number;
  workMs: number;
  inFlight: number;
  waitingMs: number;
  isDeclined: boolean;
  wants: readonly VramWant[];
};

export type ChoiceView = {
  nowMs: number;
  slots: readonly SlotView[];
  lines: readonly LineView[];
  vram: VramView;
  /** How long before the end of a running job the next one may be granted. */
  leadMs: number;
  /** Shortest turn; the other times of the choice are fractions of it. */
  turnMs: number;
};

export type Grant = {
  slotId: string;
  line: LineView;
  gpus: readonly string[];
  evict: readonly { slotId: string; by: 'offload' | 'release' }[];
  startsInMs: number;
  /** It takes the GPUs from other models. */
  isDue: boolean;
  /** It begins when the running job of the same slot has ended. */
  isLead: boolean;
};

export type Choice = {
  grants: readonly Grant[];
  /** Slots that give no grants because another model is due on their GPUs. */
  closed: ReadonlyMap<string, ModelId>;
  memory: TurnMemory;
  /** Time alone changes the choice then; undefined: only an event does. */
  againInMs: number | undefined;
};

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

/** One run of the choice: the view, and what this run has decided so far. */
type Tick = ChoiceView & {
  memory: TurnMemory;
  readonly grants: Grant[];
  readonly closed: Map<string, ModelId>;
  /** GPUs that run or will run a job, or have a transition under way: jobs_per_gpu is 1, transitions are one at a time. */
  readonly busy: Set<string>;
  /** GPUs that wait for a due model. */
  readonly awaited: Set<string>;
};

function startTick(view: ChoiceView, before: TurnMemory): Tick {
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

/** 2. Turns: who is due, which slots must go, and the one grant once they are idle. */
function grantDue(tick: Tick): void {
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

/** What the lines of a model weigh: work that other hosts are already busy with counts less. */
function demand(tick: Tick, slot: SlotView): number {
  return linesFor(tick, slot).reduce((sum, line) => sum + line.workMs / (line.inFlight + 1), 0);
}

type Due = FitsFor & { mustGo: readonly SlotView[]; isEarly: boolean };

function dueTurnOver(tick: Tick, slot: SlotView): Due | undefined {
  return takeOver(tick, slot, (other) => isTurnOver(tick, other) && !hasReadySibling(tick, slot));
}

/** 2. A person waits: the turn is cut short, at most once per swap time on each GPU. */
function dueEarly(tick: Tick, slot: SlotView): Due | undefined {
  if (hasReadySibling(tick, slot) || !isInteractiveOverdue(tick, slot)) return undefined;
  const found = takeOver(tick, slot, () => true);
  if (found === undefined) return undefined;
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

/** The others that a plan ends or keeps waiting: its victims, what runs on its GPUs, and what would be granted there. */
function inTheWay(tick: Tick, slot: SlotView, plan: FitsFor): SlotView[] {
  return tick.slots.filter(
    (other) =>
      other !== slot &&
      (plan.evict.some((victim) => victim.slotId === other.slotId) ||
        (other.gpus.some((gpu) => plan.gpus.includes(gpu)) && (other.phase !== 'idle' || isInUse(tick, other)))),
  );
}

/** Ready with candidates: the model whose turn it may be. */
function isInUse(tick: Tick, slot: SlotView): boolean {
  return slot.isReady && !slot.cannot && linesFor(tick, slot).length > 0;
}

/** 2. A turn is max(30 s, 3 x swap time). */
function isTurnOver(tick: Tick, slot: SlotView): boolean {
  return turnEndsInMs(tick, slot) <= 0;
}

function turnEndsInMs(tick: Tick, slot: SlotView): number {
  return (tick.memory.turns[slot.slotId] ?? tick.nowMs) + Math.max(tick.turnMs, 3 * slot.swapMs) - tick.nowMs;
}

function hasReadySibling(tick: Tick, slot: SlotView): boolean {
  return tick.slots.some((other) => other !== slot && other.model === slot.model && other.isReady && !other.cannot);
}

/** 2. An interactive line has waited max(10 s, swap / 4): 10 s is a third of the shortest turn. */
function isInteractiveOverdue(tick: Tick, slot: SlotView): boolean {
  return linesFor(tick, slot).some((line) => line.class === 'interactive' && line.waitingMs >= patienceMs(tick, slot));
}

function patienceMs(tick: Tick, slot: SlotView): number {
  return Math.max(tick.turnMs / 3, slot.swapMs / 4);
}

/** Its job could start without anybody's leaving: it is a plain candidate, even while its GPU is busy. */
function isInPlace(tick: Tick, slot: SlotView): boolean {
  return slot.isReady && fitFor(tick, slot, { without: new Set() })?.evict.length === 0;
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
  return a.isReady ? byFairness(tick)(lineA, lineB) : demand(tick, b) - demand(tick, a);
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

type FitsFor = { line: LineView; gpus: readonly string[]; evict: Grant['evict'] };

/** The first line, in the order of rule 3, whose plan fits when the GPUs of `without` are left out. */
function fitFor(
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
function linesFor(tick: Tick, slot: SlotView): LineView[] {
  const lines = tick.lines.filter(
    (line) =>
      line.model === slot.model &&
      !line.isDeclined &&
      line.count > tick.grants.filter((each) => each.line.lineId === line.lineId).length &&
      !(slot.isHeldAway && line.class === 'batch'),
  );
  const first: JobClass = (tick.memory.streaks[slot.model] ?? 0) >= INTERACTIVE_IN_A_ROW ? 'batch' : 'interactive';
  return lines.sort((a, b) => Number(b.class === first) - Number(a.class === first) || byFairness(tick)(a, b));
}

/** 3. The token with the fewest served ms, its running jobs included; then its sessions in turn; then who waits longest. */
function byFairness(tick: Tick): (a: LineView, b: LineView) => number {
  const servedMs = (tokenId: string): number => {
    const running = tick.slots.flatMap((slot) => slot.work).filter((work) => work.tokenId === tokenId);
    const granted = tick.grants.filter((each) => each.line.tokenId === tokenId);
    return (
      (tick.memory.servedMs[tokenId] ?? 0) +
      running.reduce((sum, work) => sum + work.expectedMs, 0) +
      granted.reduce((sum, each) => sum + each.line.workMs / each.line.count, 0)
    );
  };
  const turn = (line: LineView): number => tick.memory.lastGrant[line.sessionId] ?? 0;
  return (a, b) => servedMs(a.tokenId) - servedMs(b.tokenId) || turn(a) - turn(b) || b.waitingMs - a.waitingMs;
}

function isOpen(slot: SlotView): boolean {
  return slot.phase === 'idle' && !slot.cannot && !slot.isMoving;
}

function isGranted(tick: Tick, slot: SlotView): boolean {
  return tick.grants.some((each) => each.slotId === slot.slotId);
}

function grant(tick: Tick, found: FitsFor & Pick<Grant, 'startsInMs' | 'isDue' | 'isLead'> & { slot: SlotView }): void {
  const { slot, line, gpus, evict, startsInMs, isDue, isLead } = found;
  const doesBatchWait = linesFor(tick, slot).some((each) => each.class === 'batch');
  tick.memory = rememberGrant(tick.memory, {
    slotId: slot.slotId,
    model: slot.model,
    class: line.class,
    sessionId: line.sessionId,
    doesBatchWait,
  });
  tick.grants.push({ slotId: slot.slotId, line, gpus, evict, startsInMs, isDue, isLead });
  for (const gpu of gpus) tick.busy.add(gpu);
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
