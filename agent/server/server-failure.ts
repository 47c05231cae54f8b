import { setImmediate } from 'node:timers/promises';
import { AppError, toAppError } from '../../shared/errors.ts';
import { settlesWithin } from '../gpu/nvidia-smi.ts';
import type { VramMeasure } from '../gpu/vram-measure.ts';
import type { ServerProcess } from './server-process.ts';
import { describeExit } from './server-process.ts';

/** Between the loss of a connection and the news that the process behind it died. */
const DEATH_NEWS_MS = 2_000;

export type Patient = {
  alias: string;
  /** Undefined where somebody else runs it. */
  process: ServerProcess | undefined;
  /** How long it had. */
  limitMs: number;
  /** It is not the server any more that the request went to, or it is on its way out. */
  isGone: () => boolean;
  isHealthy: () => Promise<boolean>;
  /** Aborts when the agent stops. */
  signal: AbortSignal;
};

/** What a failed request means: the request failed, or its server cannot be used any more and has to be ended. */
export async function explainFailure(
  error: unknown,
  { alias, process, limitMs, isGone, isHealthy, signal }: Patient,
): Promise<{ failure: AppError; cause?: AppError }> {
  if (signal.aborted) return { failure: toAppError(signal.reason, 'INTERRUPTED') };
  if (error instanceof DOMException && error.name === 'TimeoutError') {
    const next =
      process === undefined
        ? 'It may work on it still. Where such jobs take longer, raise `times.job_limit` (`--timeout` of a bridge).'
        : 'It is ended and started anew.';
    const message = `The server of ${alias} did not answer a job within ${Math.round(limitMs / 1000)} s. ${next}`;
    const failure = new AppError('TIMEOUT', message);
    return { failure, cause: failure };
  }
  if (error instanceof AppError && error.code !== 'ENGINE_FAILED' && error.code !== 'GPU_OUT_OF_MEMORY') {
    return { failure: error };
  }
  await deathNews(error, process);
  if (!isGone() && (await isHealthy())) return { failure: toAppError(error, 'ENGINE_FAILED') };
  const how = process?.exit === undefined ? `broke (${words(error)})` : describeExit(process.exit);
  const failure = withLog(died(alias, `${how} while it worked on a job`), (await process?.log.lastLines()) ?? '');
  return { failure, cause: died(alias, how) };
}

/** A cut connection and the exit of its process arrive in any order. Settles when its owner has heard of the exit. */
export async function deathNews(error: unknown, process: ServerProcess | undefined): Promise<void> {
  if (error instanceof AppError || process === undefined) return;
  if (await settlesWithin(process.exited, DEATH_NEWS_MS)) await setImmediate();
}

export function died(alias: string, how: string): AppError {
  return new AppError('MODEL_FAILED', `The server of ${alias} ${how}.`);
}

/** What others may breathe without having anything to do with a failed start. */
const GROWTH_MIB = 256;

/**
 * Whether others took memory on its GPUs while it started: then a start that ran out of memory may go well another time.
 * Where the driver lists no processes, that is what is missing when its own is back.
 */
export function hadForeignGrowth(
  began: VramMeasure | undefined,
  [last, after]: readonly (VramMeasure | undefined)[],
): boolean {
  if (began === undefined) return false;
  const others = [last, after].map((seen) => (seen?.othersMiB ?? 0) - (began.othersMiB ?? Infinity));
  const missingMiB = after === undefined ? 0 : began.freeMiB - after.freeMiB;
  return Math.max(...others, missingMiB) >= GROWTH_MIB;
}

export function withLog(error: AppError, logText: string): AppError {
  if (logText === '') return error;
  return new AppError(error.code, `${error.message} The last lines of its log:\n${logText}`, { cause: error });
}

export function words(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
