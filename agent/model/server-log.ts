import { constants, createReadStream, createWriteStream } from 'node:fs';
import { mkdir, open, readdir, realpath, rm, stat, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { stripVTControlCharacters } from 'node:util';
import { pause } from '../../shared/abort.ts';

const KEPT_STARTS = 5;
/** What follows the slot in the name of a log; the older part of a capped one ends with .1. */
const STAMPED = /^\d{17}\.log(\.1)?$/;
const MAX_BYTES = 20 * 1024 * 1024;
const TAIL_BYTES = 64 * 1024;
const FOLLOW_MS = 250;
const LINE_CHARS = 300;
const ERROR_LINES = 20;

/** The log file of one start of a server. The server writes it by itself: no pipe that could fill up or break. */
export class ServerLog {
  readonly path: string;

  private constructor(path: string) {
    this.path = path;
  }

  /** A new file for this start; those of the last few starts of the slot stay. */
  static async create({ logDir, slotId }: { logDir: string; slotId: string }): Promise<ServerLog> {
    await mkdir(logDir, { recursive: true });
    // The kernel names open files by their real path, and by that the members of the tree are found.
    const directory = await realpath(logDir);
    const prefix = `${slotId.replace(/[^\w.-]/g, '_')}-`;
    const stamp = new Date().toISOString().replace(/\D/g, '');
    const names = (await readdir(directory)).filter(
      (name) => name.startsWith(prefix) && STAMPED.test(name.slice(prefix.length)),
    );
    const starts = [...new Set(names.map((name) => name.replace(/\.1$/, '')))].sort();
    for (const name of starts.slice(0, -(KEPT_STARTS - 1))) {
      for (const part of [name, `${name}.1`]) await rm(join(directory, part), { force: true });
    }
    return new ServerLog(join(directory, `${prefix}${stamp}.log`));
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

  /** The last lines, fit for an error message. */
  async lastLines(): Promise<string> {
    const size = await this.size();
    return cleanLines(await this.#read(Math.max(0, size - TAIL_BYTES), TAIL_BYTES))
      .slice(-ERROR_LINES)
      .join('\n');
  }

  /** Reads what is appended, every 250 ms until the signal aborts. Survives truncation. */
  async follow({ signal, onText }: { signal: AbortSignal; onText: (text: string) => void }): Promise<void> {
    let at = await this.size();
    while (!signal.aborted) {
      await pause(FOLLOW_MS, signal);
      const size = await this.size();
      if (size < at) at = 0;
      if (size > at) onText(await this.#read(Math.max(at, size - TAIL_BYTES), TAIL_BYTES));
      at = size;
    }
  }

  /**
   * Moves the end of a file that has grown too large to one older part beside it. The server goes on writing to the same
   * file; what it writes in this moment is lost.
   */
  async cap(): Promise<void> {
    const size = await this.size();
    if (size <= MAX_BYTES) return;
    const end = createReadStream(this.path, { start: size - MAX_BYTES, end: size - 1 });
    await pipeline(end, createWriteStream(`${this.path}.1`, { mode: 0o640 }));
    await truncate(this.path, 0);
  }

  async #read(from: number, bytes: number): Promise<string> {
    try {
      const file = await open(this.path, 'r');
      try {
        const { buffer, bytesRead } = await file.read(Buffer.alloc(bytes), 0, bytes, from);
        return buffer.toString('utf8', 0, bytesRead);
      } finally {
        await file.close();
      }
    } catch {
      return ''; // removed by someone
    }
  }
}

/** Reports the steps of the progress bar in a server's log until disposed. */
export function followSteps(log: ServerLog | undefined, onStep: (step: number, steps: number) => void): Disposable {
  const stop = new AbortController();
  const onText = (text: string): void => {
    const last = lastStep(text);
    if (last !== undefined) onStep(last.step, last.steps);
  };
  void log?.follow({ signal: stop.signal, onText }); // reads what is there; a missing file is no text
  return { [Symbol.dispose]: () => stop.abort() };
}

/** Lines without colours, without the overwritten states of a progress bar, without secrets. */
export function cleanLines(text: string): string[] {
  return stripVTControlCharacters(text)
    .split('\n')
    .map((line) => line.trimEnd().split('\r').at(-1) ?? '')
    .map((line) => line.replace(/hf_[A-Za-z0-9]{8,}/g, 'hf_[redacted]').replace(/(bearer\s+)\S+/gi, '$1[redacted]'))
    .map((line) => (line.length > LINE_CHARS ? `${line.slice(0, LINE_CHARS)}…` : line))
    .filter((line) => line.trim() !== '');
}

/** The last step of a tqdm bar, as in ` 48%|████▊     | 24/50 [00:03<00:03,  7.73it/s]`. */
export function lastStep(text: string): { step: number; steps: number } | undefined {
  const last = [...text.matchAll(/\|\s*(\d{1,5})\/(\d{1,5}) \[/g)].at(-1);
  return last && { step: Number(last[1]), steps: Number(last[2]) };
}
