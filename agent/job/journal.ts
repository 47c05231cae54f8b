import type { FileHandle } from 'node:fs/promises';
import { constants } from 'node:fs';
import { copyFile, open, readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { toCheckedLine } from '../../shared/checked-line.ts';
import { makeDirectory, syncDirectory, writeDurable } from '../../shared/durable-file.ts';
import type { AppError } from '../../shared/errors.ts';
import type { Job } from '../../shared/job.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Log } from '../../shared/log.ts';
import type { Attempt, JobEnd, Line, LineKey } from './journal-lines.ts';
import { endOf, idOf, keyOf, linesOf, parseLine } from './journal-lines.ts';
import { toDiskError } from './disk-error.ts';

const COMPACT_AFTER_LINES = 10_000;
/** Nobody asks for these any more; some are kept for whoever looks, and for a bridge that repeats itself. About 10 MB. */
const KEPT_ACKED = 10_000;

type JournalOptions = { dir: string; log: Log; keptMs?: number; keptAcked?: number };

/**
 * Every accepted attempt and its end on disk, one JSON line each, fsynced before the promise resolves.
 * After open no attempt is without an end: those that had none were interrupted by whatever ended the last process.
 */
export class Journal implements AsyncDisposable {
  readonly #path: string;
  readonly #log: Log;
  readonly #keptMs: number;
  readonly #keptAcked: number;
  readonly #attempts = new Map<string, Attempt>();
  readonly #warnings: string[] = [];
  #file: FileHandle | undefined;
  #isClosed = false;
  /** Length of the file up to its last complete line; what is behind it was never promised to anybody. */
  #goodBytes = 0;
  /** Lines written since the file was last rewritten. */
  #lines = 0;
  #pending: { text: string; line: Line | undefined; resolve: () => void; reject: (error: AppError) => void }[] = [];
  #writing: Promise<void> = Promise.resolve();
  #failure: AppError | undefined;
  #refusedBytes = 0;

  private constructor(o: JournalOptions) {
    this.#path = join(o.dir, 'journal.jsonl');
    this.#log = o.log;
    this.#keptMs = o.keptMs ?? LIMITS.resultKeptMs.value;
    this.#keptAcked = o.keptAcked ?? KEPT_ACKED;
  }

  /**
   * A full disk does not keep the agent from starting: then `failure` is set, and what was interrupted is known as such
   * here although the line that says so is still missing. The next start would find the same.
   */
  static async open(options: JournalOptions): Promise<Journal> {
    await makeDirectory(options.dir, { mode: 0o700 });
    const journal = new Journal(options);
    await journal.#read();
    journal.#interruptUnended();
    try {
      await journal.#compact();
    } catch (error) {
      journal.#fail(error);
    }
    return journal;
  }

  /** What a person should know about the file: parts of it that could not be read. */
  get warnings(): readonly string[] {
    return this.#warnings;
  }

  /** Set while the last write failed: nothing new may be accepted. */
  get failure(): AppError | undefined {
    return this.#failure;
  }

  /** All attempts of a token, oldest first. */
  attempts(tokenId: string): Attempt[] {
    return [...this.#attempts.values()].filter((attempt) => attempt.tokenId === tokenId);
  }

  tokenIds(): Set<string> {
    return new Set([...this.#attempts.values()].map((attempt) => attempt.tokenId));
  }

  all(): Attempt[] {
    return [...this.#attempts.values()];
  }

  find(tokenId: string, jobId: string, attempt: number): Attempt | undefined {
    return this.#attempts.get(keyOf(tokenId, jobId, attempt));
  }

  async taken(tokenId: string, job: Job): Promise<void> {
    await this.#append({ event: 'taken', ...this.#key(tokenId, job), job });
  }

  async ended(tokenId: string, job: Job, end: JobEnd): Promise<void> {
    const key = this.#key(tokenId, job);
    if (end.state === 'done') await this.#append({ event: 'done', ...key, result: end.result });
    if (end.state === 'failed') await this.#append({ event: 'failed', ...key, error: end.error });
    if (end.state === 'cancelled') await this.#append({ event: 'cancelled', ...key });
  }

  async acked(tokenId: string, job: { jobId: string; attempt: number }): Promise<void> {
    await this.#append({ event: 'acked', ...this.#key(tokenId, job) });
  }

  /** Drops what is older than is kept, or acknowledged and long ago, and rewrites the file without it once that is worth it. */
  async compact(): Promise<void> {
    if (this.#lines > COMPACT_AFTER_LINES) await this.#flushed(() => this.#compact());
  }

  /** Forgets a token that was revoked. */
  async forget(tokenId: string): Promise<void> {
    for (const [id, attempt] of this.#attempts) if (attempt.tokenId === tokenId) this.#attempts.delete(id);
    await this.#flushed(() => this.#compact());
  }

  /** Finds out whether the disk takes lines again, and clears `failure` if so. */
  async probe(): Promise<void> {
    // As much as was refused: a single byte may still fit where no line does. Blank lines are skipped when it is read.
    const blank = `${' '.repeat(this.#refusedBytes)}\n`;
    await this.#write(blank).catch(() => undefined); // the failure is kept, and known to whoever asked for `failure`
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true;
    await this.#writing;
    await this.#file?.close();
    this.#file = undefined;
  }

  #key(tokenId: string, job: { jobId: string; attempt: number }): LineKey {
    return { at: Date.now(), tokenId, jobId: job.jobId, attempt: job.attempt };
  }

  async #append(line: Line): Promise<void> {
    await this.#write(toCheckedLine(line), line);
  }

  /** Lines that come while a write is under way share the next fsync. */
  #write(text: string, line?: Line): Promise<void> {
    const written = new Promise<void>((resolve, reject) => this.#pending.push({ text, line, resolve, reject }));
    if (this.#pending.length === 1) void this.#flushed(() => this.#writePending()); // each writer sees its own failure
    return written;
  }

  #flushed(work: () => Promise<void>): Promise<void> {
    const done = this.#writing.then(work);
    this.#writing = done.catch(() => undefined); // the failure belongs to whoever asked for this piece of work
    return done;
  }

  async #writePending(): Promise<void> {
    const batch = this.#pending;
    this.#pending = [];
    const bytes = Buffer.from(batch.map((each) => each.text).join(''));
    try {
      const file = await this.#opened();
      await writeFully(file, { bytes, at: this.#goodBytes });
      await file.datasync();
      this.#goodBytes += bytes.length;
      this.#failure = undefined;
      this.#lines += batch.length;
      for (const { line, resolve } of batch) {
        if (line !== undefined) this.#apply(line);
        resolve();
      }
    } catch (error) {
      const failure = this.#fail(error);
      this.#refusedBytes = bytes.length;
      await this.#file?.truncate(this.#goodBytes).catch(() => undefined); // else the next line overwrites what is there
      for (const each of batch) each.reject(failure);
    }
  }

  #fail(error: unknown): AppError {
    this.#failure = toDiskError(error, this.#path);
    this.#log.error({ event: 'journal-write-failed', reason: this.#failure.message });
    return this.#failure;
  }

  /** Opened again where that failed before: what it was for may be over. */
  async #opened(): Promise<FileHandle> {
    if (this.#isClosed) throw new Error('the journal is closed');
    if (this.#file !== undefined) return this.#file;
    this.#file = await open(this.#path, constants.O_RDWR | constants.O_CREAT, 0o600);
    await syncDirectory(dirname(this.#path)); // it may just have been created
    return this.#file;
  }

  async #read(): Promise<void> {
    const file = await readFile(this.#path).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return Buffer.alloc(0);
      throw error;
    });
    this.#goodBytes = file.lastIndexOf('\n') + 1;
    const lines = file.toString().split('\n');
    const last = lines.pop() ?? '';
    let broken = 0;
    for (const line of lines) {
      if (line.trim() === '') continue;
      const parsed = parseLine(line);
      if (parsed === undefined) broken += 1;
      else this.#apply(parsed);
    }
    const torn = parseLine(last);
    if (torn !== undefined)
      this.#apply(torn); // all of it but its end
    else if (last.trim() !== '') this.#log.info({ event: 'journal-last-line-ignored', bytes: last.length }); // a power cut: nobody was answered for it
    if (broken > 0) await this.#keepCorrupt(broken);
  }

  async #keepCorrupt(lines: number): Promise<void> {
    const kept = `${this.#path}.corrupt-${Date.now()}`;
    try {
      await copyFile(this.#path, kept);
      this.#warnings.push(`${lines} lines of the journal could not be read; the file was kept as ${kept}.`);
    } catch (error) {
      const why = toDiskError(error, kept).message;
      this.#warnings.push(`${lines} lines of the journal could not be read, and the file could not be kept: ${why}`);
    }
  }

  #apply(line: Line): void {
    const id = idOf(line);
    if (line.event === 'taken') {
      this.#attempts.set(id, { tokenId: line.tokenId, job: line.job, end: undefined, isAcked: false });
      return;
    }
    const known = this.#attempts.get(id);
    if (known === undefined) return; // its `taken` was compacted away or unreadable
    if (line.event === 'acked') this.#attempts.set(id, { ...known, isAcked: true });
    else if (known.end === undefined) this.#attempts.set(id, { ...known, end: { ...endOf(line), atMs: line.at } });
  }

  #interruptUnended(): void {
    for (const { tokenId, job, end } of this.#attempts.values()) {
      if (end !== undefined) continue;
      const message = 'The agent restarted while it had this job. It can be taken again.';
      const error = { code: 'INTERRUPTED', message, retryable: true };
      this.#apply({ event: 'failed', ...this.#key(tokenId, job), error });
    }
  }

  async #compact(): Promise<void> {
    let acked = [...this.#attempts.values()].filter(({ isAcked }) => isAcked).length;
    for (const [id, { end, isAcked }] of this.#attempts) {
      const isOld = end !== undefined && Date.now() - end.atMs > this.#keptMs;
      if (!isOld && !(isAcked && acked > this.#keptAcked)) continue;
      this.#attempts.delete(id); // the oldest come first
      if (isAcked) acked -= 1;
    }
    const text = [...this.#attempts.values()].flatMap(linesOf).join('');
    await this.#file?.close(); // Windows does not replace an open file
    this.#file = undefined; // the next line opens it again
    await writeDurable(this.#path, text);
    this.#goodBytes = Buffer.byteLength(text);
    this.#lines = 0;
  }
}

/** The last block of a disk takes part of a line and reports success: only the whole line counts. */
async function writeFully(file: FileHandle, { bytes, at }: { bytes: Buffer; at: number }): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, at + done);
    if (bytesWritten === 0) throw new Error('no byte was written');
    done += bytesWritten;
  }
}
