import { expect, test } from 'vitest';
import { eventually } from '../helpers/fleet.ts';
import { measureProcessMs } from './machine-speed.ts';
import { FACTOR } from './scale.ts';
import { Standstill } from './standstill.ts';
import type { FaultLine } from './table.ts';

export type FaultRow = {
  /** The fault happens now: what follows is counted from here. */
  injected: () => void;
  /** Waits for an outcome that may take `withinMs` at the times as shipped. */
  sees: <T>(outcome: string, withinMs: number, check: () => Promise<T | undefined>) => Promise<T>;
  /** An outcome that has no time of its own. */
  holds: (outcome: string) => void;
  /** How long the machine stood still since the fault, in ms: nothing of that is the product's. */
  stoodStillMs: () => number;
};

/**
 * One row of the fault matrix: its outcomes are asserted, timed, and shown in the table. `cannot` is what this machine
 * lacks for it; then the table says so.
 */
export function fault(
  id: string,
  what: string,
  run: (row: FaultRow) => Promise<void>,
  { cannot }: { cannot?: string | undefined } = {},
): void {
  test(`${id}: ${what}`, async ({ skip, task }) => {
    const lines: FaultLine[] = (task.meta.faultLines = []);
    const note = (line: Omit<FaultLine, 'id' | 'fault'>): void => void lines.push({ id, fault: what, ...line });
    if (cannot !== undefined) {
      note({ outcome: `not run: ${cannot}`, seenMs: null, boundMs: null });
      skip(cannot);
    }
    let processMs = await measureProcessMs();
    using standstill = new Standstill();
    let injectedMs = performance.now();
    let stillBeforeMs = 0;
    const stoodStillMs = (): number => standstill.ms - stillBeforeMs;
    /**
     * Programs do not start faster for a smaller factor: what they take here and now comes on top, and so does the time
     * in which nothing could happen at all.
     */
    const boundMs = (ms: number): number => ms * FACTOR + processMs + stoodStillMs();
    await run({
      injected: () => {
        injectedMs = performance.now();
        stillBeforeMs = standstill.ms;
      },
      sees: async (outcome, withinMs, check) => {
        // Waits longer than it may take, so that a failure says how late it was, and not only that it was.
        const seen = await eventually(`${id} ${outcome}`, check, 2 * boundMs(withinMs) + 10_000);
        const seenMs = performance.now() - injectedMs;
        // Others may have come to this machine meanwhile.
        if (seenMs > boundMs(withinMs)) processMs = Math.max(processMs, await measureProcessMs());
        note({ outcome, seenMs, boundMs: boundMs(withinMs) });
        expect(seenMs, `${id} ${outcome}: ms after the fault`).toBeLessThanOrEqual(boundMs(withinMs));
        return seen;
      },
      holds: (outcome) => note({ outcome, seenMs: null, boundMs: null }),
      stoodStillMs,
    });
  });
}
