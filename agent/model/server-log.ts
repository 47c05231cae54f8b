import { constants } from 'node:fs';
import { copyFile, mkdir, open, readdir, rm, stat, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { stripVTControlCharacters } from 'node:util';
import { pause } from '../../shared/abort.ts';

const KEPT_FILES = 5;
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

  /** A new file for this start; of the older ones of the slot the last few stay. */
  static async create({ logDir, slotId }: { logDir: string; slotId: string }): Promise<ServerLog> {
    await mkdir(logDir, { recursive: true });
    const prefix = `${slotId.replace(/[^\w.-]/g, '_')}-`;
    const stamp = new Date().toISOString().replace(/\D/g, '');
    const older = (await readdir(logDir)).filter(
      (name) => name.startsWith(prefix) && /^\d{17}\.log/.test(name.slice(prefix.length)),
    );
    for (const name of older.sort().slice(0, -(KEPT_FILES - 1))) await rm(join(logDir, name), { force: true });
    return new ServerLog(join(logDir, `${prefix}${stamp}.log`));
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

  /** Reads what is appended, every 250 ms until the signal aborts. Survives truncation, and truncates a flood itself. */
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

  /** Keeps one older part beside the file. The server goes on writing to the same file. */
  async cap(): Promise<void> {
    if ((await this.size()) <= MAX_BYTES) return;
    await copyFile(this.path, `${this.path}.1`);
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
