import { open, readFile, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { z } from 'zod';
import type { Log } from '../../shared/log.ts';

/** One small JSON file of the state directory. What is read back is whole: the old content or the new. */
export class StateFile<T> {
  readonly #path: string;
  readonly #schema: z.ZodType<T>;
  readonly #log: Log;
  #writing: Promise<void> = Promise.resolve();

  constructor(options: { path: string; schema: z.ZodType<T>; log: Log }) {
    this.#path = options.path;
    this.#schema = options.schema;
    this.#log = options.log;
  }

  /** Undefined where there is none, or only a damaged one: that is moved aside, never silently overwritten. */
  async read(): Promise<T | undefined> {
    let text: string;
    try {
      text = await readFile(this.#path, 'utf8');
    } catch (error) {
      if (isNoEntry(error)) return undefined;
      throw error;
    }
    const parsed = this.#schema.safeParse(parseJson(text));
    if (parsed.success) return parsed.data;
    const movedTo = `${this.#path}.corrupt-${Date.now()}`;
    await rename(this.#path, movedTo);
    this.#log.warn({ event: 'state-file-corrupt', path: this.#path, movedTo });
    return undefined;
  }

  /** One write after the other, in the order of the calls. */
  write(value: T): Promise<void> {
    const text = `${JSON.stringify(value, null, 1)}\n`;
    const written = this.#writing.then(() => this.#replace(text));
    this.#writing = written.catch(() => undefined); // its caller sees the failure; the next write does not care
    return written;
  }

  async #replace(text: string): Promise<void> {
    const temporary = `${this.#path}.tmp`;
    try {
      const file = await open(temporary, 'w', 0o600);
      try {
        await file.writeFile(text);
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(temporary, this.#path);
    } catch (error) {
      await rm(temporary, { force: true });
      throw error;
    }
    const directory = await open(dirname(this.#path), 'r');
    try {
      await directory.sync();
    } finally {
      await directory.close();
    }
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text) as unknown; // JSON.parse returns `any`
  } catch {
    return undefined; // no schema accepts it: the file counts as damaged
  }
}

function isNoEntry(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'ENOENT';
}
