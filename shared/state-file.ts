import { readFile, rename } from 'node:fs/promises';
import type { z } from 'zod';
import { errorCode } from './errors.ts';
import { writeDurable } from './durable-file.ts';
import type { Log } from './log.ts';

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
    const written = this.#writing.then(() => writeDurable(this.#path, text));
    this.#writing = written.catch(() => undefined); // its caller sees the failure; the next write does not care
    return written;
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
  return errorCode(error) === 'ENOENT';
}
