import type { FileHandle } from 'node:fs/promises';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { readLines } from '../fleet/manifest-lines.ts';
import type { HeaderLine, ImageEntry, JobLine } from './image-entry.ts';
import { toEntry } from './image-entry.ts';

const NEWLINE = 10;
/** Read and parsed at once; then it is the turn of others. */
const CHUNK_BYTES = 512 * 1024;
/** Most lines of a manifest tell how a job went: those that name an image are few. */
const WANTED = /^\{"type":"(batch|job|saved|ended)"/;

/** The images of one batch as its manifest tells them; only what was appended since is read again. */
export class BatchImages {
  readonly images = new Map<string, ImageEntry>();
  isEnded = false;
  readonly #path: string;
  #inode: number | undefined;
  #readTo = 0;
  #header: HeaderLine | undefined;
  /** Those whose image is not there yet. */
  readonly #jobs = new Map<string, JobLine>();

  constructor(directory: string) {
    this.#path = join(directory, 'manifest.jsonl');
  }

  /** False where there is no manifest, or no more. */
  async refresh(): Promise<boolean> {
    const file = await open(this.#path, 'r').catch(() => undefined); // not yet written, or removed
    if (file === undefined) return false;
    try {
      const { ino, size } = await file.stat();
      // A manifest that was made whole again is another file.
      if (ino !== this.#inode || size < this.#readTo) this.#forget(ino);
      await this.#follow(file, size);
      return true;
    } finally {
      await file.close();
    }
  }

  #forget(inode: number): void {
    this.images.clear();
    this.#jobs.clear();
    this.#header = undefined;
    this.isEnded = false;
    this.#inode = inode;
    this.#readTo = 0;
  }

  async #follow(file: FileHandle, size: number): Promise<void> {
    for (let want = CHUNK_BYTES; this.#readTo < size;) {
      const { buffer, bytesRead } = await file.read({
        buffer: Buffer.alloc(Math.min(want, size - this.#readTo)),
        position: this.#readTo,
      });
      const whole = buffer.subarray(0, bytesRead).lastIndexOf(NEWLINE) + 1;
      if (whole > 0) this.#take(buffer.toString('utf8', 0, whole));
      else if (bytesRead < want) return; // a last line that is still being written
      this.#readTo += whole;
      want = whole > 0 ? CHUNK_BYTES : want * 2; // one line longer than what was read
    }
  }

  #take(text: string): void {
    const wanted = text.split('\n').filter((line) => WANTED.test(line));
    for (const line of readLines(`${wanted.join('\n')}\n`).lines) {
      if (line.type === 'batch') this.#header = line;
      else if (line.type === 'ended') this.isEnded = true;
      else if (line.type === 'job') this.#jobs.set(line.jobId, line);
      else if (line.type === 'saved') {
        const job = this.#jobs.get(line.jobId);
        if (job === undefined || this.#header === undefined) continue; // its line was damaged
        this.#jobs.delete(line.jobId);
        this.images.set(line.jobId, toEntry(this.#header, job, line));
      }
    }
  }
}
