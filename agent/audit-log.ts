import { appendFile, rename, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { AuditEntry } from './rpc/audit.ts';
import type { Log } from '../shared/log.ts';

const FILE = 'audit.jsonl';
const MAX_BYTES = 10 * 1024 * 1024;
const KEPT = 5;
/** What waits for a slow disk; more is dropped, and that is said. */
const MOST_WAITING = 10_000;

/**
 * Who did what: one JSON line for each login, each refusal and each change, in `audit.jsonl` of the state directory, which
 * is 0600 and is only ever appended to. Prompts are in it as their SHA-256. A line that cannot be written is logged and
 * stops nobody.
 */
export class AuditLog implements AsyncDisposable {
  readonly #path: string;
  readonly #log: Log;
  readonly #maxBytes: number;
  #waiting: string[] = [];
  #writing: Promise<void> = Promise.resolve();
  #dropped = 0;

  constructor({ stateDir, log, maxBytes = MAX_BYTES }: { stateDir: string; log: Log; maxBytes?: number }) {
    this.#path = join(stateDir, FILE);
    this.#log = log;
    this.#maxBytes = maxBytes;
  }

  note(entry: AuditEntry): void {
    if (this.#waiting.length >= MOST_WAITING) return void (this.#dropped += 1);
    this.#waiting.push(`${JSON.stringify({ time: new Date().toISOString(), ...entry })}\n`);
    if (this.#waiting.length === 1) this.#writing = this.#writing.then(() => this.#write());
  }

  /** Resolves when what was noted is in the file. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#writing;
  }

  async #write(): Promise<void> {
    const lines = this.#waiting;
    this.#waiting = [];
    try {
      await this.#rotate();
      await appendFile(this.#path, lines.join(''), { mode: 0o600 });
      if (this.#dropped > 0) this.#log.warn({ event: 'audit-lines-dropped', lines: this.#dropped });
      this.#dropped = 0;
    } catch (error) {
      this.#log.error({ event: 'audit-not-written', lines: lines.length, err: error });
    }
  }

  async #rotate(): Promise<void> {
    const size = await stat(this.#path).then(
      (found) => found.size,
      () => 0, // there is none yet
    );
    if (size < this.#maxBytes) return;
    for (let part = KEPT - 1; part >= 0; part -= 1) {
      const from = part === 0 ? this.#path : `${this.#path}.${part}`;
      await rename(from, `${this.#path}.${part + 1}`).catch(() => undefined); // that many there are not yet
    }
  }
}
