import { performance } from 'node:perf_hooks';
import type { EngineLog } from './engine-log.ts';
import { rampUp, runSteps } from './forward.ts';
import { drawEdit, type PictureFacts, pictureSize } from './picture.ts';
import { damaged, peakOf } from './server-options.ts';
import type { Step1xOptions } from './step1x-options.ts';
import type { Vram } from './vram.ts';
import type { Workers } from './workers.ts';

export type Location = 'Unloaded' | 'GPU' | 'CPU';

/** The seven figures of the GPU manager; what it says is a claim, not what the ledger says. */
export type GpuStatus = {
  model_location: Location;
  idle_time: number;
  gpu_memory_allocated_gb: number;
  gpu_memory_reserved_gb: number;
  statistics: { total_loads: number; gpu_to_cpu: number; cpu_to_gpu: number; full_releases: number };
  idle_timeout: number;
  auto_monitor_running: boolean;
};

/** Moving weights over PCIe takes a tenth of reading them from the disk. */
const MOVE_SHARE = 0.1;

/** One model that is loaded by the first edit and goes back to host memory after each. */
export class Step1xEngine {
  readonly #options: Step1xOptions;
  readonly #vram: Vram;
  readonly #log: EngineLog;
  readonly #workers: Workers;
  readonly #statistics = { total_loads: 0, gpu_to_cpu: 0, cpu_to_gpu: 0, full_releases: 0 };
  readonly #never = new AbortController().signal;
  #location: Location = 'Unloaded';
  #lastUseMs = performance.now();
  #edits = 0;
  #keepsUntilNextCall = false;

  constructor(o: { options: Step1xOptions; vram: Vram; log: EngineLog; workers: Workers }) {
    this.#options = o.options;
    this.#vram = o.vram;
    this.#log = o.log;
    this.#workers = o.workers;
  }

  get edits(): number {
    return this.#edits;
  }

  status(): GpuStatus {
    return {
      model_location: this.#location,
      idle_time: (performance.now() - this.#lastUseMs) / 1000,
      gpu_memory_allocated_gb: Math.round((this.#vram.heldMiB / 1024) * 100) / 100,
      gpu_memory_reserved_gb: Math.round((this.#vram.heldMiB / 1024) * 105) / 100,
      statistics: { ...this.#statistics },
      idle_timeout: this.#options.idleTimeoutMs / 1000,
      auto_monitor_running: true,
    };
  }

  /** Loads or moves the model as needed, edits, and moves it back, also after a failure. */
  async edit(facts: PictureFacts, input: Buffer, { sizeLevel }: { sizeLevel: number }): Promise<Buffer> {
    this.#finishRelease();
    this.#edits += 1;
    const nth = this.#edits;
    this.#crashOn(facts.prompt);
    await pictureSize(input).catch(() => {
      throw new Error('cannot identify image file <_io.BytesIO object at 0x7f3a5c1b2d90>');
    });
    try {
      await this.#toGpu();
      if (this.#options.isBrokenHead) {
        throw new Error("cannot access local variable 'torch' where it is not associated with a value");
      }
      // It works at an area of `sizeLevel` squared, whatever the size of the picture is.
      this.#vram.hold(peakOf(this.#options, sizeLevel ** 2));
      const [image] = await Promise.all([drawEdit(input, facts, { format: 'png' }), this.#denoise(facts.steps)]);
      // The call into a dead worker never returns.
      if (!this.#workers.areAlive) await new Promise(() => undefined);
      return damaged(image, nth, this.#options);
    } finally {
      this.#vram.setBusy(false);
      this.offload();
    }
  }

  offload(): void {
    this.#finishRelease();
    if (this.#location !== 'GPU') return;
    this.#location = 'CPU';
    this.#statistics.gpu_to_cpu += 1;
    // As published, the move does nothing: the generator has no `.to`.
    if (this.#options.offload === 'real') this.#vram.hold(this.#options.residualMiB);
    else this.#vram.hold(this.#options.weightsMiB);
  }

  /** The CUDA context stays whatever happens: only the end of the process gives everything back. */
  release(): void {
    if (this.#location === 'Unloaded') return;
    this.#location = 'Unloaded';
    this.#statistics.full_releases += 1;
    this.#keepsUntilNextCall = true;
    if (this.#options.release === 'real') this.#finishRelease();
  }

  async #toGpu(): Promise<void> {
    this.#lastUseMs = performance.now();
    if (this.#location === 'GPU') return;
    const isLoad = this.#location === 'Unloaded';
    if (isLoad && this.#options.lacksWeights) {
      throw new TypeError('expected str, bytes or os.PathLike object, not NoneType');
    }
    this.#vram.initialize();
    const from = this.#vram.heldMiB;
    const onShare = (share: number): void =>
      this.#vram.hold(Math.round(from + Math.max(0, this.#options.weightsMiB - from) * share));
    try {
      await rampUp({ totalMs: this.#options.loadMs * (isLoad ? 1 : MOVE_SHARE), onShare, signal: this.#never });
    } catch (error) {
      this.#vram.hold(from);
      throw error;
    }
    this.#location = 'GPU';
    if (isLoad) this.#statistics.total_loads += 1;
    else this.#statistics.cpu_to_gpu += 1;
  }

  /** The idle monitor counts from the start of an edit: one that lasts longer loses its weights half-way. */
  async #denoise(steps: number): Promise<void> {
    this.#vram.setBusy(true);
    const totalMs = this.#options.generateMs + this.#options.stepMs * steps;
    const isCut = totalMs > this.#options.idleTimeoutMs;
    const signal = isCut ? AbortSignal.timeout(this.#options.idleTimeoutMs) : this.#never;
    await runSteps({ totalMs, steps, onStep: this.#log.bar(steps), signal });
    if (!isCut) return;
    this.offload();
    throw new Error('Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!');
  }

  #finishRelease(): void {
    if (!this.#keepsUntilNextCall) return;
    this.#keepsUntilNextCall = false;
    this.#vram.hold(Math.min(this.#vram.heldMiB, this.#options.residualMiB));
  }

  #crashOn(prompt: string): void {
    if (this.#options.crashWord === undefined || !prompt.includes(this.#options.crashWord)) return;
    this.#workers.kill();
    process.exit(this.#options.exitCode);
  }
}
