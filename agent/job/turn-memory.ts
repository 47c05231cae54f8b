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
  /** Order number of the last grant of each session, so that the sessions of one token take turns. */
  lastGrant: Readonly<Record<string, number>>;
  grants: number;
};

export const EMPTY_MEMORY: TurnMemory = {
  turns: {},
  due: [],
  earlyAt: {},
  notDueUntilMs: {},
  streaks: {},
  servedMs: {},
  lastGrant: {},
  grants: 0,
};

/** At most this many interactive grants in a row while batch work of the same model waits. */
export const INTERACTIVE_IN_A_ROW = 3;

/**
 * Brings the memory up to the present: turns of slots that are ready, tokens and sessions that are there.
 * A token that comes (back) starts at the lowest of those present, so that neither a long absence nor a long past counts.
 */
export function refreshMemory(
  memory: TurnMemory,
  now: { nowMs: number; ready: readonly string[]; tokens: ReadonlySet<string>; sessions: ReadonlySet<string> },
): TurnMemory {
  const present = [...now.tokens].flatMap((token) => memory.servedMs[token] ?? []);
  const lowest = present.length === 0 ? 0 : Math.min(...present);
  return {
    ...memory,
    turns: Object.fromEntries(now.ready.map((slotId) => [slotId, memory.turns[slotId] ?? now.nowMs])),
    notDueUntilMs: Object.fromEntries(
      Object.entries(memory.notDueUntilMs).filter(([, untilMs]) => untilMs > now.nowMs),
    ),
    servedMs: Object.fromEntries([...now.tokens].map((token) => [token, memory.servedMs[token] ?? lowest])),
    lastGrant: Object.fromEntries(Object.entries(memory.lastGrant).filter(([id]) => now.sessions.has(id))),
  };
}

/** After a grant: the streak of its model, and its session goes to the back. */
export function rememberGrant(
  memory: TurnMemory,
  grant: { slotId: string; model: string; class: JobClass; sessionId: string; doesBatchWait: boolean },
): TurnMemory {
  const streak = grant.class === 'interactive' && grant.doesBatchWait ? (memory.streaks[grant.model] ?? 0) + 1 : 0;
  return {
    ...memory,
    due: memory.due.filter((due) => due.slotId !== grant.slotId),
    streaks: { ...memory.streaks, [grant.model]: streak },
    lastGrant: { ...memory.lastGrant, [grant.sessionId]: memory.grants + 1 },
    grants: memory.grants + 1,
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

/** A job ended: its token pays for what it got. */
export function rememberRun(memory: TurnMemory, token: string, runMs: number): TurnMemory {
  return { ...memory, servedMs: { ...memory.servedMs, [token]: (memory.servedMs[token] ?? 0) + runMs } };
}

/** The grant of a due model was declined or expired: the closed slots reopen, and it is not due again before `untilMs`. */
export function rememberRefusal(memory: TurnMemory, model: string, untilMs: number): TurnMemory {
  return { ...memory, notDueUntilMs: { ...memory.notDueUntilMs, [model]: untilMs } };
}
