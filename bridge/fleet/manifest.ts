import { copyFile, open, readFile, rename } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { syncDirectory, writeDurable } from '../../shared/durable-file.ts';
import type { ManifestLine } from './manifest-lines.ts';
import { ManifestState, readLines, toText } from './manifest-lines.ts';
import { mend } from './manifest-mend.ts';

/**
 * The durable record of one batch: append-only JSONL with one writer, the holder of the batch's lock. Other processes read
 * it whole at any time. Lines that are appended together, or while a sync runs, share one fsync.
 */
export class Manifest implements AsyncDisposable {
  readonly #file: FileHandle;
  #waiting: { text: string; isSynced: boolean; resolve: () => void; reject: (error: unknown) => void }[] = [];
  #writing: Promise<void> | undefined;

  private constructor(file: FileHandle) {
    this.#file = file;
  }

  /** A new manifest. When this resolves, the lines and the file's name survive a power cut. */
  static async create(path: string, lines: readonly ManifestLine[]): Promise<Manifest> {
    const manifest = new Manifest(await open(path, 'ax', 0o600));
    await manifest.append(lines);
    await syncDirectory(dirname(path));
    await syncDirectory(dirname(dirname(path)));
    return manifest;
  }

  /**
   * An existing one, to go on with. A torn last line is ended; one with damaged lines is kept aside, and cleaned of them.
   * Undefined when nothing of use can be read: then it is only kept aside.
   */
  static async resume(path: string): Promise<{ manifest: Manifest; state: ManifestState } | undefined> {
    const text = await readFile(path, 'utf8');
    const { lines, damaged } = await readAll(text);
    if (damaged > 0) {
      const keptAs = `${path}.corrupt-${Date.now()}`;
      const mended = mend(lines, { damaged, keptAs, batchId: basename(dirname(path)), nowMs: Date.now() });
      if (mended === undefined) {
        await rename(path, keptAs);
        return undefined;
      }
      await copyFile(path, keptAs);
      await writeDurable(path, mended.map(toText).join(''));
      return { manifest: new Manifest(await open(path, 'a', 0o600)), state: stateOf(mended) };
    }
    const manifest = new Manifest(await open(path, 'a', 0o600));
    if (text !== '' && !text.endsWith('\n')) await manifest.#file.appendFile('\n');
    return { manifest, state: stateOf(lines) };
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
    const text = lines.map(toText).join('');
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
        await this.#file.appendFile(batch.map(({ text }) => text).join(''));
        if (batch.some(({ isSynced }) => isSynced)) await this.#file.datasync();
        for (const { resolve } of batch) resolve();
      } catch (error) {
        for (const { reject } of batch) reject(error);
      }
    }
    // In the same tick as the last look at the queue: later, a line that came in between would wait for nobody.
    this.#writing = undefined;
  }
}

/** So many lines take about 10 ms: then it is the turn of others. */
const LINES_AT_ONCE = 500;

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

function stateOf(lines: readonly ManifestLine[]): ManifestState {
  const state = new ManifestState();
  for (const line of lines) state.apply(line);
  return state;
}
