import { readFileSync } from 'node:fs';
import { pause } from '../../shared/abort.ts';
import { availableMiB, Ledger } from '../sim/lib/ledger.ts';

/** What one process held on one GPU, from the moment on at which it was seen to change. */
export type Held = { atMs: number; pid: number; gpu: number; model: string; heldMiB: number };

export type GpuPeak = { index: number; name: string; mostUsedMiB: number; canHoldMiB: number; promisedMiB: number };

const EVERY_MS = 20;

/**
 * Looks into the ledger of a simulated host every 20 ms, beside the agent and without asking it: what each process holds,
 * and how much of a GPU was used at most.
 */
export class LedgerWatch implements AsyncDisposable {
  readonly #ledger: Ledger;
  readonly #reserveMiB: number;
  readonly #stop = new AbortController();
  readonly #done: Promise<void>;
  readonly #last = new Map<string, Held>();
  readonly #models = new Map<number, string>();
  readonly #most = new Map<string, number>();
  /** Every change, oldest first. */
  readonly trace: Held[] = [];
  looks = 0;
  longestGapMs = 0;

  constructor({ directory, reserveMiB }: { directory: string; reserveMiB: number }) {
    this.#ledger = new Ledger(directory);
    this.#reserveMiB = reserveMiB;
    this.#done = this.#run(this.#stop.signal);
  }

  /** Most that was used of each GPU; what it can hold; and what the agent promises not to go beyond. */
  peaks(): GpuPeak[] {
    return this.#ledger.gpus().map((gpu) => ({
      index: gpu.index,
      name: gpu.name,
      mostUsedMiB: this.#most.get(gpu.uuid) ?? 0,
      canHoldMiB: availableMiB(gpu),
      promisedMiB: availableMiB(gpu) - this.#reserveMiB,
    }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#done;
  }

  async #run(signal: AbortSignal): Promise<void> {
    let lastMs = performance.now();
    while (!signal.aborted) {
      this.#look();
      const nowMs = performance.now();
      this.longestGapMs = Math.max(this.longestGapMs, nowMs - lastMs);
      lastMs = nowMs;
      await pause(EVERY_MS, signal);
    }
  }

  #look(): void {
    this.looks += 1;
    const atMs = performance.now();
    const entries = this.#ledger.entries();
    const seen = new Set<string>();
    for (const gpu of this.#ledger.gpus()) {
      const here = entries.filter(({ gpuUuid }) => gpuUuid === gpu.uuid);
      const usedMiB = here.reduce((sum, entry) => sum + entry.usedMiB, 0);
      this.#most.set(gpu.uuid, Math.max(this.#most.get(gpu.uuid) ?? 0, usedMiB));
      for (const { pid, usedMiB: heldMiB } of here) {
        const key = `${pid} ${gpu.uuid}`;
        seen.add(key);
        if (this.#last.get(key)?.heldMiB !== heldMiB) this.#note(key, { atMs, pid, gpu: gpu.index, heldMiB });
      }
    }
    for (const [key, last] of this.#last) {
      if (!seen.has(key) && last.heldMiB > 0) this.#note(key, { ...last, atMs, heldMiB: 0 });
    }
  }

  #note(key: string, held: Omit<Held, 'model'>): void {
    const model = this.#models.get(held.pid) ?? modelOf(held.pid);
    this.#models.set(held.pid, model);
    this.#last.set(key, { ...held, model });
    this.trace.push({ ...held, model });
  }
}

/** What a process serves, by its command line or its parent's: a worker does not say it itself. */
function modelOf(pid: number): string {
  const words = commandLine(pid);
  const own = words.indexOf('serve') >= 0 ? words[words.indexOf('serve') + 1] : undefined;
  if (own !== undefined) return own;
  return words.some((word) => word.endsWith('/step1x-edit')) ? 'stepfun-ai/Step1X-Edit' : (words[0] ?? 'unknown');
}

function commandLine(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
  } catch {
    return []; // ended in this moment
  }
}
