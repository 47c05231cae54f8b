import { createHash, randomBytes } from 'node:crypto';
import { lstatSync, renameSync } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { link, lstat, open, readdir, unlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { untilAborted } from '../../shared/abort.ts';
import { makeDirectory, syncDirectory } from '../../shared/durable-file.ts';
import { AppError, toAppError } from '../../shared/errors.ts';
import { whileHeld } from '../../shared/held-files.ts';
import { noSpaceLeft } from './disk-room.ts';
import { numbered } from './file-names.ts';
import { HEAD_BYTES, imageKind } from './image-bytes.ts';

export type SaveOptions = {
  body: AsyncIterable<Buffer>;
  expected: { sha256: string; bytes: number };
  directory: string;
  /** The wished name; when it is taken, `-2`, `-3` ... is added. */
  name: string;
  /** Writes the manifest line that lets a crash between link and `saved` be told from a stranger's file. */
  onSaving: (name: string) => Promise<void>;
  signal: AbortSignal;
};

/** Tells the parts of this process from those of a dead one that had the same pid, as pid 1 of a container does. */
const OWNER = randomBytes(3).toString('hex');
const PART = /^\.gantry-(\d+)-([0-9a-f]{6})-[0-9a-f]{8}\.part$/;
/** Parts of ours that could not be removed, as on a disk that became read-only. The next save beside them tries again. */
const stuck = new Set<string>();
const NO_SPACE = new Set(['ENOSPC', 'EDQUOT']);
/** File systems without hard links (exFAT, some shares) say one of these. */
export const NO_LINKS = new Set(['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EMLINK', 'EINVAL']);

/**
 * Saves a verified image under a name that did not exist before. A file is visible complete or not at all, and nothing is
 * ever overwritten: bytes go to a part beside the target, are checked and synced, and then linked to the final name.
 */
export async function saveImage(options: SaveOptions): Promise<{ path: string }> {
  const { directory, signal } = options;
  const part = partPath(directory);
  try {
    signal.throwIfAborted();
    await makeDirectory(directory);
    await writePart(part, options);
    signal.throwIfAborted();
    const path = await publish(part, options);
    for (const mine of [part, ...stuck]) if (dirname(mine) === dirname(part)) await removePart(mine);
    await syncDirectory(directory);
    return { path };
  } catch (error) {
    await removePart(part);
    throw signal.aborted ? error : await toSaveError(error, options);
  }
}

/** A new name for bytes that are not a whole file yet; it tells whose it is, so that what a dead process left can be found. */
export function partPath(directory: string): string {
  return join(directory, `.gantry-${process.pid}-${OWNER}-${randomBytes(4).toString('hex')}.part`);
}

/** Removes the parts that processes left which no longer run. A part of a living process is never touched. */
export async function sweepParts(directory: string): Promise<void> {
  const names = await readdir(directory).catch(() => []); // a directory that is not there holds no parts
  for (const name of names) {
    const [, pid, owner] = PART.exec(name) ?? [];
    if (pid === undefined || isAlive(Number(pid), owner)) continue;
    await removePart(join(directory, name));
  }
}

/** Takes the name if it is free. One tick, so that no other save of this process can come between look and rename. */
export function renameIfFree(part: string, target: string): boolean {
  if (lstatSync(target, { throwIfNoEntry: false }) !== undefined) return false; // not existsSync: a dangling link is taken
  renameSync(part, target);
  return true;
}

async function writePart(part: string, { body, expected, signal }: SaveOptions): Promise<void> {
  const file = await open(part, 'wx');
  try {
    await copyChecked(file, { body, expected, signal });
    await file.sync();
  } finally {
    await file.close();
  }
}

async function copyChecked(
  file: FileHandle,
  { body, expected, signal }: Pick<SaveOptions, 'body' | 'expected' | 'signal'>,
): Promise<void> {
  const hash = createHash('sha256');
  let head = Buffer.alloc(0);
  let bytes = 0;
  let writing: Promise<void> = Promise.resolve();
  try {
    for await (const chunk of untilAbortedEach(body, signal)) {
      bytes += chunk.length;
      if (bytes > expected.bytes) throw damaged(`more than the ${expected.bytes} bytes announced arrived`);
      if (head.length < HEAD_BYTES) head = Buffer.concat([head, chunk.subarray(0, HEAD_BYTES)]);
      hash.update(chunk); // while the disk has the one before
      await writing;
      writing = file.writeFile(chunk); // on a handle: continues where the last one ended, and writes the whole chunk
      writing.catch(() => undefined); // told by whoever waits for it
    }
    await writing;
  } finally {
    await writing.catch(() => undefined); // the file is closed behind this
  }
  if (bytes !== expected.bytes) throw damaged(`${bytes} of ${expected.bytes} bytes arrived`);
  if (hash.digest('hex') !== expected.sha256) throw damaged('its SHA-256 is not the one announced');
  const kind = imageKind(head);
  if (kind === undefined || !('format' in kind)) throw damaged('its first bytes are not those of a PNG, JPEG or WebP');
}

/** Gives the finished part its first free name. `link` decides, the look before it only spares manifest lines. */
async function publish(part: string, { directory, name, onSaving }: SaveOptions): Promise<string> {
  for (let n = 1; ; n += 1) {
    const candidate = numbered(name, n);
    const target = join(directory, candidate);
    if (await exists(target)) continue;
    await onSaving(candidate);
    if (await linkIfFree(part, target)) return target;
  }
}

async function linkIfFree(part: string, target: string): Promise<boolean> {
  try {
    await link(part, target);
    return true;
  } catch (error) {
    const code = codeOf(error);
    if (code === 'EEXIST') return false;
    if (!NO_LINKS.has(code)) throw error;
    return await whileHeld(async () => renameIfFree(part, target));
  }
}

/** Chunks of the body; gives up when the signal aborts, even while the body is silent. */
async function* untilAbortedEach(body: AsyncIterable<Buffer>, signal: AbortSignal): AsyncGenerator<Buffer> {
  const chunks = body[Symbol.asyncIterator]();
  let isEnded = false;
  try {
    while (true) {
      const next = await untilAborted(chunks.next(), signal).catch((error: unknown) => {
        throw signal.aborted || error instanceof AppError ? error : broken(error);
      });
      isEnded = next.done === true;
      if (next.done === true) return;
      yield next.value;
    }
  } finally {
    // Not awaited: a body that hangs in next() answers return() never. Its failure is the one already being thrown.
    if (!isEnded) chunks.return?.().catch(() => undefined);
  }
}

/** A part that cannot be removed is removed later; the image itself is not affected. Virus scanners hold files for a moment. */
async function removePart(part: string): Promise<void> {
  try {
    await whileHeld(() => unlink(part));
    stuck.delete(part);
  } catch (error) {
    if (codeOf(error) === 'ENOENT') stuck.delete(part);
    else stuck.add(part);
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await lstat(path);
    return true;
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return false;
    throw error;
  }
}

function isAlive(pid: number, owner: string | undefined): boolean {
  if (pid === process.pid) return owner === OWNER;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return codeOf(error) === 'EPERM'; // somebody else's process
  }
}

