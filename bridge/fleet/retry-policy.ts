import type { JobError } from '../../shared/job.ts';
import type { Attempt } from './job-record.ts';

/** Attempts of one job that may fail. Those that were refused, or lost with their host, are not counted. */
export const MAX_FAILURES = 3;

/** Another host may do better, and the same one hardly. */
const MOVES_ON = new Set(['GPU_OUT_OF_MEMORY', 'TIMEOUT']);

type Failure = { host: string; error: JobError; serverDied: boolean };

/** A host that could take a job now, and the VRAM that can be free on one GPU there. */
export type CapableHost = { host: string; roomMiB: number };

/** What becomes of a job whose attempt failed. `capable` are the hosts that could take it now. */
export function afterFailure(
  attempts: readonly Attempt[],
  { capable, largestFree }: { capable: readonly string[]; largestFree: string | undefined },
): { kind: 'again' } | { kind: 'failed'; error: JobError } {
  const failures = failuresOf(attempts);
  const last = failures.at(-1);
  if (last === undefined) return { kind: 'again' };
  const deaths = failures.filter(({ serverDied }) => serverDied);
  if (deaths.length >= 2 && (hostsOf(deaths).length >= 2 || !hasOther(capable, hostsOf(deaths)))) {
    return { kind: 'failed', error: quarantined(deaths) };
  }
  if (!last.error.retryable || failures.length >= MAX_FAILURES) {
    const error = withAttempts(last, failures);
    const isShort = error.code === 'GPU_OUT_OF_MEMORY' && largestFree !== undefined;
    const free = isShort ? ` The largest free VRAM on one GPU of any host is now ${largestFree}.` : '';
    return { kind: 'failed', error: { ...error, message: `${error.message}${free}` } };
  }
  return { kind: 'again' };
}

/**
 * Hosts that must not get the next attempt, as long as another can: where it did not fit, hung or killed its server, and,
 * for the last attempt, the one host on which all others failed. What did not fit goes where there is more VRAM, if anywhere.
 */
export function hostsToAvoid(attempts: readonly Attempt[], able: readonly CapableHost[]): string[] {
  const failures = failuresOf(attempts);
  const bad = failures
    .filter(({ error, serverDied }) => serverDied || MOVES_ON.has(error.code))
    .map(({ host }) => host);
  const tried = hostsOf(failures);
  const isLast = failures.length === MAX_FAILURES - 1;
  const avoid = [...new Set([...bad, ...(isLast && tried.length === 1 ? tried : [])])];
  const capable = able.map(({ host }) => host);
  const larger = [...new Set([...avoid, ...noLarger(failures, able)])];
  if (hasOther(capable, larger)) return larger;
  return hasOther(capable, avoid) ? avoid : [];
}

/** Hosts with no more room than one on which it ran out of memory. */
function noLarger(failures: readonly Failure[], able: readonly CapableHost[]): string[] {
  const short = failures.filter(({ error }) => error.code === 'GPU_OUT_OF_MEMORY').map(({ host }) => host);
  const hadMiB = Math.max(-1, ...able.flatMap(({ host, roomMiB }) => (short.includes(host) ? [roomMiB] : [])));
  return able.filter(({ roomMiB }) => roomMiB <= hadMiB).map(({ host }) => host);
}

function failuresOf(attempts: readonly Attempt[]): Failure[] {
  return attempts.flatMap(({ host, end }) => (end?.kind === 'failed' ? [{ ...end, host }] : []));
}

function hostsOf(failures: readonly Failure[]): string[] {
  return [...new Set(failures.map(({ host }) => host))];
}

function hasOther(capable: readonly string[], hosts: readonly string[]): boolean {
  return capable.some((host) => !hosts.includes(host));
}

function quarantined(deaths: readonly Failure[]): JobError {
  return {
    code: 'QUARANTINED',
    message:
      `The job killed its model server ${deaths.length} times, on ${hostsOf(deaths).join(' and ')}, and is not tried ` +
      `again. The other jobs go on. Change its prompt or size. Last error: ${deaths.at(-1)?.error.message ?? ''}`,
    retryable: false,
  };
}

function withAttempts(last: Failure, failures: readonly Failure[]): JobError {
  const hosts = hostsOf(failures).join(' and ');
  const tried = failures.length === 1 ? `Tried on ${last.host}` : `Tried ${failures.length} times, on ${hosts}`;
  return { ...last.error, message: `${last.error.message} ${tried}.` };
}
