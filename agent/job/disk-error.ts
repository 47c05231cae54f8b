import { dirname } from 'node:path';
import { AppError } from '../../shared/errors.ts';

/** Full, read-only and failing disks are one kind of failure to whoever waits for the write: no job can be kept now. */
export function toDiskError(error: unknown, path: string): AppError {
  if (error instanceof AppError) return error;
  const cause = error instanceof Error && 'code' in error ? String(error.code) : String(error);
  return new AppError(
    'DISK_FULL',
    `The agent cannot write below ${dirname(path)} (${cause}). Free space on that disk or make it writable; the agent goes on by itself.`,
    { cause: error },
  );
}
