import { createHash } from 'node:crypto';
import { lstatSync, rmSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import { z } from 'zod';
import { elect, holderOf } from '../../shared/election.ts';
import type { Office } from '../../shared/election.ts';
import { askHolder } from '../../shared/lock-socket.ts';
import type { LockSocket } from '../../shared/lock-socket.ts';

/** Who holds a batch. */
export const LockHolder = z.object({ pid: z.int(), client: z.string() });
export type LockHolder = z.infer<typeof LockHolder>;

/** macOS allows 104 bytes in a socket's path, its closing zero included; a dot and eight more make it one process' own. */
const MAX_SOCKET_PATH = 100;
const OWN_CHARACTERS = 9;
/** Where the lock is when the path beside the manifest is too long. */
const LONG_PATHS = '/tmp';
const DEAD_FOR_MS = 24 * 3_600_000;
const ANSWER_MS = 1_000;

/**
 * Held while this process is the one that works on a batch, which is one at a time (why: `shared/election.ts`): a listening
 * socket, `lock.XXXXXXXX`, which the kernel frees at death. Whoever connects is told the holder. On Windows it is a named pipe.
 */
export class BatchLock implements AsyncDisposable {
  readonly #socket: LockSocket;

  private constructor(socket: LockSocket) {
    this.#socket = socket;
  }

  /** The lock, or who holds it. Never waits for a living holder, but a second for one that hangs. */
  static async acquire(directory: string, holder: LockHolder): Promise<BatchLock | LockHolder> {
    // Most who ask find it held, and nobody sees that they asked.
    const other = await lockHolder(directory);
    if (other !== undefined) return other;
    const socket = await elect(officeOf(directory), { who: JSON.stringify(holder) });
    if (typeof socket === 'string') return readHolder(socket);
    socket.hold();
    socket.unref(); // a lock alone keeps no process alive
    return new BatchLock(socket);
  }

  /** False once somebody removed or replaced the socket: then this process is no longer the holder. */
  get isHeld(): boolean {
    return this.#socket.isInPlace;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#socket[Symbol.asyncDispose]();
  }
}

/** Who works on the batch of a directory, for those who only want to know; undefined when nobody does. */
export async function lockHolder(directory: string): Promise<LockHolder | undefined> {
  const said = await holderOf(officeOf(directory));
  return said === undefined ? undefined : readHolder(said);
}

/**
 * Removes locks in the directory for long paths whose holders died long ago: that of a batch nobody took up stays there
 * otherwise.
 */
export async function sweepDeadLocks({
  nowMs,
  directory = LONG_PATHS,
}: {
  nowMs: number;
  directory?: string;
}): Promise<void> {
  if (process.platform === 'win32') return;
  const mine = new RegExp(`^gantry-${userInfo().uid}-[0-9a-f]{20}\\.lock[.#][0-9a-f]{8}$`);
  for (const name of (await readdir(directory).catch(() => [])).filter((one) => mine.test(one))) {
    const path = join(directory, name);
    const found = lstatSync(path, { throwIfNoEntry: false });
    if (found === undefined || !found.isSocket() || nowMs - found.mtimeMs < DEAD_FOR_MS) continue;
    const said = await askHolder(path, { until: 'starting', answerMs: ANSWER_MS });
    if (said === undefined) rmSync(path, { force: true });
  }
}

/** Beside the manifest where the path is short enough; else under a name made of it, the same for every process. */
export function lockPath(directory: string, platform: NodeJS.Platform = process.platform): string {
  const hash = createHash('sha256').update(directory).digest('hex').slice(0, 20);
  if (platform === 'win32') return `\\\\.\\pipe\\gantry-batch-${hash}`;
  const path = join(directory, 'lock');
  return Buffer.byteLength(path) + OWN_CHARACTERS <= MAX_SOCKET_PATH
    ? path
    : join(LONG_PATHS, `gantry-${userInfo().uid}-${hash}.lock`);
}

function officeOf(directory: string): Office {
  const place = lockPath(directory);
  return { place, former: place, answerMs: ANSWER_MS };
}

/** One that hangs, or is no bridge, lives: it is the holder all the same. */
function readHolder(said: string): LockHolder {
  try {
    return LockHolder.parse(JSON.parse(said));
  } catch {
    return { pid: 0, client: 'unknown' };
  }
}
