import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, lstatSync, renameSync, rmSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import type { Server } from 'node:net';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import { z } from 'zod';
import { pause } from '../../shared/abort.ts';

/** Who holds a batch. */
export const LockHolder = z.object({ pid: z.int(), client: z.string() });
export type LockHolder = z.infer<typeof LockHolder>;

/** macOS allows 104 bytes in a socket's path, its closing zero included; `#` and eight more are for a lock in waiting. */
const MAX_SOCKET_PATH = 100;
const WAITING_CHARACTERS = 9;
/** Where the lock is when the path beside the manifest is too long. */
const LONG_PATHS = '/tmp';
const DEAD_FOR_MS = 24 * 3_600_000;
const ANSWER_MS = 1_000;
/** Longer than the moment between another process finding the lock dead and taking it. */
const SETTLE_MS = 100;

/**
 * Held while this process is the one that works on a batch: a listening socket, which the kernel frees at death. Whoever
 * connects is told the holder. On Windows it is a named pipe.
 */
export class BatchLock implements AsyncDisposable {
  readonly #server: Server;
  readonly #path: string;
  readonly #inode: number | undefined;

  private constructor(server: Server, path: string) {
    this.#server = server;
    this.#path = path;
    this.#inode = inodeOf(path);
  }

  /** The lock, or who holds it. Never waits for a living holder. */
  static async acquire(directory: string, holder: LockHolder): Promise<BatchLock | LockHolder> {
    const path = lockPath(directory);
    for (let attempt = 1; attempt <= 3; attempt += 1) {
      const server = await listen(path, holder);
      if (server !== undefined) return new BatchLock(server, path);
      const inode = inodeOf(path);
      const other = await probe(path);
      if (other !== undefined) return { pid: other.pid, client: other.client };
      const taken = await takeOver(path, { holder, deadInode: inode });
      if (taken !== undefined) return new BatchLock(taken, path);
    }
    return { pid: 0, client: 'unknown' };
  }

  /** False once somebody removed or replaced the socket: then this process is no longer the holder. */
  get isHeld(): boolean {
    return this.#inode === inodeOf(this.#path);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Closing removes the name the socket was made under. It may be another's by now: then the socket is kept to the end.
    const inode = inodeOf(this.#path);
    const isOurs = inode === this.#inode;
    if (inode !== undefined && !isOurs) {
      this.#server.unref();
      return;
    }
    if (isOurs && process.platform !== 'win32') rmSync(this.#path, { force: true });
    await close(this.#server);
  }
}

/** Who works on the batch of a directory, for those who only want to know; undefined when nobody does. */
export async function lockHolder(directory: string): Promise<LockHolder | undefined> {
  return await probe(lockPath(directory));
}

/**
 * Removes locks in the directory for long paths whose holders died long ago: that of a batch nobody took up stays there
 * otherwise. A day is far longer than any process needs between finding a lock dead and taking it.
 */
export async function sweepDeadLocks({
  nowMs,
  directory = LONG_PATHS,
}: {
  nowMs: number;
  directory?: string;
}): Promise<void> {
  if (process.platform === 'win32') return;
  const mine = new RegExp(`^gantry-${userInfo().uid}-[0-9a-f]{20}\\.lock(#[0-9a-f]{8})?$`);
  for (const name of (await readdir(directory).catch(() => [])).filter((one) => mine.test(one))) {
    const path = join(directory, name);
    const found = lstatSync(path, { throwIfNoEntry: false });
    if (found === undefined || !found.isSocket() || nowMs - found.mtimeMs < DEAD_FOR_MS) continue;
    if ((await probe(path)) === undefined && inodeOf(path) === found.ino) rmSync(path, { force: true });
  }
}

/**
 * Puts a socket of ours in the place of a dead one. Several may have found it dead in the same moment: only who still
 * finds the same dead one goes on, and after a moment the one whose socket is left has the lock.
 */
async function takeOver(
  path: string,
  { holder, deadInode }: { holder: LockHolder; deadInode: number | undefined },
): Promise<Server | undefined> {
  if (process.platform === 'win32') return undefined; // a dead holder's pipe is gone: just try again
  const waiting = `${path}#${randomBytes(4).toString('hex')}`;
  const server = await listen(waiting, holder);
  if (server === undefined) return undefined;
  const inode = inodeOf(waiting);
  // In one tick, so that nothing but another process can come between the look and the rename.
  if (inodeOf(path) === deadInode && deadInode !== undefined) renameSync(waiting, path);
  await pause(SETTLE_MS, new AbortController().signal);
  if (inodeOf(path) === inode) return server;
  await close(server); // removes the name `waiting`, which nobody else has
  return undefined;
}

/** Beside the manifest where the path is short enough; else under a name made of it, the same for every process. */
export function lockPath(directory: string, platform: NodeJS.Platform = process.platform): string {
  const hash = createHash('sha256').update(directory).digest('hex').slice(0, 20);
  if (platform === 'win32') return `\\\\.\\pipe\\gantry-batch-${hash}`;
  const path = join(directory, 'lock');
  return Buffer.byteLength(path) + WAITING_CHARACTERS <= MAX_SOCKET_PATH
    ? path
    : join(LONG_PATHS, `gantry-${userInfo().uid}-${hash}.lock`);
}

async function listen(path: string, holder: LockHolder): Promise<Server | undefined> {
  const server = createServer((socket) => {
    socket.on('error', () => undefined); // whoever asked is gone; nothing to tell
    socket.end(`${JSON.stringify(holder)}\n`);
  });
  try {
    server.listen({ path });
    await once(server, 'listening');
  } catch (error) {
    if (codeOf(error) === 'EADDRINUSE') return undefined;
    throw error;
  }
  if (process.platform !== 'win32') chmodSync(path, 0o600);
  server.unref(); // a lock alone keeps no process alive
  return server;
}

/** A holder that does not answer in time lives, but is stopped or busy: it is the holder all the same. */
async function probe(path: string): Promise<LockHolder | undefined> {
  const socket = connect({ path });
  const chunks: Buffer[] = [];
  try {
    await once(socket, 'connect', { signal: AbortSignal.timeout(ANSWER_MS) });
    for await (const chunk of socket.setTimeout(ANSWER_MS, () => socket.destroy()) as AsyncIterable<Buffer>) {
      chunks.push(chunk);
    }
    return LockHolder.parse(JSON.parse(Buffer.concat(chunks).toString('utf8')));
  } catch (error) {
    const isDead = codeOf(error) === 'ECONNREFUSED' || codeOf(error) === 'ENOENT' || codeOf(error) === 'ENOTSOCK';
    return isDead ? undefined : { pid: 0, client: 'unknown' };
  } finally {
    socket.destroy();
  }
}

async function close(server: Server): Promise<void> {
  await new Promise<void>((resolve) => {
    server.close(() => resolve());
  });
}

function inodeOf(path: string): number | undefined {
  return process.platform === 'win32' ? 0 : lstatSync(path, { throwIfNoEntry: false })?.ino;
}

function codeOf(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined;
}
