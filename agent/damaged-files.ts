import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';

/** `learned.json.corrupt-1795240806588`: what was damaged, and when that was found. */
const KEPT = /^(.+)\.corrupt-\d+$/;
const LOOK_EVERY_MS = 30_000;

/**
 * Files of the state directory that were found damaged and kept aside. The files themselves are what is remembered: they are
 * told until somebody has looked at them and deleted them, also after a restart.
 */
export class DamagedFiles {
  readonly #dirs: readonly string[];
  #found: readonly { name: string; path: string }[] = [];
  #lookedMs = -Infinity;

  constructor(dirs: readonly string[]) {
    this.#dirs = dirs;
  }

  /** Whether a file of this name was damaged once. */
  has(name: string): boolean {
    return this.#found.some((file) => file.name === name);
  }

  /** One sentence for each, from what is known; looks again in the background now and then. */
  sentences(): string[] {
    if (performance.now() - this.#lookedMs >= LOOK_EVERY_MS) void this.look(); // never rejects
    return this.#found.map(({ name, path }) => {
      const what = `${name} was damaged. What could be read of it is used; the damaged file is kept as ${path}.`;
      return `${what} Delete that one when you have looked at it.`;
    });
  }

  async look(): Promise<void> {
    this.#lookedMs = performance.now();
    const found = await Promise.all(this.#dirs.map(keptIn));
    this.#found = found.flat();
  }
}

async function keptIn(dir: string): Promise<{ name: string; path: string }[]> {
  const names = await readdir(dir).catch(() => []); // nothing was ever written there
  return names.sort().flatMap((file) => {
    const name = KEPT.exec(file)?.[1];
    return name === undefined ? [] : [{ name, path: join(dir, file) }];
  });
}
