import type { VramMeasure } from '../gpu/vram-measure.ts';
import { freedMiB, measureVram } from '../gpu/vram-measure.ts';
import type { Look } from './vram-verifier.ts';

type Whose = { gpus: readonly string[]; pids: readonly number[]; signal: AbortSignal };

/** What one server holds by the last look at it. After a crash that look is the only baseline there is. */
export class HeldVram {
  readonly #look: Look;
  #measure: VramMeasure | undefined;
  #heldMiB = 0;

  constructor(look: Look) {
    this.#look = look;
  }

  get heldMiB(): number {
    return this.#heldMiB;
  }

  get measure(): VramMeasure | undefined {
    return this.#measure;
  }

  /** From here on: it holds nothing yet. */
  begin(measure: VramMeasure | undefined): void {
    this.#measure = measure;
    this.#heldMiB = 0;
  }

  /** Looks now. The last look stays where nvidia-smi does not answer, and where no process lives any more. */
  async look({ gpus, pids, signal }: Whose): Promise<VramMeasure | undefined> {
    if (gpus.length === 0) return undefined;
    const seen = await this.#look(signal);
    const measure = seen && measureVram(seen, { gpus, pids });
    if (measure !== undefined && pids.length > 0) this.note(measure);
    return measure;
  }

  /** Keeps a look. Where the driver lists no memory for it, by the difference since the last one. */
  note(measure: VramMeasure): void {
    const before = this.#measure;
    if (measure.isListed) this.#heldMiB = measure.mineMiB;
    else if (before?.isListed === true)
      this.#heldMiB = 0; // listed before, and now not: it holds none
    else if (before !== undefined) this.#heldMiB = Math.max(0, this.#heldMiB - freedMiB(before, measure));
    this.#measure = measure;
  }
}
