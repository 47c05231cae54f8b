import type { JobClass } from '../../shared/job.ts';

/** What the choice remembers from one time to the next. Plain data; only the functions of this file change it, by copying. */
export type TurnMemory = {
  /** When the model of a slot became ready: the start of its turn. */
  turns: Readonly<Record<string, number>>;
  /** Slots whose model is due, in order. One that is due early stays due until it has its grant or nobody waits. */
  due: readonly { slotId: string; isEarly: boolean }[];
  /** Per GPU: when a turn was last cut short; once granted, when the model it was cut for will be ready. */
  earlyAt: Readonly<Record<string, number>>;
  /** Models whose grant was declined or expired while they were due: not due again before this time. */
  notDueUntilMs: Readonly<Record<string, number>>;
  /** Interactive grants in a row while batch work of the same model waited. */
  streaks: Readonly<Record<string, number>>;
  /** Run time each present token got. Loads are not charged: whoever comes first would pay for all. */
  servedMs: Readonly<Record<string, number>>;
  /** The same for each present session, so that those of one token share its time. */
  sessionMs: Readonly<Record<string, number>>;
};

export const EMPTY_MEMORY: TurnMemory = {
  turns: {},
  due: [],
  earlyAt: {},
  notDueUntilMs: {},
  streaks: {},
  servedMs: {},
  sessionMs: {},
};

/** At most this many interactive grants in a row while batch work of the same model waits. */
export const INTERACTIVE_IN_A_ROW = 3;

/**
 * Brings the memory up to the present: turns of slots that are ready, tokens and sessions that are there.
 * One that comes (back) starts at the lowest of those present, so that neither a long absence nor a long past counts.
 */
export function refreshMemory(
  memory: TurnMemory,
  now: { nowMs: number; ready: readonly string[]; tokens: ReadonlySet<string>; sessions: ReadonlySet<string> },
): TurnMemory {
  return {
    ...memory,
    turns: Object.fromEntries(now.ready.map((slotId) => [slotId, memory.turns[slotId] ?? now.nowMs])),
    notDueUntilMs: Object.fromEntries(
      Object.entries(memory.notDueUntilMs).filter(([, untilMs]) => untilMs > now.nowMs),
    ),
    servedMs: levelled(memory.servedMs, now.tokens),
    sessionMs: levelled(memory.sessionMs, now.sessions),
  };
}

/** After a grant: the streak of its model. */
export function rememberGrant(
  memory: TurnMemory,
  grant: { slotId: string; model: string; class: JobClass; doesBatchWait: boolean },
): TurnMemory {
  const streak = grant.class === 'interactive' && grant.doesBatchWait ? (memory.streaks[grant.model] ?? 0) + 1 : 0;
  return {
    ...memory,
    due: memory.due.filter((due) => due.slotId !== grant.slotId),
    streaks: { ...memory.streaks, [grant.model]: streak },
  };
}

/** An interactive line cut a turn short on these GPUs. */
export function rememberEarly(memory: TurnMemory, gpus: readonly string[], atMs: number): TurnMemory {
  return { ...memory, earlyAt: { ...memory.earlyAt, ...Object.fromEntries(gpus.map((gpu) => [gpu, atMs])) } };
}

/** A granted model runs its first job after it took its GPUs from others: now its turn begins. */
export function rememberTurn(memory: TurnMemory, slotId: string, nowMs: number): TurnMemory {
  return { ...memory, turns: { ...memory.turns, [slotId]: nowMs } };
}

/** A job ended: its token and its session pay for what they got. */
export function rememberRun(
  memory: TurnMemory,
  { tokenId, sessionId, runMs }: { tokenId: string; sessionId: string; runMs: number },
): TurnMemory {
  return {
    ...memory,
    servedMs: { ...memory.servedMs, [tokenId]: (memory.servedMs[tokenId] ?? 0) + runMs },
    sessionMs: { ...memory.sessionMs, [sessionId]: (memory.sessionMs[sessionId] ?? 0) + runMs },
  };
}

function levelled(served: Readonly<Record<string, number>>, present: ReadonlySet<string>): Record<string, number> {
  const known = [...present].flatMap((id) => served[id] ?? []);
  const lowest = known.length === 0 ? 0 : Math.min(...known);
  return Object.fromEntries([...present].map((id) => [id, served[id] ?? lowest]));
}

/** The grant of a due model was declined or expired: the closed slots reopen, and it is not due again before `untilMs`. */
export function rememberRefusal(memory: TurnMemory, model: string, untilMs: number): TurnMemory {
  return { ...memory, notDueUntilMs: { ...memory.notDueUntilMs, [model]: untilMs } };
}
