import { randomUUID } from 'node:crypto';
import { mkdir, open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';

/** Shares and file systems that cannot sync a directory say so with one of these. */
const CANNOT_SYNC = new Set(['EPERM', 'ENOTSUP', 'EINVAL', 'ENOSYS']);

/**
 * The file is there whole or not at all, also after a power cut: temporary file, fsync, rename, fsync of the directory.
 * Readable by its owner only. Rejects with the system's own error, and leaves nothing behind.
 */
export async function writeDurable(path: string, bytes: Buffer | string): Promise<void> {
  const temporary = `${path}.${randomUUID()}.part`;
  try {
    const file = await open(temporary, 'wx', 0o600);
    try {
      await file.writeFile(bytes);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
    await syncDirectory(dirname(path));
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

/**
 * Makes a directory, with those above it that are missing, so that it survives a power cut: a synced file in a directory
 * whose own name was never synced may be gone.
 */
export async function makeDirectory(path: string, { mode }: { mode?: number } = {}): Promise<void> {
  const first = await mkdir(path, { recursive: true, ...(mode !== undefined && { mode }) });
  if (first === undefined) return; // it was there
  for (let made = path; ; made = dirname(made)) {
    await syncDirectory(dirname(made));
    if (made === first || made === dirname(made)) return;
  }
}

/** Makes what was created, renamed or deleted in a directory survive a power cut. Windows has no such call. */
export async function syncDirectory(path: string): Promise<void> {
  if (process.platform === 'win32') return;
  const directory = await open(path, 'r');
  try {
    await directory.sync();
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && CANNOT_SYNC.has(String(error.code)))) throw error;
  } finally {
    await directory.close();
  }
}
