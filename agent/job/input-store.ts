import { createHash, randomUUID } from 'node:crypto';
import { EventEmitter, once } from 'node:events';
import { mkdir, open, readFile, readdir, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { performance } from 'node:perf_hooks';
import type { Readable } from 'node:stream';
import { Deadline } from '../../shared/abort.ts';
import { publishFile, syncDirectory } from '../../shared/durable-file.ts';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { cleanPixels } from './clean-pixels.ts';
import { toDiskError } from './disk-error.ts';
import type { PictureProcess } from './picture-process.ts';

const KEPT_MS = 3_600_000;

type Input = { tokenId: string; sha256: string; bytes: number; lastUsedMs: number };

type InputStoreOptions = { dir: string; quotaBytes: number; pictures: PictureProcess; log: Log };

/**
 * Pictures to edit, below the id of the token that uploaded them and named by the hash of what was uploaded. What is kept
 * is a fresh PNG of the pixels: nothing of the uploaded file itself ever reaches an engine. Each is deleted one hour after
 * the last job that named it.
 */
export class InputStore {
  readonly #dir: string;
  readonly #quotaBytes: number;
  readonly #pictures: PictureProcess;
  readonly #log: Log;
  readonly #kept = new Map<string, Input>();
  readonly #holds = new Map<string, number>();
  readonly #arrivals = new EventEmitter().setMaxListeners(0);
  readonly #lastByteMs = new Map<string, number>();

  private constructor(options: InputStoreOptions) {
    this.#dir = options.dir;
    this.#quotaBytes = options.quotaBytes;
    this.#pictures = options.pictures;
    this.#log = options.log;
  }

  static async open(options: InputStoreOptions): Promise<InputStore> {
    await mkdir(options.dir, { recursive: true, mode: 0o700 });
    const store = new InputStore(options);
    for (const entry of await readdir(options.dir, { withFileTypes: true })) {
      if (entry.isDirectory() && TOKEN_ID.test(entry.name)) await store.#readToken(entry.name);
    }
    return store;
  }

  has(tokenId: string, sha256: string): boolean {
    return this.#kept.has(keyOf(tokenId, sha256));
  }

  /** When the last byte of an upload under way came, on the monotonic clock; undefined where none is under way. */
  lastByteMs(tokenId: string, sha256: string): number | undefined {
    return this.#lastByteMs.get(keyOf(tokenId, sha256));
  }

  /** The upload of an input is complete: jobs that wait for inputs look again. */
  arrived(tokenId: string, sha256: string): void {
    if (this.has(tokenId, sha256)) this.#arrivals.emit('arrival');
  }

  /** Resolves at the next arrival of any input, or after `ms`; rejects when the signal aborts. */
  async nextArrival(ms: number, signal: AbortSignal): Promise<void> {
    using deadline = new Deadline({ ms, signal });
    await once(this.#arrivals, 'arrival', { signal: deadline.signal }).catch(() => signal.throwIfAborted());
  }

  /**
   * Verifies the hash while the bytes stream in, then decodes with limits, turns the picture upright by its EXIF
   * orientation and encodes it anew without metadata. INPUT_INVALID says what is wrong; nothing is kept then.
   */
  async put(
    tokenId: string,
    sha256: string,
    body: Readable,
    { maxBytes, signal }: { maxBytes: number; signal: AbortSignal },
  ): Promise<void> {
    const usedBytes = this.#usedBytes(tokenId);
    if (usedBytes >= this.#quotaBytes) {
      throw new AppError(
        'QUOTA_EXCEEDED',
        `This token has ${Math.round(usedBytes / 1024 ** 2)} MiB of input images here, and no more fit into its share. ` +
          'Each is deleted one hour after the last job that names it; go on then, or edit fewer pictures at once.',
      );
    }
    const directory = this.#directory(tokenId);
    await mkdir(directory, { recursive: true, mode: 0o700 }).catch((error: unknown) => {
      throw toDiskError(error, directory);
    });
    const upload = join(directory, `${sha256}.${randomUUID()}.part`);
    const clean = `${upload}.clean`;
    try {
      await this.#receive(body, { upload, tokenId, sha256, maxBytes, signal });
      await cleanPixels(this.#pictures, { path: upload, to: clean });
      const path = join(directory, `${sha256}.png`);
      const bytes = await keepClean(clean, path).catch((error: unknown) => {
        throw toDiskError(error, path);
      });
      this.#kept.set(keyOf(tokenId, sha256), { tokenId, sha256, bytes, lastUsedMs: Date.now() });
    } finally {
      this.#lastByteMs.delete(keyOf(tokenId, sha256));
      await rm(upload, { force: true });
      await rm(clean, { force: true });
    }
  }

  /** The PNG of an input. INPUT_MISSING when it is not there, or not this token's. */
  async read(tokenId: string, sha256: string): Promise<Buffer> {
    if (!this.has(tokenId, sha256)) throw new AppError('INPUT_MISSING', `Input ${sha256.slice(0, 12)} is not here.`);
    return await readFile(join(this.#directory(tokenId), `${sha256}.png`));
  }

  /** Keeps inputs while a job names them, also those still to arrive; the hour begins when the hold is disposed. */
  hold(tokenId: string, inputs: readonly string[]): Disposable {
    const keys = inputs.map((sha256) => keyOf(tokenId, sha256));
    for (const key of keys) this.#holds.set(key, (this.#holds.get(key) ?? 0) + 1);
    return {
      [Symbol.dispose]: () => {
        for (const key of keys) {
          const left = (this.#holds.get(key) ?? 0) - 1;
          if (left > 0) this.#holds.set(key, left);
          else this.#holds.delete(key);
          const input = this.#kept.get(key);
          if (input !== undefined) this.#kept.set(key, { ...input, lastUsedMs: Date.now() });
        }
      },
    };
  }

  async sweep(): Promise<void> {
    for (const { tokenId, sha256, lastUsedMs } of [...this.#kept.values()]) {
      if (this.#holds.has(keyOf(tokenId, sha256)) || Date.now() - lastUsedMs <= KEPT_MS) continue;
      this.#kept.delete(keyOf(tokenId, sha256));
      await rm(join(this.#directory(tokenId), `${sha256}.png`), { force: true });
      this.#log.info({ event: 'input-swept' });
    }
  }

  tokenIds(): Set<string> {
    return new Set([...this.#kept.values()].map((input) => input.tokenId));
  }

  async deleteToken(tokenId: string): Promise<void> {
    for (const [key, input] of this.#kept) if (input.tokenId === tokenId) this.#kept.delete(key);
    await rm(this.#directory(tokenId), { recursive: true, force: true });
  }

  #usedBytes(tokenId: string): number {
    return [...this.#kept.values()].reduce((sum, input) => sum + (input.tokenId === tokenId ? input.bytes : 0), 0);
  }

  async #receive(
    body: Readable,
    o: { upload: string; tokenId: string; sha256: string; maxBytes: number; signal: AbortSignal },
  ): Promise<void> {
    const hash = createHash('sha256');
    let bytes = 0;
    const onAbort = (): void => void body.destroy(new Error('the upload was ended'));
    o.signal.addEventListener('abort', onAbort, { once: true });
    const file = await open(o.upload, 'wx', 0o600).catch((error: unknown) => {
      throw toDiskError(error, o.upload);
    });
    try {
      o.signal.throwIfAborted();
      for await (const chunk of body) {
        const piece = chunk as Buffer; // a Readable's items are `any`; HTTP bodies are Buffers
        bytes += piece.length;
        this.#lastByteMs.set(keyOf(o.tokenId, o.sha256), performance.now());
        if (bytes > o.maxBytes) {
          throw new AppError('INPUT_INVALID', `The input is larger than ${o.maxBytes} bytes. Send a smaller picture.`);
        }
        hash.update(piece);
        await file.write(piece).catch((error: unknown) => {
          throw toDiskError(error, o.upload);
        });
      }
    } finally {
      o.signal.removeEventListener('abort', onAbort);
      await file.close();
    }
    if (hash.digest('hex') === o.sha256) return;
    throw new AppError(
      'INPUT_INVALID',
      `The ${bytes} bytes that arrived do not have the SHA-256 they were announced with. Send the input again.`,
    );
  }

  #directory(tokenId: string): string {
    if (!TOKEN_ID.test(tokenId)) throw new Error('a token id must be usable as a directory name');
    return join(this.#dir, tokenId);
  }

  async #readToken(tokenId: string): Promise<void> {
    const directory = this.#directory(tokenId);
    for (const name of await readdir(directory)) {
      const sha256 = /^([0-9a-f]{64})\.png$/.exec(name)?.[1];
      const path = join(directory, name);
      if (sha256 === undefined) {
        await rm(path, { force: true }); // half an upload of the process that died
        continue;
      }
      const { size, mtimeMs } = await stat(path);
      this.#kept.set(keyOf(tokenId, sha256), { tokenId, sha256, bytes: size, lastUsedMs: mtimeMs });
    }
  }
}

const TOKEN_ID = /^[\w-]{1,64}$/;

/** On the disk under its name when it resolves, with its size. */
async function keepClean(clean: string, path: string): Promise<number> {
  const { size } = await stat(clean);
  await publishFile(clean, path);
  await syncDirectory(dirname(path));
  return size;
}

function keyOf(tokenId: string, sha256: string): string {
  return `${tokenId}/${sha256}`;
}
