import { closeSync, fstatSync, openSync, readdirSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { ManifestState, readLines } from './manifest-lines.ts';

type Entry = { inode: number; readTo: number; state: ManifestState };

/**
 * All batches in the state directory, whoever works on them, read from their manifests. Only what was appended since the
 * last look is read.
 */
export class BatchIndex {
  readonly #directory: string;
  readonly #entries = new Map<string, Entry>();

  constructor(directory: string) {
    this.#directory = directory;
  }

  /** Whole batches by id, as of now. */
  batches(): Map<string, ManifestState> {
    const ids = new Set(namesIn(this.#directory));
    for (const id of this.#entries.keys()) if (!ids.has(id)) this.#entries.delete(id);
    for (const id of ids) this.#refresh(id);
    return new Map([...this.#entries].flatMap(([id, { state }]) => (state.isWhole ? [[id, state] as const] : [])));
  }

  /** By the id of the batch or of one of its jobs. */
  find(id: string): { batchId: string; state: ManifestState } | undefined {
    const batches = this.batches();
    const own = batches.get(id);
    if (own !== undefined) return { batchId: id, state: own };
    for (const [batchId, state] of batches) if (state.job(id) !== undefined) return { batchId, state };
    return undefined;
  }

  #refresh(id: string): void {
    let file: number;
    try {
      file = openSync(join(this.#directory, id, 'manifest.jsonl'), 'r');
    } catch {
      this.#entries.delete(id); // no manifest yet, or no more
      return;
    }
    try {
      const { size, ino } = fstatSync(file);
      const known = this.#entries.get(id);
      // A cleaned manifest is another file, and is read from its start.
      const entry =
        known !== undefined && known.inode === ino && known.readTo <= size
          ? known
          : { inode: ino, readTo: 0, state: new ManifestState() };
      this.#entries.set(id, entry);
      if (size === entry.readTo) return;
      const bytes = Buffer.alloc(size - entry.readTo);
      const read = readSync(file, bytes, 0, bytes.length, entry.readTo);
      const end = bytes.subarray(0, read).lastIndexOf(10) + 1; // only whole lines
      for (const line of readLines(bytes.subarray(0, end).toString('utf8')).lines) entry.state.apply(line);
      entry.readTo += end;
    } finally {
      closeSync(file);
    }
  }
}

function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return []; // nothing was ever asked for
  }
}
