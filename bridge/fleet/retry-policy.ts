import type { JobError } from '../../shared/job.ts';
import type { Attempt } from './job-record.ts';

/** Attempts of one job that may fail. Those that were refused, or lost with their host, are not counted. */
export const MAX_FAILURES = 3;

type Failure = { host: string; error: JobError; serverDied: boolean };

/** What becomes of a job whose attempt failed. `capable` are the hosts that could take it now. */
export function afterFailure(
  attempts: readonly Attempt[],
  capable: readonly string[],
): { kind: 'again' } | { kind: 'failed'; error: JobError } {
  const failures = failuresOf(attempts);
  const last = failures.at(-1);
  if (last === undefined) return { kind: 'again' };
  const deaths = failures.filter(({ serverDied }) => serverDied);
  if (deaths.length >= 2 && (hostsOf(deaths).length >= 2 || !hasOther(capable, hostsOf(deaths)))) {
    return { kind: 'failed', error: quarantined(deaths) };
  }
  if (!last.error.retryable || failures.length >= MAX_FAILURES) {
    return { kind: 'failed', error: withAttempts(last, failures) };
  }
  return { kind: 'again' };
}

/**
 * Hosts that must not get the next attempt, as long as another can: where it did not fit or killed its server, and, for
 * the last attempt, the one host on which all others failed.
 */
export function hostsToAvoid(attempts: readonly Attempt[], capable: readonly string[]): string[] {
  const failures = failuresOf(attempts);
  const bad = failures
    .filter(({ error, serverDied }) => serverDied || error.code === 'GPU_OUT_OF_MEMORY')
    .map(({ host }) => host);
  const tried = hostsOf(failures);
  const isLast = failures.length === MAX_FAILURES - 1;
  const avoid = [...new Set([...bad, ...(isLast && tried.length === 1 ? tried : [])])];
  return hasOther(capable, avoid) ? avoid : [];
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
