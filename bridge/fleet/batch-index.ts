import { closeSync, fstatSync, openSync, readdirSync, readFileSync, readSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { readCheckedLine } from '../../shared/checked-line.ts';
import { ManifestState, readLines } from './manifest-lines.ts';

export type Indexed = { batchId: string; state: ManifestState };

/** What was read of one manifest. `state` is there only for batches that somebody asked for lately. */
type Entry = {
  inode: number;
  readTo: number;
  size: number;
  changedMs: number;
  isEnded: boolean;
  /** Some of its lines cannot be read: whoever gets its lock makes it whole again. */
  isDamaged: boolean;
  state: ManifestState | undefined;
};

/** The end of a batch is in the last lines of its manifest. */
export const TAIL_BYTES = 64 * 1024;
/** Batches whose jobs stay in memory have no more jobs than this together, but for the last one that was asked for. */
const JOBS_KEPT = 5_000;

/**
 * All batches in the state directory, whoever works on them, read from their manifests when somebody asks for them. After
 * that only what was appended is read, and only the last asked for are kept. Whether a batch is over is told by the end of
 * its manifest, so that a look at all of them costs little however large they are.
 */
export class BatchIndex {
  readonly #directory: string;
  readonly #jobsKept: number;
  /** By id; the last asked for are last. */
  readonly #entries = new Map<string, Entry>();

  constructor(directory: string, { jobsKept = JOBS_KEPT }: { jobsKept?: number } = {}) {
    this.#directory = directory;
    this.#jobsKept = jobsKept;
  }

  /** How many jobs are in memory, for those who want to know what it costs. */
  get jobsInMemory(): number {
    return [...this.#entries.values()].reduce((sum, { state }) => sum + (state?.jobs.length ?? 0), 0);
  }

  /**
   * Ids of batches that are not ended, as of now, and of those whose manifest is seen to be damaged: in its last lines, or
   * anywhere once somebody asked for the batch. The call of one may not be answered yet. Those in `but` are not looked at.
   */
  unfinished({ but }: { but?: { has: (id: string) => boolean } } = {}): string[] {
    return this.#ids().filter((id) => {
      if (but?.has(id) === true) return false;
      const entry = this.#refresh(id);
      return entry !== undefined && entry.size > 0 && (entry.isDamaged || !entry.isEnded);
    });
  }

  /** Whole batches, those whose manifests changed last first. */
  newest(limit: number): Indexed[] {
    const ids = this.#ids().flatMap((id) => {
      const entry = this.#refresh(id);
      return entry === undefined ? [] : [{ id, changedMs: entry.changedMs }];
    });
    ids.sort((a, b) => b.changedMs - a.changedMs);
    return ids.slice(0, limit).flatMap(({ id }) => this.#whole(id) ?? []);
  }

  /** By the id of the batch or of one of its jobs. */
  find(id: string): Indexed | undefined {
    const ids = this.#ids();
    return ids.includes(id) ? this.#whole(id) : this.#withJob(id, ids);
  }

  /** The ended batch with this job: what others work on, which may be large, is not read for it. */
  findEnded(jobId: string): Indexed | undefined {
    return this.#withJob(
      jobId,
      this.#ids().filter((id) => this.#refresh(id)?.isEnded === true),
    );
  }

  #withJob(jobId: string, ids: readonly string[]): Indexed | undefined {
    for (const batchId of ids) this.#refresh(batchId);
    const known = ids.find((batchId) => this.#entries.get(batchId)?.state?.job(jobId) !== undefined);
    // Those that are not in memory are searched as text, which is quicker than reading their lines.
    const found =
      known ?? ids.find((batchId) => this.#entries.get(batchId)?.state === undefined && this.#has(batchId, jobId));
    return found === undefined ? undefined : this.#whole(found);
  }

  #ids(): string[] {
    const ids = namesIn(this.#directory);
    const there = new Set(ids);
    for (const id of this.#entries.keys()) if (!there.has(id)) this.#entries.delete(id);
    return ids;
  }

  /** The batch with its jobs, read again if they were dropped. */
  #whole(batchId: string): Indexed | undefined {
    const entry = this.#refresh(batchId);
    if (entry === undefined) return undefined;
    const state = entry.state ?? this.#read(batchId, { state: new ManifestState(), from: 0 })?.state;
    if (state?.isWhole !== true) return undefined;
    this.#keep(batchId);
    return { batchId, state };
  }

  #refresh(id: string): Entry | undefined {
    const known = this.#entries.get(id);
    const now = statSync(join(this.#directory, id, 'manifest.jsonl'), { throwIfNoEntry: false });
    if (now !== undefined && known?.inode === now.ino && known.size === now.size) return known;
    // A cleaned manifest is another file, and is read from its start.
    const isSame = now !== undefined && known?.inode === now.ino && known.readTo <= now.size;
    return this.#read(id, isSame && known.state !== undefined ? { state: known.state, from: known.readTo } : undefined);
  }

  /** Follows the jobs of a batch that was asked for; of others only its end is looked at. */
  #read(id: string, known: { state: ManifestState; from: number } | undefined): Entry | undefined {
    let file: number;
    try {
      file = openSync(join(this.#directory, id, 'manifest.jsonl'), 'r');
    } catch {
      this.#entries.delete(id); // no manifest yet, or no more
      return undefined;
    }
    try {
      const { size, ino, mtimeMs } = fstatSync(file);
      const from = known?.from ?? Math.max(0, size - TAIL_BYTES);
      const bytes = Buffer.alloc(Math.max(0, size - from));
      const read = readSync(file, bytes, 0, bytes.length, from);
      const text = bytes.subarray(0, bytes.subarray(0, read).lastIndexOf(10) + 1); // only whole lines
      const entry: Entry = {
        inode: ino,
        readTo: from + text.length,
        size: from + read,
        changedMs: mtimeMs,
        isEnded: known === undefined ? hasEnd(text.toString('utf8')) : follow(known.state, text),
        isDamaged:
          this.#isKnownDamaged(id, ino) || (known === undefined ? hasBadLine(text, from) : known.state.damaged > 0),
        state: known?.state,
      };
      this.#entries.set(id, entry);
      if (known !== undefined) this.#keep(id);
      return entry;
    } finally {
      closeSync(file);
    }
  }

  /** A batch of which only the end is read again. */
  #isKnownDamaged(id: string, inode: number): boolean {
    const before = this.#entries.get(id);
    return before?.inode === inode && before.isDamaged;
  }

  /** This one was asked for last; the jobs of those asked for longest ago are dropped when there are too many. */
  #keep(id: string): void {
    const entry = this.#entries.get(id);
    if (entry === undefined) return;
    this.#entries.delete(id);
    this.#entries.set(id, entry);
    let jobs = 0;
    for (const one of [...this.#entries.values()].reverse()) {
      if (one.state === undefined) continue;
      jobs += one.state.jobs.length;
      if (jobs > this.#jobsKept && one !== entry) one.state = undefined;
    }
  }

  #has(batchId: string, text: string): boolean {
    const path = join(this.#directory, batchId, 'manifest.jsonl');
    try {
      return readFileSync(path).includes(`"jobId":"${text}"`);
    } catch {
      return false; // removed meanwhile
    }
  }
}

/** At the start of a line: inside of one, a prompt that says the same has its quotes escaped. */
export function hasEnd(text: string): boolean {
  return /^\{"type":"ended".*\}\n/m.test(text);
}

/** `text` begins at this byte of the manifest: the first line is not whole unless that is 0. */
function hasBadLine(text: Buffer, from: number): boolean {
  const lines = text.toString('utf8').split('\n');
  return lines.slice(from === 0 ? 0 : 1).some((line) => line !== '' && readCheckedLine(line) === undefined);
}

/** True once the batch is over. */
function follow(state: ManifestState, text: Buffer): boolean {
  const { lines, damaged } = readLines(text.toString('utf8'));
  for (const line of lines) state.apply(line);
  state.damaged += damaged;
  return state.ended !== undefined;
}

function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return []; // nothing was ever asked for
  }
}
