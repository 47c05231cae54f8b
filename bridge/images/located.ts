import { lstat, readdir, stat } from 'node:fs/promises';
import { basename, dirname, extname, join } from 'node:path';
import { hasContent } from '../fleet/result-fetch.ts';
import type { ImageEntry } from './image-entry.ts';

/** Where an image is now. `moved`: another name or directory, the same bytes. */
export type Located = { kind: 'there' | 'moved'; path: string } | { kind: 'missing' };

/** Directories with more names are not searched, and no more files of the right size than this are read. */
const MOST_NAMES = 5_000;
const MOST_READ = 5;

/**
 * The file of an image, also where the user renamed it or moved it to one of these directories: known again by its size and
 * then its bytes. Nothing below a directory is searched.
 */
export async function locate(entry: ImageEntry, directories: readonly string[]): Promise<Located> {
  if (await isFile(entry.path)) return { kind: 'there', path: entry.path };
  for (const directory of new Set([dirname(entry.path), ...directories])) {
    const path = await findIn(directory, entry);
    if (path !== undefined) return { kind: 'moved', path };
  }
  return { kind: 'missing' };
}

/** As far as a look at its path tells. */
export async function isFile(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined))?.isFile() === true;
}

async function findIn(directory: string, { path: old, result }: ImageEntry): Promise<string | undefined> {
  const all = await readdir(directory).catch((): string[] => []); // gone with everything in it
  if (all.length > MOST_NAMES) return undefined;
  const extension = extname(old).toLowerCase();
  const names = all.filter((name) => extname(name).toLowerCase() === extension);
  names.sort((a, b) => Number(b === basename(old)) - Number(a === basename(old)));
  let read = 0;
  for (const name of names) {
    const path = join(directory, name);
    const found = await lstat(path).catch(() => undefined); // gone since it was listed
    if (found?.isFile() !== true || found.size !== result.bytes) continue;
    if (await hasContent(path, result.sha256)) return path;
    read += 1;
    if (read === MOST_READ) return undefined;
  }
  return undefined;
}
