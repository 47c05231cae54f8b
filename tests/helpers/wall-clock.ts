import { execa } from 'execa';
import { rename, writeFile } from 'node:fs/promises';

/** Without libfaketime no clock can be set for one process alone. */
export async function whyNoWallClock(): Promise<string | undefined> {
  return (await findLibrary()) === undefined ? 'no faketime' : undefined;
}

/** The wall clock of the processes that are started with `env`; their monotonic clock stays what it is. */
export class WallClock {
  readonly env: Readonly<Record<string, string>>;
  readonly #path: string;

  private constructor(path: string, library: string) {
    this.#path = path;
    this.env = {
      LD_PRELOAD: library,
      FAKETIME_TIMESTAMP_FILE: path,
      FAKETIME_DONT_FAKE_MONOTONIC: '1',
      FAKETIME_CACHE_DURATION: '1',
    };
  }

  static async at(path: string): Promise<WallClock> {
    const library = await findLibrary();
    if (library === undefined) throw new Error('faketime is not installed');
    const clock = new WallClock(path, library);
    await clock.jump(0);
    return clock;
  }

  /** So many hours off the real time, from about a second from now on. */
  async jump(hours: number): Promise<void> {
    await writeFile(`${this.#path}.new`, `${hours < 0 ? '-' : '+'}${Math.abs(hours)}h\n`);
    await rename(`${this.#path}.new`, this.#path);
  }
}

/** Where its own wrapper says it is. */
async function findLibrary(): Promise<string | undefined> {
  const { failed, stdout } = await execa('faketime', ['-m', '-f', '+0', 'printenv', 'LD_PRELOAD'], { reject: false });
  return failed ? undefined : stdout.trim();
}
