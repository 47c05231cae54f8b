import { constants, statSync } from 'node:fs';
import { mkdir, open, readdir, realpath, rename, rm, stat, truncate } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { pause } from '../../shared/abort.ts';
import { cleanLine, cleanLines } from './log-lines.ts';

export type LogBounds = { maxMiB: number; keep: number };

/** What follows the slot in the name of a log; older parts of a large one end with .1, .2 ... */
const STAMPED = /-\d{17}\.log(\.(\d+|new))?$/;
const DEFAULT_BOUNDS: LogBounds = { maxMiB: 20, keep: 5 };
const MIB = 1024 * 1024;
const TAIL_BYTES = 100 * 1024;
/** Answered with success, as the access log of a web server has it. */
const OWN_QUESTION = /"GET \/(health|version|metrics|v1\/models)[^"]*" 200/;
/** What a flood leaves: less than a reader gets, so that the note above it is seen. */
const KEPT_BYTES = TAIL_BYTES / 2;
const COPY_BYTES = MIB / 4;
const FOLLOW_MS = 250;
const BOUND_MS = 250;
const FAST_BOUND_MS = 50;
/** A log that fills a part sooner than this would push all older parts out in no time: its output is dropped instead. */
const FLOOD_MS = 10_000;
/** Lines of an error message: shorter than those of a log, because they travel in frames. */
const ERROR_LINES = 20;
/** Among so many. */
const OF_WHICH_LINES = 500;
const ERROR_CHARS = 300;

/** The log file of one start of a server. The server writes it by itself: no pipe that could fill up or break. */
export class ServerLog {
  readonly path: string;
  readonly #bounds: LogBounds;
  readonly #secrets: readonly string[];
  #rotatedMs = -Infinity;
  /** Of `bound`, which never runs twice at a time: kept, because a flood calls for it many times a second. */
  #copyBuffer: Buffer | undefined;

  private constructor(path: string, { bounds, secrets }: { bounds: LogBounds; secrets: readonly string[] }) {
    this.path = path;
    this.#bounds = bounds;
    this.#secrets = secrets;
  }

  /** A new file for this start; those of the last few starts of the slot stay. `secrets` are never shown to a reader. */
  static async create(o: {
    logDir: string;
    slotId: string;
    bounds?: LogBounds;
    secrets?: readonly string[];
  }): Promise<ServerLog> {
    const { logDir, slotId, bounds = DEFAULT_BOUNDS, secrets = [] } = o;
    await mkdir(logDir, { recursive: true, mode: 0o750 });
    // The kernel names open files by their real path, and by that the members of the tree are found.
    const directory = await realpath(logDir);
    const stamp = new Date().toISOString().replace(/\D/g, '');
    for (const starts of (await startsOf(directory, slotId)).slice(bounds.keep - 1)) {
      for (const name of starts) await rm(join(directory, name), { force: true });
    }
    return new ServerLog(join(directory, `${fileSlot(slotId)}-${stamp}.log`), { bounds, secrets });
  }

  /** The log of the newest start of a slot. Undefined where it was never started. */
  static async newest(o: { logDir: string; slotId: string; bounds?: LogBounds }): Promise<ServerLog | undefined> {
    const [last] = await startsOf(o.logDir, o.slotId);
    const name = last?.find((part) => part.endsWith('.log')) ?? last?.[0]?.replace(/\.\d+$/, '');
    return name === undefined
      ? undefined
      : new ServerLog(join(o.logDir, name), { bounds: o.bounds ?? DEFAULT_BOUNDS, secrets: [] });
  }

  /** Which slot a file is the log of; undefined where it is none. */
  static slotOf(path: string): string | undefined {
    const name = basename(path);
    return name.endsWith('.log') && STAMPED.test(name) ? name.replace(STAMPED, '') : undefined;
  }

  /** For the server's stdout and stderr. Appending, so that truncating the file leaves no hole. */
  openForServer(): ReturnType<typeof open> {
    return open(this.path, constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT, 0o640);
  }

