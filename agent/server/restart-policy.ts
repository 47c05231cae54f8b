/** Failures of one server since it last ran well, oldest first. `isStart`: it failed before it was ready. */
export type Failures = readonly { atMs: number; isStart: boolean }[];

const MAX_STARTS = 3;
const WINDOW_MS = 15 * 60_000;
const MAX_DELAY_MS = 60_000;
const JITTER = 0.25;
/** So long in `ready`, and what was before no longer counts. */
const FORGIVEN_AFTER_MS = 10 * 60_000;
/** Of the shell and of sysexits(3): a bad configuration, a program that cannot be run, one that is not there. */
const FATAL_EXITS: readonly (number | null)[] = [78, 126, 127];

/**
 * When to start again after the last of `failures`: 2, 4, 8 ... 60 s with jitter, or never after three failed starts in
 * 15 minutes and at once for a cause that another start cannot mend. `random` in [0, 1) is the caller's.
 */
export function retryAfter(
  failures: Failures,
  { isFatal, random, firstMs }: { isFatal: boolean; random: number; firstMs: number },
): { atMs: number } | 'never' {
  const last = failures.at(-1);
  if (isFatal || last === undefined) return 'never';
  const starts = failures.filter(({ atMs, isStart }) => isStart && last.atMs - atMs < WINDOW_MS);
  if (last.isStart && starts.length >= MAX_STARTS) return 'never';
  const delayMs = Math.min(MAX_DELAY_MS, firstMs * 2 ** Math.min(20, failures.length - 1));
  return { atMs: last.atMs + delayMs * (1 - JITTER + 2 * JITTER * random) };
}

/** The failures that still count once a server has been ready for `readyMs`. */
export function afterReady(failures: Failures, readyMs: number): Failures {
  return readyMs >= FORGIVEN_AFTER_MS ? [] : failures;
}

/** A start that ended so would end so again. What else is fatal, its engine knows. */
export function isFatalExit(exitCode: number | null): boolean {
  return FATAL_EXITS.includes(exitCode);
}
