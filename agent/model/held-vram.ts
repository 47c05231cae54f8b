import type { VramMeasure } from '../gpu/vram-measure.ts';
import { freedMiB, measureVram } from '../gpu/vram-measure.ts';
import type { Look } from '../gpu/vram-verifier.ts';

type Whose = { gpus: readonly string[]; pids: () => readonly number[]; signal: AbortSignal };

/** What one server holds by the last look at it. After a crash that look is the only baseline there is. */
export class HeldVram {
  readonly #look: Look;
  #measure: VramMeasure | undefined;
  #heldMiB = 0;
  #ownLooks = 0;

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
  async look({ gpus, pids: pidsNow, signal }: Whose): Promise<VramMeasure | undefined> {
    if (gpus.length === 0) return undefined;
    this.#ownLooks += 1;
    const seen = await this.#look(signal);
    this.#ownLooks -= 1;
    // Asked after the look: of one that died in the middle of it, it shows the process and yet its memory as free.
    const pids = pidsNow();
    const measure = seen && measureVram(seen, { gpus, pids });
    if (measure !== undefined && pids.length > 0) this.count(measure);
    return measure;
  }

  /** Keeps a look that somebody else took. What changed meanwhile, where the driver lists no memory for it, is not its. */
  note(measure: VramMeasure): void {
    if (measure.isListed || this.#measure?.isListed === true) this.count(measure);
    else if (this.#ownLooks === 0) this.#measure = measure;
  }

  /** Keeps a look at a change of its own. Where the driver lists no memory for it, that is the change of free memory. */
  count(measure: VramMeasure): void {
    const before = this.#measure;
    if (measure.isListed) this.#heldMiB = measure.mineMiB;
    else if (before?.isListed === true)
      this.#heldMiB = 0; // listed before, and now not: it holds none
    else if (before !== undefined) this.#heldMiB = Math.max(0, this.#heldMiB - freedMiB(before, measure));
    this.#measure = measure;
  }
}
