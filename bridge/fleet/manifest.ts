import { randomUUID } from 'node:crypto';
import { copyFile, open, readFile, rename, stat } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { dirname } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { toCheckedLine } from '../../shared/checked-line.ts';
import { syncDirectory, writeDurable } from '../../shared/durable-file.ts';
import type { ManifestLine } from './manifest-lines.ts';
import { readLines } from './manifest-lines.ts';
import { repairManifest } from './manifest-repair.ts';

const NEWLINE = 10;
/** So many lines take about 10 ms: then it is the turn of others. */
const LINES_AT_ONCE = 500;

/**
 * The durable record of one batch: append-only JSONL with one writer, the holder of the batch's lock. Other processes read
 * it whole at any time. Lines that are appended together, or while a sync runs, share one fsync.
 */
export class Manifest implements AsyncDisposable {
  readonly #file: FileHandle;
  #waiting: { text: string; isSynced: boolean; resolve: () => void; reject: (error: unknown) => void }[] = [];
  #writing: Promise<void> | undefined;
  /** Length of what was promised to somebody; what a failed write left behind it goes before the next one. */
  #goodBytes: number;
  #isTorn = false;

  private constructor(file: FileHandle, goodBytes: number) {
    this.#file = file;
    this.#goodBytes = goodBytes;
  }

  /** A new manifest. When this resolves, the lines and the file's name survive a power cut. */
  static async create(path: string, lines: readonly ManifestLine[]): Promise<Manifest> {
    const manifest = new Manifest(await open(path, 'ax', 0o600), 0);
    await manifest.append(lines);
    await syncName(path);
    return manifest;
  }

  /**
   * An existing one, to go on with. A torn last line is cut off: nobody was answered for it. A damaged file is kept aside, and
   * what can be read of it is made whole again. Undefined where nothing can: then it was moved aside.
   */
  static async resume(
    path: string,
    { batchId }: { batchId: string },
  ): Promise<{ manifest: Manifest; lines: ManifestLine[]; damaged: number } | undefined> {
    const bytes = await readFile(path);
    const { lines, damaged } = await readAll(bytes.toString('utf8'));
    if (damaged === 0) {
      const file = await open(path, 'a', 0o600);
      const wholeBytes = bytes.lastIndexOf(NEWLINE) + 1;
      if (wholeBytes < bytes.length) await file.truncate(wholeBytes);
      // What the dead process wrote is acted on from now on, and it may have died before its own sync.
      await file.datasync();
      await syncName(path);
      return { manifest: new Manifest(file, wholeBytes), lines, damaged };
    }
    const keptAs = `${path}.corrupt-${Date.now()}`;
    const createdAt = (await stat(path)).mtime.toISOString();
    const repaired = repairManifest(lines, { batchId, keptAs, damaged, createdAt, newId: randomUUID });
    if (repaired === undefined) {
      await rename(path, keptAs);
      return undefined;
    }
    await copyFile(path, keptAs);
    await writeDurable(path, repaired.map(toCheckedLine).join(''));
    const file = await open(path, 'a', 0o600);
    return { manifest: new Manifest(file, (await file.stat()).size), lines: repaired, damaged };
  }

  /** Resolves when the lines are on the disk. */
  append(lines: readonly ManifestLine[]): Promise<void> {
    return this.#enqueue(lines, true);
  }

  /** For lines that only inform others: written soon, in order, and not synced. */
  note(line: ManifestLine): Promise<void> {
    return this.#enqueue([line], false);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    while (this.#writing !== undefined) await this.#writing;
    await this.#file.close().catch(() => undefined); // closed twice: nothing is left to lose
  }

  #enqueue(lines: readonly ManifestLine[], isSynced: boolean): Promise<void> {
    const text = lines.map(toCheckedLine).join('');
    return new Promise((resolve, reject) => {
      this.#waiting.push({ text, isSynced, resolve, reject });
      this.#writing ??= this.#writeAll();
    });
  }

  /** Never rejects: each failure goes to those who wait for the lines. */
  async #writeAll(): Promise<void> {
    while (this.#waiting.length > 0) {
      const batch = this.#waiting;
      this.#waiting = [];
      try {
        if (this.#isTorn) await this.#mend();
        const bytes = Buffer.from(batch.map(({ text }) => text).join(''));
        await this.#file.appendFile(bytes);
        if (batch.some(({ isSynced }) => isSynced)) await this.#file.datasync();
        this.#goodBytes += bytes.length;
        for (const { resolve } of batch) resolve();
      } catch (error) {
        this.#isTorn = true;
        for (const { reject } of batch) reject(error);
      }
    }
    // In the same tick as the last look at the queue: later, a line that came in between would wait for nobody.
    this.#writing = undefined;
  }

  /** A full disk takes part of a line before it refuses: the next one must not be written behind it. */
  async #mend(): Promise<void> {
    await this.#file.truncate(this.#goodBytes);
    this.#isTorn = false;
  }
}

/** As `readLines`; a large manifest takes a second or more, in which this process answers its hosts and its client. */
async function readAll(text: string): Promise<{ lines: ManifestLine[]; damaged: number }> {
  const all: ManifestLine[] = [];
  let damaged = 0;
  const texts = text.slice(0, text.lastIndexOf('\n') + 1).split('\n');
  for (let from = 0; from < texts.length; from += LINES_AT_ONCE) {
    const part = readLines(`${texts.slice(from, from + LINES_AT_ONCE).join('\n')}\n`);
    all.push(...part.lines);
    damaged += part.damaged;
    await setImmediate();
  }
  return { lines: all, damaged };
}

/** The name of the file, and that of the directory of its batch. */
async function syncName(path: string): Promise<void> {
  await syncDirectory(dirname(path));
  await syncDirectory(dirname(dirname(path)));
}
