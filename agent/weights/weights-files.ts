import { readdir, readlink, rm, stat, statfs } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { errorCode } from '../../shared/errors.ts';

/** What lies in the directories of a download. `resumable` are parts of files that the downloader goes on with. */
export type ArrivedBytes = { bytes: number; resumableBytes: number };

const PARTIAL = /\.incomplete$/;
/** Newer versions of huggingface_hub give each partial file a name of its own, and never go on with one. */
const ONE_TIME_PARTIAL = /\.[0-9a-f]{8}\.incomplete$/;
const FORSAKEN_MS = 600_000;
const BLOCK_BYTES = 512;

/** All bytes that are there, partial files included. What vanishes meanwhile is not counted. */
export async function arrivedBytes(directories: readonly string[]): Promise<ArrivedBytes> {
  const paths = (await Promise.all(directories.map(filesIn))).flat();
  const sizes = await Promise.all(paths.map(async (path) => ({ path, bytes: await sizeOf(path) })));
  const sum = (each: readonly { bytes: number }[]): number => each.reduce((total, { bytes }) => total + bytes, 0);
  return {
    bytes: sum(sizes),
    resumableBytes: sum(sizes.filter(({ path }) => PARTIAL.test(path) && !ONE_TIME_PARTIAL.test(path))),
  };
}

/**
 * Removes parts of files that nobody will ever go on with: each interrupted download would leave some gigabytes more. Only
 * our own, untouched for a while and open in no program: that of another container on the same cache is not seen here.
 */
export async function removeDeadPartials(directories: readonly string[], nowMs = Date.now()): Promise<string[]> {
  const parts = (await Promise.all(directories.map(filesIn))).flat().filter((path) => ONE_TIME_PARTIAL.test(path));
  const left = await Promise.all(parts.map(async (path) => ((await isForsaken(path, nowMs)) ? [path] : [])));
  const open = left.flat().length === 0 ? undefined : await openFileNames();
  if (open === undefined) return [];
  const dead = left.flat().filter((path) => !open.has(basename(path)));
  for (const path of dead) await rm(path, { force: true });
  return dead;
}

/** Free for us on the file system where this directory is, or will be. */
export async function freeBytesAt(directory: string): Promise<number> {
  try {
    const { bavail, bsize } = await statfs(directory);
    return bavail * bsize;
  } catch (error) {
    const isAbsent = errorCode(error) === 'ENOENT';
    if (!isAbsent || dirname(directory) === directory) throw error;
    return await freeBytesAt(dirname(directory));
  }
}

async function filesIn(directory: string): Promise<string[]> {
  try {
    const entries = await readdir(directory, { withFileTypes: true, recursive: true });
    return entries.filter((entry) => !entry.isDirectory()).map((entry) => join(entry.parentPath, entry.name));
  } catch {
    return []; // not there yet
  }
}

/** A link to a shared blob counts as what it leads to. Of a file that is set to its size first, only what is written. */
async function sizeOf(path: string): Promise<number> {
  try {
    const { size, blocks } = await stat(path);
    return PARTIAL.test(path) ? Math.min(size, blocks * BLOCK_BYTES) : size;
  } catch {
    return 0; // moved to its final name meanwhile
  }
}

async function isForsaken(path: string, nowMs: number): Promise<boolean> {
  try {
    const { uid, mtimeMs } = await stat(path);
    return uid === process.getuid?.() && nowMs - mtimeMs >= FORSAKEN_MS;
  } catch {
    return false; // gone
  }
}

/** Names of the files that programs of this user have open; undefined where there is no /proc to see it. */
async function openFileNames(): Promise<ReadonlySet<string> | undefined> {
  const names = new Set<string>();
  let pids: string[];
  try {
    pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  } catch {
    return undefined;
  }
  for (const pid of pids) {
    const folder = join('/proc', pid, 'fd');
    const fds = await readdir(folder).catch(() => []); // ended, or another user's
    for (const fd of fds) names.add(basename(await readlink(join(folder, fd)).catch(() => '')));
  }
  return names;
}
