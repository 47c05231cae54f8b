import { readFile, writeFile } from 'node:fs/promises';

/** How much larger processes became between two moments, at their largest. */
export class MemoryWatch {
  readonly #before: ReadonlyMap<number, number>;

  private constructor(before: ReadonlyMap<number, number>) {
    this.#before = before;
  }

  /** From now on; the kernel forgets what they needed earlier. */
  static async start(pids: readonly number[]): Promise<MemoryWatch> {
    for (const pid of pids) await writeFile(`/proc/${pid}/clear_refs`, '5');
    return new MemoryWatch(
      new Map(await Promise.all(pids.map(async (pid) => [pid, await kibOf(pid, 'VmRSS')] as const))),
    );
  }

  /** The sum of what each needed on top. Throws when one has ended. */
  async grownMiB(): Promise<number> {
    let kib = 0;
    for (const [pid, before] of this.#before) kib += Math.max(0, (await kibOf(pid, 'VmHWM')) - before);
    return kib / 1024;
  }
}

async function kibOf(pid: number, field: string): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  return Number(new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(status)?.[1]);
}
