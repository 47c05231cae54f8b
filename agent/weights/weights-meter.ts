/** What is known of a download at one moment. */
export type Meter = {
  startedMs: number;
  atMs: number;
  doneMiB: number;
  mibPerSecond: number | null;
  /** When the last byte arrived, or the watching began. */
  grewAtMs: number;
};

/** Bursts of several files at once and pauses between them even out over this time. */
const SMOOTH_MS = 10_000;
/** Nothing is said of the rate before. */
const FIRST_RATE_MS = 2_000;

/** PURE. The first look: what is there already did not arrive in this moment. */
export function startMeter(doneMiB: number, nowMs: number): Meter {
  return { startedMs: nowMs, atMs: nowMs, doneMiB, mibPerSecond: null, grewAtMs: nowMs };
}

/** The next look. A file that is moved from one name to another may be missing for a moment: nothing goes back. */
export function readMeter(before: Meter, { doneMiB, nowMs }: { doneMiB: number; nowMs: number }): Meter {
  const dtMs = nowMs - before.atMs;
  if (dtMs <= 0) return before;
  const grownMiB = Math.max(0, doneMiB - before.doneMiB);
  const now = (grownMiB / dtMs) * 1000;
  const weight = before.mibPerSecond === null ? 1 : 1 - Math.exp(-dtMs / SMOOTH_MS);
  const rate = (before.mibPerSecond ?? 0) * (1 - weight) + now * weight;
  return {
    ...before,
    atMs: nowMs,
    doneMiB: before.doneMiB + grownMiB,
    mibPerSecond: before.mibPerSecond === null && grownMiB === 0 ? null : rate,
    grewAtMs: grownMiB > 0 ? nowMs : before.grewAtMs,
  };
}

/** Rate and time left as far as they can be said. */
export function forecast(
  { startedMs, atMs, doneMiB, mibPerSecond }: Meter,
  totalMiB: number | null,
): { mibPerSecond: number | null; leftMs: number | null } {
  if (mibPerSecond === null || atMs - startedMs < FIRST_RATE_MS) return { mibPerSecond: null, leftMs: null };
  if (totalMiB === null || mibPerSecond <= 0) return { mibPerSecond, leftMs: null };
  return { mibPerSecond, leftMs: (Math.max(0, totalMiB - doneMiB) / mibPerSecond) * 1000 };
}
