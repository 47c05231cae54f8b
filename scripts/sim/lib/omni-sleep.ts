import { once } from 'node:events';
import { pause } from '../../../shared/abort.ts';
import { EngineFailure } from './engine-failure.ts';
import type { OmniOptions } from './omni-options.ts';
import type { Vram } from './vram.ts';

/** One rank's word about a sleep or a wake; the numbers in `metadata` are strings, as in the original. */
export type Acknowledgement = {
  task_id: string;
  status: 'SUCCESS' | 'ERROR';
  stage_id: number;
  rank: number;
  freed_bytes: number;
  metadata: Record<string, string>;
  error_msg: string | null;
};

/** Asleep or awake: the memory that goes and comes back, and what each version answers to those who do it wrong. */
export class OmniSleep {
  readonly #options: OmniOptions;
  readonly #vram: Vram;
  #now: { level: number; woken: AbortController } | undefined;
  #isRuined = false;
  #lacksWeights = false;

  constructor(o: { options: OmniOptions; vram: Vram }) {
    this.#options = o.options;
    this.#vram = o.vram;
  }

  get isAsleep(): boolean {
    return this.#now !== undefined;
  }

  /** A wake has failed: nothing but the end of the process helps. */
  get isRuined(): boolean {
    return this.#isRuined;
  }

  /** A wake after level 2 has "succeeded": pictures are noise from now on. */
  get lacksWeights(): boolean {
    return this.#lacksWeights;
  }

  async sleep(level: number): Promise<Acknowledgement> {
    if (this.#options.sleepCrashes) throw new Error("'State' object has no attribute 'sleeping_stages'");
    await pause(this.#options.sleepMs, new AbortController().signal);
    if (this.#options.sleepAckError) {
      return this.#acknowledge({ error: 'CUDA error: invalid argument in cumem_allocator.sleep' });
    }
    const held = this.#vram.heldMiB;
    // Without the start flag nothing lies in the pool that sleep frees; the answer is SUCCESS all the same.
    const promisedMiB = this.#options.hasSleepMode && !this.#now ? Math.max(0, held - this.#options.residualMiB) : 0;
    this.#now ??= { level, woken: new AbortController() };
    this.#vram.hold(held - Math.min(promisedMiB, this.#options.freeOnlyMiB ?? promisedMiB));
    const gone = gib(promisedMiB);
    const metadata = {
      total_freed_gib: gone,
      allocator_freed_gib: gone,
      physical_freed_gib: gone,
      rank_residual_gib: gib(this.#vram.deviceUsedMiB),
    };
    return this.#acknowledge({ freedMiB: promisedMiB, metadata });
  }

  /** Undefined when it does not sleep. Throws when the memory is gone, or the weights are. */
  async wake(): Promise<Acknowledgement | undefined> {
    if (!this.#now) return undefined;
    await pause(this.#options.sleepMs, new AbortController().signal);
    const { level, woken } = this.#now;
    try {
      if (this.#options.wakeAckError) return this.#failedWake();
      if (level === 2 && this.#options.level2Wake === '500') {
        throw new Error('NotImplementedError: reload of level 2 weights is not supported for diffusion stages');
      }
      if (this.#options.wakeRunsOutOfMemory) throw this.#vram.outOfMemory();
      this.#vram.hold(this.#options.weightsMiB);
    } catch (error) {
      this.#isRuined = true; // half of the pool may be mapped
      throw error;
    }
    this.#lacksWeights = level === 2;
    this.#now = undefined;
    woken.abort();
    return this.#acknowledge({ metadata: { state: 'WARM', current_vram_gib: gib(this.#vram.deviceUsedMiB) } });
  }

  /** What a request meets that comes while it sleeps: a refusal, or a wait until the wake, or until one of `ends` aborts. */
  async untilAwake(...ends: AbortSignal[]): Promise<void> {
    if (!this.#now) return;
    if (this.#options.asleep === '500') {
      throw new EngineFailure(
        'Generation rejected: Engine is partially or fully asleep. Currently sleeping tags: ' +
          "['weights','kv_cache']. Please perform a full wake_up before generating.",
        'exception',
      );
    }
    await Promise.race([this.#now.woken.signal, ...ends].map(aborted)); // the caller looks at `ends`
  }

  #failedWake(): Acknowledgement {
    this.#isRuined = true;
    return this.#acknowledge({ error: this.#vram.outOfMemory().message });
  }

  #acknowledge(o: { freedMiB?: number; metadata?: Record<string, string>; error?: string }): Acknowledgement {
    return {
      task_id: crypto.randomUUID(),
      status: o.error === undefined ? 'SUCCESS' : 'ERROR',
      stage_id: 0,
      rank: 0,
      freed_bytes: (o.freedMiB ?? 0) * 1024 * 1024,
      metadata: { source: `Platform_${this.#vram.gpuName}`, ...o.metadata },
      error_msg: o.error ?? null,
    };
  }
}

function aborted(signal: AbortSignal): Promise<unknown> {
  return signal.aborted ? Promise.resolve() : once(signal, 'abort');
}

function gib(mib: number): string {
  return (mib / 1024).toFixed(2);
}
