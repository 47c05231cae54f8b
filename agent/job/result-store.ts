import { createHash, randomUUID } from 'node:crypto';
import { readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { DurableFile, makeDirectory, publishFile, syncDirectory } from '../../shared/durable-file.ts';
import { AppError } from '../../shared/errors.ts';
import type { ImageFormat } from '../../shared/job.ts';
import type { Log } from '../../shared/log.ts';
import { toDiskError } from './disk-error.ts';
import type { IncomingOptions, ReceivedPicture } from './incoming-picture.ts';
import { IncomingPicture } from './incoming-picture.ts';
import type { PictureProcess } from './picture-process.ts';

export type StoredResult = {
  path: string;
  previewPath: string;
  sha256: string;
  bytes: number;
  format: ImageFormat;
  attempt: number;
};

type Kept = StoredResult & { tokenId: string; jobId: string; storedAtMs: number };

/** What is about to be kept; the files are still under other names. */
type Stored = Pick<ReceivedPicture, 'file' | 'previewPath' | 'sha256' | 'bytes' | 'format'>;

type ResultStoreOptions = { dir: string; quotaBytes: number; keptMs: number; pictures: PictureProcess; log: Log };

/** Jobs, attempts and hashes are in the names, so that the store needs no index: `<jobId>.<attempt>.<sha256>.<format>`. */
const NAME = /^([0-9a-f-]{36})\.(\d{1,4})\.([0-9a-f]{64})\.(png|jpg|webp)$/;

const TOKEN_ID = /^[\w-]{1,64}$/;
const PROBE = 'probe';
const PROBE_PIECE_BYTES = 1024 * 1024;

/**
 * Finished images and their previews, below the id of the token that made them, until they are acknowledged or too old.
 * A file under its final name is complete and on disk.
 */
export class ResultStore {
  readonly #options: ResultStoreOptions;
  readonly #kept = new Map<string, Kept>();
  #refused: { error: AppError; bytes: number } | undefined;

  private constructor(options: ResultStoreOptions) {
    this.#options = options;
  }

  static async open(options: ResultStoreOptions): Promise<ResultStore> {
    await makeDirectory(options.dir, { mode: 0o700 });
    const store = new ResultStore(options);
    for (const entry of await readdir(options.dir, { withFileTypes: true })) {
      if (entry.isDirectory() && TOKEN_ID.test(entry.name)) await store.#readToken(entry.name);
      else if (entry.name.startsWith(PROBE)) await rm(join(options.dir, entry.name), { force: true }); // left by a crash
    }
    return store;
  }

  /** A place for a picture that will come. DISK_FULL where there is none. */
  async incoming(tokenId: string, o: Pick<IncomingOptions, 'format' | 'textOf'>): Promise<IncomingPicture> {
    const directory = await this.#makeDirectory(tokenId);
    return new IncomingPicture({ directory, pictures: this.#options.pictures, ...o });
  }

  /** Stores a picture that came, with its preview; both are on disk when it resolves. RESULT_INVALID or DISK_FULL when not. */
  async keep(tokenId: string, jobId: string, attempt: number, picture: IncomingPicture): Promise<ReceivedPicture> {
    try {
      const received = await picture.received();
      await this.#keep({ tokenId, jobId, attempt }, received);
      return received;
    } catch (error) {
      throw this.#failed(error, picture.bytes);
    }
  }

  /** The same for bytes that are at hand and known to be good. */
  async put(
    tokenId: string,
    jobId: string,
    attempt: number,
    image: Buffer,
    preview: Buffer,
  ): Promise<{ sha256: string; bytes: number }> {
    const name = join(await this.#makeDirectory(tokenId), randomUUID());
    const sha256 = createHash('sha256').update(image).digest('hex');
    await using file = new DurableFile(`${name}.part`);
    await using previewFile = new DurableFile(`${name}.preview.part`);
    try {
      void file.write(image); // keeping it waits, and tells
      void previewFile.write(preview);
      await previewFile.settle();
      const stored = { file, previewPath: previewFile.path, sha256, bytes: image.length, format: formatOf(image) };
      await this.#keep({ tokenId, jobId, attempt }, stored);
      return { sha256, bytes: image.length };
    } catch (error) {
      throw this.#failed(error, image.length);
    }
  }

  /** Set while the last result could not be stored: the next would be made in vain. */
  get failure(): AppError | undefined {
    return this.#refused?.error;
  }

  /** Finds out whether the disk takes a file as large as the one it refused, and clears `failure` if so. */
  async probe(): Promise<void> {
    if (this.#refused === undefined) return;
    const { bytes } = this.#refused;
    const path = join(this.#options.dir, PROBE);
    const piece = Buffer.alloc(Math.min(bytes, PROBE_PIECE_BYTES));
    try {
      await rm(path, { force: true });
      await using file = new DurableFile(path);
      for (let left = bytes; left > 0; left -= piece.length) await file.write(piece.subarray(0, left));
      await file.settle();
      this.#refused = undefined;
    } catch (error) {
      this.#refused = { error: toDiskError(error, path), bytes };
    }
  }

  /** The result of the latest attempt that has one; undefined for an unknown job as for another token's. */
  find(tokenId: string, jobId: string): StoredResult | undefined {
    return [...this.#kept.values()]
      .filter((kept) => kept.tokenId === tokenId && kept.jobId === jobId)
      .sort((a, b) => b.attempt - a.attempt)[0];
  }

  async delete(tokenId: string, jobId: string, attempt: number): Promise<void> {
    const kept = this.#kept.get(keyOf(tokenId, jobId, attempt));
    if (kept === undefined) return;
    this.#kept.delete(keyOf(tokenId, jobId, attempt));
    await rm(kept.path, { force: true });
    await rm(kept.previewPath, { force: true });
  }

  tokenIds(): Set<string> {
    return new Set([...this.#kept.values()].map((kept) => kept.tokenId));
  }

  async deleteToken(tokenId: string): Promise<void> {
    for (const [key, kept] of this.#kept) if (kept.tokenId === tokenId) this.#kept.delete(key);
    await rm(this.#directory(tokenId), { recursive: true, force: true });
  }

  usedBytes(tokenId: string): number {
    return [...this.#kept.values()].reduce((sum, kept) => sum + (kept.tokenId === tokenId ? kept.bytes : 0), 0);
  }

  /** A token over its quota gets no grants until results are acknowledged. */
  isFull(tokenId: string): boolean {
    return this.usedBytes(tokenId) >= this.#options.quotaBytes;
  }

  /** Deletes what is too old, and what `isWanted` does not know: the result of a job whose end was never journaled. */
  async sweep(isWanted: (tokenId: string, jobId: string, attempt: number) => boolean): Promise<void> {
    for (const { tokenId, jobId, attempt, storedAtMs } of [...this.#kept.values()]) {
      if (Date.now() - storedAtMs <= this.#options.keptMs && isWanted(tokenId, jobId, attempt)) continue;
      await this.delete(tokenId, jobId, attempt);
      this.#options.log.info({ event: 'result-swept', jobId, attempt });
    }
  }

  async #keep(
    { tokenId, jobId, attempt }: { tokenId: string; jobId: string; attempt: number },
    { file, previewPath: madePath, sha256, bytes, format }: Stored,
  ): Promise<void> {
    const directory = this.#directory(tokenId);
    const path = join(directory, `${jobId}.${attempt}.${sha256}.${format}`);
    const previewPath = join(directory, `${jobId}.${attempt}.preview.jpg`);
    try {
      // The preview first: whoever finds the image finds its preview too.
      await publishFile(madePath, previewPath);
      await file.publish(path);
      await syncDirectory(directory);
    } catch (error) {
      await rm(previewPath, { force: true }).catch(() => undefined); // the first failure is the one to tell
      throw toDiskError(error, path);
    }
    this.#refused = undefined;
    const kept = { tokenId, jobId, attempt, path, previewPath, sha256, format, bytes };
    this.#kept.set(keyOf(tokenId, jobId, attempt), { ...kept, storedAtMs: Date.now() });
  }

  async #makeDirectory(tokenId: string): Promise<string> {
    const directory = this.#directory(tokenId);
    try {
      await makeDirectory(directory, { mode: 0o700 });
    } catch (error) {
      throw this.#failed(error, 0);
    }
    return directory;
  }

  /** Remembers what the disk refused; what is wrong with a picture is not the disk's. */
  #failed(error: unknown, bytes: number): AppError {
    if (error instanceof AppError && error.code !== 'DISK_FULL') return error;
    this.#refused = { error: toDiskError(error, join(this.#options.dir, PROBE)), bytes };
    return this.#refused.error;
  }

  #directory(tokenId: string): string {
    if (!TOKEN_ID.test(tokenId)) throw new Error('a token id must be usable as a directory name');
    return join(this.#options.dir, tokenId);
  }

  async #readToken(tokenId: string): Promise<void> {
    const directory = this.#directory(tokenId);
    for (const name of await readdir(directory)) {
      const path = join(directory, name);
      const [, jobId, attempt, sha256] = NAME.exec(name) ?? [];
      if (jobId === undefined || attempt === undefined || sha256 === undefined) continue;
      const { size, mtimeMs } = await stat(path);
      this.#kept.set(keyOf(tokenId, jobId, Number(attempt)), {
        tokenId,
        jobId,
        attempt: Number(attempt),
        path,
        previewPath: join(directory, `${jobId}.${attempt}.preview.jpg`),
        sha256,
        bytes: size,
        format: name.endsWith('.png') ? 'png' : name.endsWith('.jpg') ? 'jpg' : 'webp',
        storedAtMs: mtimeMs,
      });
    }
    // What a process that died left behind: half files, and previews whose image was not written any more.
    const wanted = new Set([...this.#kept.values()].flatMap((kept) => [kept.path, kept.previewPath]));
    for (const name of await readdir(directory)) {
      if (!wanted.has(join(directory, name))) await rm(join(directory, name), { force: true, recursive: true });
    }
  }
}

function keyOf(tokenId: string, jobId: string, attempt: number): string {
  return `${tokenId}/${jobId}/${attempt}`;
}

/** By the first bytes. Only what our own encoders made comes here. */
function formatOf(image: Buffer): ImageFormat {
  if (image.readUInt32BE(0) === 0x89504e47) return 'png';
  if (image.readUInt16BE(0) === 0xffd8) return 'jpg';
  if (image.toString('latin1', 8, 12) === 'WEBP') return 'webp';
  throw new Error('a result must be PNG, JPEG or WebP');
}
