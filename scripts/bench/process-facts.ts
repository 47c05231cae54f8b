import { readFile, writeFile } from 'node:fs/promises';
import { pause } from '../../shared/abort.ts';
import { memoryMb } from './process-usage.ts';

const EVERY_MS = 50;

/** The process of this agent that decodes pictures, where there is one. */
export async function decoderOf(agent: number): Promise<number | undefined> {
  const children = (await readFile(`/proc/${agent}/task/${agent}/children`, 'utf8')).trim().split(' ').map(Number);
  for (const pid of children) {
    const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => ''); // gone meanwhile
    if (command.includes('picture-worker.mjs')) return pid;
  }
  return undefined;
}

/** The most memory that a process had since `watch`, by the kernel's own count; and, sampled, that of another one. */
export class PeakMemory implements AsyncDisposable {
  readonly #pid: number;
  readonly #stop = new AbortController();
  readonly #watching: Promise<void>;
  otherPeakMb = 0;

  private constructor(pid: number, also: () => Promise<number | undefined>) {
    this.#pid = pid;
    this.#watching = this.#sample(also);
  }

  static async watch(
    pid: number,
    { also = () => Promise.resolve(undefined) }: { also?: () => Promise<number | undefined> } = {},
  ): Promise<PeakMemory> {
    await writeFile(`/proc/${pid}/clear_refs`, '5'); // the peak begins with what it has now
    return new PeakMemory(pid, also);
  }

  async peakMb(): Promise<number> {
    return await memoryMb(this.#pid, 'VmHWM');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#watching;
  }

  async #sample(also: () => Promise<number | undefined>): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      const other = await also().catch(() => undefined); // the process ended, and the bench with it
      const mb = other === undefined ? 0 : await memoryMb(other).catch(() => 0);
      this.otherPeakMb = Math.max(this.otherPeakMb, mb);
      await pause(EVERY_MS, signal);
    }
  }
}
