import { answerGrant } from '../../../bridge/fleet/batch-plan.ts';
import type { PlanJob, PlanRules, PlanSlot } from '../../../bridge/fleet/batch-plan.ts';

const ANYWHERE: PlanRules = { only: undefined, avoid: [], spread: undefined };

export function planJob(jobId: string, units: number, o: Partial<PlanJob> = {}): PlanJob {
  return { jobId, class: 'batch', units, rules: ANYWHERE, declinedForMs: 0, ...o };
}

/** A host with one slot that does `speed` units of work in a ms. */
export function planSlot(host: string, speed: number, o: Partial<PlanSlot> = {}): PlanSlot {
  const service = { fixedMs: 0, unitMs: 1 / speed, samples: 5 };
  return { host, slotId: host, startsInMs: 0, service, transferMs: 0, isReady: true, crowding: 1, ...o };
}

/**
 * Makespan of one batch by the plan alone, with exact forecasts and messages that take no time: every idle slot is granted
 * when it becomes idle and again, declined or not, at each end of a job. `works` are units, in any order; `order` is that
 * in which idle hosts are granted.
 */
export function planMakespanMs(works: readonly number[], speeds: readonly number[], order: readonly number[]): number {
  let waiting = works.map((units, index) => planJob(`j${index}`, units)).sort((a, b) => b.units - a.units);
  const endsAtMs = speeds.map(() => 0);
  let nowMs = 0;
  for (;;) {
    for (const index of order) {
      if ((endsAtMs[index] ?? 0) > nowMs) continue;
      const slots = speeds.map((speed, n) =>
        planSlot(`h${n}`, speed, { startsInMs: Math.max(0, (endsAtMs[n] ?? 0) - nowMs) }),
      );
      const answer = answerGrant({ host: `h${index}`, slotId: `h${index}`, class: 'batch' }, waiting, slots);
      if (answer.kind === 'decline') continue;
      const units = waiting.find(({ jobId }) => jobId === answer.jobId)?.units ?? 0;
      waiting = waiting.filter(({ jobId }) => jobId !== answer.jobId);
      endsAtMs[index] = nowMs + units / (speeds[index] ?? 1);
    }
    const running = endsAtMs.filter((ms) => ms > nowMs);
    if (running.length === 0) {
      if (waiting.length > 0) throw new Error(`stuck with ${waiting.length} jobs`);
      return nowMs;
    }
    nowMs = Math.min(...running);
  }
}

/** The shortest time in which so many identical jobs can be done: that of the n-th end if no host ever rests. */
export function optimumMs(count: number, { units, speeds }: { units: number; speeds: readonly number[] }): number {
  const ends = speeds.flatMap((speed) => Array.from({ length: count }, (_, k) => ((k + 1) * units) / speed));
  return ends.sort((a, b) => a - b)[count - 1] ?? 0;
}
