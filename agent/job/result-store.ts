import { createHash } from 'node:crypto';
import { readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { makeDirectory, writeDurable } from '../../shared/durable-file.ts';
import type { AppError } from '../../shared/errors.ts';
import type { ImageFormat } from '../../shared/job.ts';
import type { Log } from '../../shared/log.ts';
import { toDiskError } from './disk-error.ts';

export type StoredResult = {
  path: string;
  previewPath: string;
  sha256: string;
  bytes: number;
  format: ImageFormat;
  attempt: number;
};

type Kept = StoredResult & { tokenId: string; jobId: string; storedAtMs: number };

type ResultStoreOptions = { dir: string; quotaBytes: number; keptMs: number; log: Log };

/** Jobs, attempts and hashes are in the names, so that the store needs no index: `<jobId>.<attempt>.<sha256>.<format>`. */
const NAME = /^([0-9a-f-]{36})\.(\d{1,4})\.([0-9a-f]{64})\.(png|jpg|webp)$/;

const TOKEN_ID = /^[\w-]{1,64}$/;
const PROBE = 'probe';

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

  /** Stores the final bytes and the preview; both are on disk when it resolves. DISK_FULL when they cannot be. */
  async put(
    tokenId: string,
    jobId: string,
    attempt: number,
    image: Buffer,
    preview: Buffer,
  ): Promise<{ sha256: string; bytes: number }> {
    const sha256 = createHash('sha256').update(image).digest('hex');
    const format = formatOf(image);
    const directory = this.#directory(tokenId);
    const path = join(directory, `${jobId}.${attempt}.${sha256}.${format}`);
    const previewPath = join(directory, `${jobId}.${attempt}.preview.jpg`);
    try {
      await makeDirectory(directory, { mode: 0o700 });
      // The preview first: whoever finds the image finds its preview too.
      await writeDurable(previewPath, preview);
      await writeDurable(path, image);
    } catch (error) {
      this.#refused = { error: toDiskError(error, path), bytes: image.length };
      await rm(previewPath, { force: true }).catch(() => undefined); // the first failure is the one to tell
      throw this.#refused.error;
    }
    this.#refused = undefined;
    const kept = { tokenId, jobId, attempt, path, previewPath, sha256, format, bytes: image.length };
    this.#kept.set(keyOf(tokenId, jobId, attempt), { ...kept, storedAtMs: Date.now() });
    return { sha256, bytes: image.length };
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
    try {
      await writeDurable(path, Buffer.alloc(bytes));
      this.#refused = undefined;
    } catch (error) {
      this.#refused = { error: toDiskError(error, path), bytes };
    } finally {
      await rm(path, { force: true });
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