function broken(cause: unknown): AppError {
  const why = codeOf(cause) || (cause instanceof Error ? cause.message : String(cause));
  return new AppError(
    'SAVE_FAILED',
    `The transfer of the image broke off (${why}). Nothing was saved; the host keeps the result and it is fetched again.`,
    { cause },
  );
}

function damaged(why: string): AppError {
  return new AppError(
    'SAVE_FAILED',
    `The image arrived damaged: ${why}. Nothing was saved; the host keeps the result and it is fetched again.`,
  );
}

async function toSaveError(error: unknown, { directory, expected }: SaveOptions): Promise<AppError> {
  const code = codeOf(error);
  if (NO_SPACE.has(code)) {
    const what = await noSpaceLeft(directory, expected.bytes);
    const next = 'The host keeps the result. Free some space, or choose another output_dir.';
    return new AppError('DISK_FULL', `${what} ${next}`, { cause: error });
  }
  if (code === '') return toAppError(error, 'SAVE_FAILED');
  return new AppError(
    'SAVE_FAILED',
    `The image could not be saved in ${directory} (${code}). The host keeps the result. Check that the directory can be written.`,
    { cause: error },
  );
}

/** The system's error code, or an empty text where there is none. */
function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' && !(error instanceof AppError)
    ? error.code
    : '';
}
