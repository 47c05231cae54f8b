import { readdir, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Uuid } from '../../shared/job.ts';
import { BatchImages } from './batch-images.ts';
import type { ImageEntry } from './image-entry.ts';
import { ImageLog } from './image-log.ts';

/** Beside the manifest of an ended batch whose images are all in the log. */
const KEPT = 'images-kept';

export type Wanted = {
  limit: number;
  matches?: (entry: ImageEntry) => boolean;
  /** Nothing is written: for clients that list what there is at their start. */
  isQuiet?: boolean;
};
export type Recent = { entries: ImageEntry[]; hasMore: boolean; damagedLines: number };

/**
 * Every image that was made with this state directory, by any process, now or before. The manifest of a batch is the truth
 * while there is one. A batch that is over has its images copied into the log at the next look, and before its manifest is
 * removed at the latest; then a marker beside the manifest says that nobody has to read it again. A crash in between makes
 * the next process copy them once more, which changes nothing.
 */
export class ImageIndex {
  readonly #root: string;
  readonly #log: ImageLog;
  readonly #open = new Map<string, BatchImages>();
  /** Batches that were seen to be in the log. */
  readonly #kept = new Set<string>();
  #looking: Promise<void> | undefined;

  constructor(stateDir: string) {
    this.#root = join(stateDir, 'batches');
    this.#log = new ImageLog(join(stateDir, 'images'));
  }

  async find(id: string): Promise<ImageEntry | undefined> {
    if (!Uuid.safeParse(id).success) return undefined;
    await this.#look();
    for (const batch of this.#open.values()) {
      const entry = batch.images.get(id);
      if (entry !== undefined) return entry;
    }
    return await first(this.#log.containing(`"id":"${id}"`, (entry) => entry.id === id));
  }

  /** An image that had exactly these bytes; the one at `path` where several had. */
  async findBytes(sha256: string, path: string): Promise<ImageEntry | undefined> {
    await this.#look();
    let other: ImageEntry | undefined;
    const isSame = (entry: ImageEntry): boolean => entry.result.sha256 === sha256;
    for (const batch of this.#open.values())
      for (const entry of batch.images.values()) {
        if (!isSame(entry)) continue;
        if (entry.path === path) return entry;
        other ??= entry;
      }
    for await (const entry of this.#log.containing(`"sha256":"${sha256}"`, isSame)) {
      if (entry.path === path) return entry;
      other ??= entry;
    }
    return other;
  }

  /** The newest that match, newest first. */
  async recent({ limit, matches = () => true, isQuiet = false }: Wanted): Promise<Recent> {
    await this.#look({ isQuiet });
    const found = new Map<string, ImageEntry>();
    for (const batch of this.#open.values())
      for (const entry of batch.images.values()) if (matches(entry)) found.set(entry.id, entry);
    const reading = { damaged: 0 };
    // The log is in the order in which batches ended: what is above the limit there is older than what was found, or nearly.
    let inLog = 0;
    for await (const entry of this.#log.newestFirst(reading)) {
      if (inLog > limit) break;
      if (found.has(entry.id) || !matches(entry)) continue;
      found.set(entry.id, entry);
      inLog += 1;
    }
    const entries = [...found.values()].sort((a, b) => Date.parse(b.createdAt) - Date.parse(a.createdAt));
    return { entries: entries.slice(0, limit), hasMore: entries.length > limit, damagedLines: reading.damaged };
  }

  /** Copies the images of a batch that is about to be removed. Rejects where they are not safe on the disk. */
  async keep(batchId: string): Promise<void> {
    const directory = join(this.#root, batchId);
    if (await isThere(join(directory, KEPT))) return;
    const batch = new BatchImages(directory);
    if (await batch.refresh()) await this.#log.append([...batch.images.values()]);
  }

  /** Whoever asks while a look is under way waits for the next one: his image may have been saved since it began. */
  async #look({ isQuiet } = { isQuiet: false }): Promise<void> {
    await this.#looking;
    this.#looking ??= this.#lookAtAll(isQuiet).finally(() => {
      this.#looking = undefined;
    });
    await this.#looking;
  }

  async #lookAtAll(isQuiet: boolean): Promise<void> {
    const names = await readdir(this.#root).catch(() => []); // nothing was ever asked for
    const there = new Set(names);
    for (const id of [...this.#open.keys()]) if (!there.has(id)) this.#open.delete(id);
    for (const id of names) if (!this.#kept.has(id) && Uuid.safeParse(id).success) await this.#lookAt(id, { isQuiet });
  }

  async #lookAt(batchId: string, { isQuiet }: { isQuiet: boolean }): Promise<void> {
    const directory = join(this.#root, batchId);
    if (await isThere(join(directory, KEPT))) {
      this.#kept.add(batchId);
      this.#open.delete(batchId); // by another process
      return;
    }
    const batch = this.#open.get(batchId) ?? new BatchImages(directory);
    if (!(await batch.refresh())) return void this.#open.delete(batchId);
    this.#open.set(batchId, batch);
    if (!batch.isEnded || isQuiet) return;
    try {
      await this.#log.append([...batch.images.values()]);
    } catch {
      return; // a full disk: its images are still in memory, and it is tried again
    }
    this.#kept.add(batchId);
    this.#open.delete(batchId);
    // A batch removed meanwhile, or a directory that takes no file: then the next process copies them once more, this one not.
    await writeFile(join(directory, KEPT), '', { mode: 0o600 }).catch(() => undefined);
  }
}

async function first<T>(all: AsyncGenerator<T>): Promise<T | undefined> {
  for await (const one of all) return one;
  return undefined;
}

async function isThere(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined)) !== undefined;
}