  async size(): Promise<number> {
    try {
      return (await stat(this.path)).size;
    } catch {
      return 0; // removed by someone: then there is nothing to read
    }
  }

  /** As `size`, without leaving this tick: the request of a job does not wait behind pictures for a free thread of the pool. */
  sizeNow(): number {
    return statSync(this.path, { throwIfNoEntry: false })?.size ?? 0;
  }

  /** The last lines, fit for an error message: without those about our own questions, which say nothing of a death. */
  async lastLines(): Promise<string> {
    const lines = await this.#lastOf(OF_WHICH_LINES, ERROR_CHARS);
    return lines
      .filter((line) => !OWN_QUESTION.test(line))
      .slice(-ERROR_LINES)
      .join('\n');
  }

  /** The last lines, for a person: without colours and secrets, each 16 KiB at most. */
  tail(lines: number): Promise<string[]> {
    return this.#lastOf(lines);
  }

  /**
   * Reads what is appended, every 250 ms until the signal aborts. Survives rotation; of a flood it shows the end. `from`: the
   * size that it had, where what came since then counts.
   */
  async follow(o: { signal: AbortSignal; onText: (text: string) => void; from?: number }): Promise<void> {
    const { signal, onText } = o;
    let at = o.from ?? (await this.size());
    while (!signal.aborted) {
      await pause(FOLLOW_MS, signal);
      const size = await this.size();
      if (size < at) at = 0;
      if (size > at) onText(await read(this.path, { from: Math.max(at, size - TAIL_BYTES), to: size }));
      at = size;
    }
  }

