import { link, open, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { partPath } from './image-file.ts';

/**
 * Writes a text beside the images, once: a file of that name that is already there stays as it is, because the same name
 * means the same batch. Returns its path.
 */
export async function writeOnce(o: { directory: string; name: string; text: string }): Promise<string> {
  const target = join(o.directory, o.name);
  const part = partPath(o.directory);
  const file = await open(part, 'wx');
  try {
    await file.writeFile(o.text);
    await file.sync();
    await file.close();
    await link(part, target);
  } catch (error) {
    const isThere = error instanceof Error && 'code' in error && error.code === 'EEXIST';
    if (!isThere) throw error;
  } finally {
    await unlink(part);
  }
  return target;
}
