import { randomUUID } from 'node:crypto';
import { open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { AppError } from '../../shared/errors.ts';

/** The file is there whole or not at all, also after a power cut: temp file, fsync, rename, fsync of the directory. */
export async function writeDurable(path: string, bytes: Buffer | string): Promise<void> {
  const temp = `${path}.${randomUUID()}.part`;
  try {
    const file = await open(temp, 'wx', 0o600);
    try {
      await file.writeFile(bytes);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temp, path);
    await syncDirectory(dirname(path));
  } catch (error) {
    await rm(temp, { force: true });
    throw toDiskError(error, path);
  }
}

/** Makes what was created, renamed or deleted in a directory survive a power cut. Windows cannot, and needs no call. */
export async function syncDirectory(path: string): Promise<void> {
  if (process.platform === 'win32') return;
  const directory = await open(path, 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

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