  /** The same by whole lines, as `tail` gives them. */
  async followLines({ signal, onLine }: { signal: AbortSignal; onLine: (line: string) => void }): Promise<void> {
    let rest = '';
    const onText = (text: string): void => {
      const lines = (rest + text).split('\n');
      rest = (lines.pop() ?? '').slice(-TAIL_BYTES);
      for (const line of lines) {
        const clean = cleanLine(line, { secrets: this.#secrets });
        if (clean !== '') onLine(clean);
      }
    };
    await this.follow({ signal, onText });
  }

  /** Keeps the file near its bound until the signal aborts, looking more often while it grows fast. Never rejects. */
  async keepBounded(o: { signal: AbortSignal; onProblem: (error: unknown) => void }): Promise<void> {
    let last = 0;
    let everyMs = BOUND_MS;
    while (!o.signal.aborted) {
      await pause(everyMs, o.signal);
      const size = await this.size();
      everyMs = size - last > this.#maxBytes / 8 ? FAST_BOUND_MS : BOUND_MS;
      last = size;
      try {
        await this.bound();
      } catch (error) {
        o.onProblem(error);
      }
    }
  }

  /**
   * Moves the end of a file that has grown too large to an older part beside it. The server goes on writing to the same
   * file: what it writes during the copy is copied too, so that a part is longer than the bound by that, and never more
   * than twice as long; what it writes between the copy and the cut is lost. A flood is cut without a copy, but for its end.
   */
  async bound(): Promise<void> {
    const size = await this.size();
    if (size <= this.#maxBytes) return;
    const nowMs = performance.now();
    if (nowMs - this.#rotatedMs < FLOOD_MS) return this.#drop(size);
    this.#rotatedMs = nowMs;
    const part = `${this.path}.new`;
    try {
      await this.#copyFrom(size - this.#maxBytes, { to: part, maxBytes: 2 * this.#maxBytes });
      await this.#shiftParts(part);
    } catch (error) {
      await this.#drop(size); // whatever is in the way of a copy, a full disk above all, must not keep the file growing
      await rm(part, { force: true });
      throw error;
    }
    await truncate(this.path);
  }

  /** To the end of the file, which may be growing. */
  async #copyFrom(from: number, o: { to: string; maxBytes: number }): Promise<void> {
    const buffer = this.#buffer;
    const source = await open(this.path, 'r');
    try {
      const target = await open(o.to, 'w', 0o640);
      try {
        for (let copied = 0; copied < o.maxBytes;) {
          const { bytesRead } = await source.read(buffer, 0, buffer.length, from + copied);
          if (bytesRead === 0) return;
          await target.write(buffer, 0, bytesRead);
          copied += bytesRead;
        }
      } finally {
        await target.close();
      }
    } finally {
      await source.close();
    }
  }

  async #shiftParts(newest: string): Promise<void> {
    await rm(`${this.path}.${this.#bounds.keep}`, { force: true });
    for (let at = this.#bounds.keep - 1; at >= 1; at -= 1) {
      await rename(`${this.path}.${at}`, `${this.path}.${at + 1}`).catch(() => undefined); // not so many yet
    }
    await rename(newest, `${this.path}.1`);
  }

  /** The end stays as the bytes that it is: nobody reads it yet. */
  async #drop(size: number): Promise<void> {
    const file = await open(this.path, constants.O_RDWR | constants.O_APPEND);
    try {
      const { bytesRead } = await file.read(this.#buffer, 0, KEPT_BYTES, Math.max(0, size - KEPT_BYTES));
      await file.truncate();
      const note = Buffer.from(`[gantry: ${Math.round(size / MIB)} MiB of output dropped, too much to keep]\n`);
      await file.writev([note, this.#buffer.subarray(0, bytesRead)]);
    } finally {
      await file.close();
    }
  }

  get #buffer(): Buffer {
    return (this.#copyBuffer ??= Buffer.allocUnsafeSlow(COPY_BYTES));
  }

  get #maxBytes(): number {
    return this.#bounds.maxMiB * MIB;
  }

  /** From the file, and from the part before where it has just begun anew. */
  async #lastOf(count: number, maxChars?: number): Promise<string[]> {
    const clean = async (path: string, bytes: number): Promise<string[]> =>
      cleanLines(await read(path, { from: Math.max(0, bytes - TAIL_BYTES), to: bytes }), {
        secrets: this.#secrets,
        ...(maxChars !== undefined && { maxChars }),
      });
    const lines = await clean(this.path, await this.size());
    if (lines.length >= count) return lines.slice(-count);
    const older = `${this.path}.1`;
    const olderBytes = await stat(older).then(
      ({ size }) => size,
      () => 0, // it was never rotated
    );
    return [...(olderBytes > 0 ? await clean(older, olderBytes) : []), ...lines].slice(-count);
  }
}

/** The last step of a tqdm bar, as in ` 48%|████▊     | 24/50 [00:03<00:03,  7.73it/s]`. */
export function lastStep(text: string): { step: number; steps: number } | undefined {
  const last = [...text.matchAll(/\|\s*(\d{1,5})\/(\d{1,5}) \[/g)].at(-1);
  return last && { step: Number(last[1]), steps: Number(last[2]) };
}

/** The files of each start of a slot, newest start first. */
async function startsOf(directory: string, slotId: string): Promise<string[][]> {
  const slot = fileSlot(slotId);
  const names = (await readdir(directory).catch(() => [])).filter((name) => {
    return STAMPED.test(name) && name.replace(STAMPED, '') === slot;
  });
  const starts = new Map<string, string[]>();
  for (const name of names) {
    const start = name.replace(/\.log.*$/, '');
    starts.set(start, [...(starts.get(start) ?? []), name]);
  }
  return [...starts.entries()].sort(([a], [b]) => (a < b ? 1 : -1)).map(([, files]) => files.sort());
}

/** Replicas have a # in their name, which shells do not like; no alias has a ~. */
function fileSlot(slotId: string): string {
  return slotId.replace(/[^\w.-]/g, '~');
}

/** Not what came since its size was asked: a follower reads that next time. */
async function read(path: string, { from, to }: { from: number; to: number }): Promise<string> {
  try {
    const file = await open(path, 'r');
    try {
      const { buffer, bytesRead } = await file.read(Buffer.allocUnsafe(to - from), 0, to - from, from);
      return buffer.toString('utf8', 0, bytesRead);
    } finally {
      await file.close();
    }
  } catch {
    return ''; // removed by someone
  }
}
