import { execa } from 'execa';
import { rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

/** `full`: no byte (or `bytes` more) can be written, and none is free; `low`: only `bytes` are free; see disk-faults.c. */
export type DiskFault = { mode: 'full' | 'low' | 'eio' | 'rofs' | 'denied'; path: string; bytes?: number };

/** Without a C compiler there is no such disk. */
export async function whyNoDiskFaults(): Promise<string | undefined> {
  if (process.platform !== 'linux') return 'LD_PRELOAD is for Linux';
  const { failed } = await execa('cc', ['--version'], { reject: false });
  return failed ? 'no C compiler' : undefined;
}

/** A disk that fails on demand, for processes that are started with `env`. */
export class FaultyDisk {
  /** Of the processes that shall see it. */
  readonly env: Readonly<Record<string, string>>;
  readonly #switch: string;

  private constructor(directory: string) {
    this.#switch = join(directory, 'disk-fault');
    this.env = { LD_PRELOAD: libraryIn(directory), GANTRY_DISK_FAULT: this.#switch };
  }

  static async make(directory: string): Promise<FaultyDisk> {
    await execa('cc', ['-shared', '-fPIC', '-O1', '-o', libraryIn(directory), 'tests/helpers/disk-faults.c', '-ldl']);
    return new FaultyDisk(directory);
  }

  async break({ mode, path, bytes = 0 }: DiskFault): Promise<void> {
    await writeFile(`${this.#switch}.new`, `${mode} ${path} ${bytes}`);
    await rename(`${this.#switch}.new`, this.#switch);
  }

  async mend(): Promise<void> {
    await rm(this.#switch, { force: true });
  }
}

function libraryIn(directory: string): string {
  return join(directory, 'disk-faults.so');
}
