import { link, lstat, open, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { errorCode } from '../../shared/errors.ts';
import { syncDirectory } from '../../shared/durable-file.ts';
import { NO_LINKS, partPath, renameIfFree } from './image-file.ts';

/**
 * Writes a text beside the images, once, whole and durable: a file of that name that is already there stays as it is,
 * because the same name means the same batch. Returns its path.
 */
export async function writeOnce(o: { directory: string; name: string; text: () => string }): Promise<string> {
  const target = join(o.directory, o.name);
  if ((await lstat(target).catch(() => undefined)) !== undefined) return target;
  const part = partPath(o.directory);
  try {
    await writeSynced(part, o.text());
    await link(part, target);
  } catch (error) {
    const code = errorCode(error) ?? '';
    if (NO_LINKS.has(code)) renameIfFree(part, target);
    else if (code !== 'EEXIST') throw error;
  } finally {
    await unlink(part).catch(() => undefined); // it may never have been made, or has its final name by now
  }
  await syncDirectory(o.directory);
  return target;
}

async function writeSynced(path: string, text: string): Promise<void> {
  const file = await open(path, 'wx');
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
}
