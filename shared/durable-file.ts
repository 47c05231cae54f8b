import { randomUUID } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import { mkdir, open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { errorCode } from './errors.ts';
import { whileHeld } from './held-files.ts';

/** Shares and file systems that cannot sync a directory say so with one of these. */
const CANNOT_SYNC = new Set(['EPERM', 'ENOTSUP', 'EINVAL', 'ENOSYS']);
/** So much may wait for the disk before whoever writes has to. */
const MOST_WAITING_BYTES = 1024 * 1024;

/**
 * The file is there whole or not at all, also after a power cut: temporary file, fsync, rename, fsync of the directory.
 * Readable by its owner only. Rejects with the system's own error, and leaves nothing behind.
 */
export async function writeDurable(path: string, bytes: Buffer | string): Promise<void> {
  await using file = new DurableFile(`${path}.${randomUUID()}.part`);
  void file.write(typeof bytes === 'string' ? Buffer.from(bytes) : bytes); // publish waits, and tells
  await file.publish(path);
  await syncDirectory(dirname(path));
}

type Waiting = { bytes: Buffer; done: () => void };

/**
 * A file that is written while its bytes arrive, and has its name only when it is whole and on the disk. Writing goes on
 * beside whoever writes and never fails there: `settle` and `publish` tell. Disposing removes what was not published.
 */
export class DurableFile implements AsyncDisposable {
  /** Where the bytes are until it is published. */
  readonly path: string;
  readonly #file: Promise<FileHandle>;
  #waiting: Waiting[] = [];
  #waitingBytes = 0;
  #writing: Promise<void> | undefined;
  #failure: unknown;
  #isClosed = false;
  #isPublished = false;

  constructor(path: string) {
    this.path = path;
    this.#file = open(path, 'wx', 0o600);
    this.#file.catch((error: unknown) => (this.#failure ??= error)); // told by settle
  }

  /** Undefined, or a promise that resolves when more may come. */
  write(bytes: Buffer): Promise<void> | undefined {
    this.#add({ bytes, done: () => undefined });
    return this.#waitingBytes > MOST_WAITING_BYTES ? this.#writing : undefined;
  }

  /** Resolves when the bytes are in the file, or never will be: their memory may be used again. */
  async put(bytes: Buffer): Promise<void> {
    await new Promise<void>((done) => this.#add({ bytes, done }));
  }

  /** Every byte is in the file: who opens `path` now reads all of them. Rejects with the system's own error. */
  async written(): Promise<void> {
    await this.#file;
    while (this.#writing !== undefined) await this.#writing;
    if (this.#failure !== undefined) throw this.#failure as Error; // what the system threw
  }

  /** And on the disk. */
  async settle(): Promise<void> {
    await this.written();
    await (await this.#file).sync();
  }

  /** Gives it its name, in place of any file that had it; the directory is not synced. */
  async publish(path: string): Promise<void> {
    await this.settle();
    await this.#close();
    await whileHeld(() => rename(this.path, path));
    this.#isPublished = true;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#close().catch(() => undefined); // nothing of it is wanted any more, or it is there whole
    if (!this.#isPublished) await rm(this.path, { force: true });
  }

  #add(piece: Waiting): void {
    if (this.#isClosed || this.#failure !== undefined) return piece.done();
    this.#waiting.push(piece);
    this.#waitingBytes += piece.bytes.length;
    this.#writing ??= this.#writeAll();
  }

  async #writeAll(): Promise<void> {
    let batch: Waiting[] = [];
    try {
      const file = await this.#file;
      while (this.#waiting.length > 0) {
        batch = this.#takeWaiting();
        await writeBatch(
          file,
          batch.map(({ bytes }) => bytes),
        );
        for (const { done } of batch) done();
      }
    } catch (error) {
      this.#failure ??= error;
      for (const { done } of [...batch, ...this.#takeWaiting()]) done();
    } finally {
      this.#writing = undefined;
    }
  }

  #takeWaiting(): Waiting[] {
    const waiting = this.#waiting;
    this.#waiting = [];
    this.#waitingBytes = 0;
    return waiting;
  }

  async #close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await this.#writing;
    await (await this.#file).close();
  }
}

/** A file that is written by somebody else gets its name, once its bytes are on the disk; the directory is not synced. */
export async function publishFile(from: string, path: string): Promise<void> {
  const file = await open(from, 'r+');
  try {
    await file.sync();
  } finally {
    await file.close();
  }
  await whileHeld(() => rename(from, path));
}

/** All of them in their order, however little the system takes at a time. */
async function writeBatch(file: FileHandle, batch: readonly Buffer[]): Promise<void> {
  let left = [...batch];
  while (left.length > 0) {
    let { bytesWritten } = await file.writev(left);
    while (left[0] !== undefined && bytesWritten >= left[0].length) {
      bytesWritten -= left[0].length;
      left = left.slice(1);
    }
    if (left[0] !== undefined && bytesWritten > 0) left[0] = left[0].subarray(bytesWritten);
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
    if (!CANNOT_SYNC.has(errorCode(error) ?? '')) throw error;
  } finally {
    await directory.close();
  }
}
