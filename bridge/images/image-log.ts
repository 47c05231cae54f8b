import { open, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { readCheckedLine, toCheckedLine } from '../../shared/checked-line.ts';
import { makeDirectory, syncDirectory } from '../../shared/durable-file.ts';
import { ImageEntry } from './image-entry.ts';

const CURRENT = 'images.jsonl';
const OLDER = /^images-(\d{13})-\d+\.jsonl$/;
const NEWLINE = 10;
/** A write of this size is one piece for the file system, and short enough for others to come between two of them. */
const WRITE_BYTES = 256 * 1024;
/** From this size on the file is put aside and another one begun. */
const FILE_BYTES = 8 * 1024 ** 2;
/** All files together; beyond it the oldest goes. At about 1 KB an image this is some 60,000 of them. */
const TOTAL_BYTES = 64 * 1024 ** 2;
/** So many lines take some 10 ms; then it is the turn of others. */
const LINES_AT_ONCE = 500;

/** What was read, and how many lines could not be. */
export type Reading = { damaged: number };

/**
 * The images of batches that are over, in a file that grows by lines and outlives the batches. Any number of processes
 * append at once, without a lock: each piece is whole lines in one write at the end of the file, begins with a line feed so
 * that what somebody tore before it stays apart, and carries a checksum in each line. An image may be in it twice; readers
 * take the first they find. A full file is renamed, not copied, so that a line being written to it meanwhile stays in it.
 */
export class ImageLog {
  readonly #directory: string;
  readonly #fileBytes: number;
  readonly #totalBytes: number;

  constructor(directory: string, { fileBytes = FILE_BYTES, totalBytes = TOTAL_BYTES } = {}) {
    this.#directory = directory;
    this.#fileBytes = fileBytes;
    this.#totalBytes = totalBytes;
  }

  /** When this resolves the images are on the disk. */
  async append(entries: readonly ImageEntry[]): Promise<void> {
    if (entries.length === 0) return;
    await makeDirectory(this.#directory, { mode: 0o700 });
    await this.#turnOver();
    const file = await open(join(this.#directory, CURRENT), 'a', 0o600);
    try {
      for (const piece of piecesOf(entries)) {
        const { bytesWritten } = await file.write(piece);
        // The disk took a part of it. The rest might come behind another's line, so all of it is written again.
        if (bytesWritten < piece.length) await file.writeFile(piece);
      }
      await file.datasync();
    } finally {
      await file.close();
    }
    await syncDirectory(this.#directory);
  }

  /** Every image, those that came last first. `reading` counts on the way. */
  async *newestFirst(reading: Reading): AsyncGenerator<ImageEntry> {
    for (const name of await this.#names()) {
      const lines = (await this.#read(name)).toString('utf8').split('\n').reverse();
      for (const [index, line] of lines.entries()) {
        if (index % LINES_AT_ONCE === LINES_AT_ONCE - 1) await setImmediate();
        if (line === '') continue;
        const entry = parse(line);
        if (entry === undefined) reading.damaged += 1;
        else yield entry;
      }
    }
  }

  /** Those that `matches` accepts among the lines that contain this text, the last ones first. */
  async *containing(text: string, matches: (entry: ImageEntry) => boolean): AsyncGenerator<ImageEntry> {
    for (const name of await this.#names()) {
      const bytes = await this.#read(name);
      for (let at = bytes.lastIndexOf(text); at >= 0;) {
        const from = bytes.lastIndexOf(NEWLINE, at) + 1;
        const to = bytes.indexOf(NEWLINE, at);
        const entry = to < 0 ? undefined : parse(bytes.toString('utf8', from, to));
        if (entry !== undefined && matches(entry)) yield entry;
        at = from === 0 ? -1 : bytes.lastIndexOf(text, from - 1);
      }
    }
  }

  /** The names of its files, the newest first. */
  async #names(): Promise<string[]> {
    const names = await readdir(this.#directory).catch((): string[] => []); // nothing was ever made
    const older = names.filter((name) => OLDER.test(name)).sort();
    return [...(names.includes(CURRENT) ? [CURRENT] : []), ...older.reverse()];
  }

  async #read(name: string): Promise<Buffer> {
    // Put aside or removed by another process since it was listed: its lines are missed once.
    return await readFile(join(this.#directory, name)).catch(() => Buffer.alloc(0));
  }

  async #turnOver(): Promise<void> {
    const path = join(this.#directory, CURRENT);
    const size = (await stat(path).catch(() => undefined))?.size ?? 0;
    if (size < this.#fileBytes) return;
    // A name of its own: where two processes do it at once, neither can rename over what the other put aside.
    const aside = join(this.#directory, `images-${Date.now()}-${process.pid}.jsonl`);
    await rename(path, aside).catch(() => undefined); // done by another, or held open on Windows: the next time
    let total = 0;
    for (const name of await this.#names()) {
      total += (await stat(join(this.#directory, name)).catch(() => undefined))?.size ?? 0;
      if (total > this.#totalBytes && name !== CURRENT) await rm(join(this.#directory, name), { force: true });
    }
  }
}

/** Whole lines, a piece as large as one write should be. */
function* piecesOf(entries: readonly ImageEntry[]): Generator<Buffer> {
  let text = '\n';
  for (const entry of entries) {
    text += toCheckedLine(entry);
    if (text.length < WRITE_BYTES) continue;
    yield Buffer.from(text);
    text = '\n';
  }
  if (text !== '\n') yield Buffer.from(text);
}

function parse(line: string): ImageEntry | undefined {
  return ImageEntry.safeParse(readCheckedLine(line)).data;
}
