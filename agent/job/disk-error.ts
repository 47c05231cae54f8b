import { dirname } from 'node:path';
import { AppError, errorCode } from '../../shared/errors.ts';

const FULL = new Set(['ENOSPC', 'EDQUOT', 'EFBIG']);

/** Full, read-only and failing disks are one kind of failure to whoever waits for the write: no job can be kept now. */
export function toDiskError(error: unknown, path: string): AppError {
  if (error instanceof AppError) return error;
  const cause = errorCode(error) ?? String(error);
  const [what, next] = FULL.has(cause)
    ? ['Disk full', 'Free space on that disk']
    : [`Disk failure (${cause})`, 'Make it writable, or replace the disk'];
  const message = `${what}: the agent cannot write below ${dirname(path)}. ${next}; the agent goes on by itself.`;
  return new AppError('DISK_FULL', message, { cause: error });
}
