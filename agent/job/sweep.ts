import { pause } from '../../shared/abort.ts';
import { toAppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { InputStore } from './input-store.ts';
import type { Journal } from './journal.ts';
import type { ResultStore } from './result-store.ts';

const SWEEP_EVERY_MS = 60_000;

/**
 * Deletes what is too old, and results whose end was never journaled because the agent died in between; at once, and then
 * every minute until the signal aborts.
 */
export async function sweep(
  { journal, results, inputs, log }: { journal: Journal; results: ResultStore; inputs: InputStore; log: Log },
  signal: AbortSignal,
): Promise<void> {
  const isWanted = (tokenId: string, jobId: string, attempt: number): boolean => {
    const known = journal.find(tokenId, jobId, attempt);
    return known !== undefined && !known.isAcked && (known.end === undefined || known.end.state === 'done');
  };
  while (!signal.aborted) {
    try {
      await results.sweep(isWanted);
      await inputs.sweep();
      await journal.compact();
    } catch (error) {
      log.warn({ event: 'sweep-failed', reason: toAppError(error).message });
    }
    await pause(SWEEP_EVERY_MS, signal);
  }
}
