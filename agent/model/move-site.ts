import type { GpuSampler } from '../gpu/gpu-sampler.ts';
import type { VramMeasure } from '../gpu/vram-measure.ts';
import { measureVram } from '../gpu/vram-measure.ts';
import type { Call } from '../engine/engine.ts';
import { loadedMiB } from './footprint.ts';
import type { Learned } from './learned.ts';
import type { Moved } from './moved.ts';
import { movedBy } from './moved.ts';
import { died } from '../server/server-failure.ts';
import type { ServerJobs } from './server-jobs.ts';
import type { ServerLife, ServerLifeOptions } from './server-life.ts';

export type MoveOptions = Omit<ServerLifeOptions, 'loadedMiB'> & {
  sampler: GpuSampler;
  learned: Learned;
  /** Nothing else of ours works on these GPUs, so that a change of their free memory is this server's. */
  isAlone: (gpus: readonly string[]) => boolean;
  /** Host RAM that offloaded weights may take. */
  hostRamFreeMiB: () => number;
};

/** Sleep and wake move tens of GiB over PCIe; a call that takes longer, or longer than a start may, hangs. */
const MOVE_CALL_MS = 120_000;

/** What all transitions of one server have in common: where to look, whom to call, and what to tell afterwards. */
export class MoveSite {
  readonly options: MoveOptions & { life: ServerLife; jobs: ServerJobs };

  constructor(options: MoveOptions & { life: ServerLife; jobs: ServerJobs }) {
    this.options = options;
  }

  get isOurs(): boolean {
    return this.options.model.launch.kind === 'owned';
  }

  /** Host RAM and VRAM are one there. */
  isUnified(): boolean {
    const { life, sampler } = this.options;
    return sampler.readings().some(({ uuid, isUnified }) => isUnified === true && life.gpus.includes(uuid));
  }

  loadedMiB(): number {
    const { model, learned } = this.options;
    return loadedMiB(learned.of(model.id), model);
  }

  call(): Call {
    const { life, times } = this.options;
    return life.call(Math.min(MOVE_CALL_MS, times.startDeadlineMs));
  }

  /** Where somebody else's server is on the GPUs is not known: so the change on all of them is shown. */
  gpusToLookAt(): readonly string[] {
    const { life, sampler } = this.options;
    return this.isOurs ? life.gpus : sampler.readings().map(({ uuid }) => uuid);
  }

  async look(): Promise<VramMeasure | undefined> {
    const { life, look } = this.options;
    if (this.isOurs) return life.look();
    const seen = await look(life.signal);
    return seen && measureVram(seen, { gpus: this.gpusToLookAt(), pids: [] });
  }

  becomeReady(): void {
    const { jobs, life, model } = this.options;
    // Somebody may have cut the load, which leaves no error behind.
    if (!('server' in life.state) || life.state.kind === 'releasing') throw died(model.alias, 'was ended meanwhile');
    jobs.touch();
    life.becomes('ready');
  }

  moved(done: Moved['done'], o: Omit<Parameters<typeof movedBy>[1], 'heldAfterMiB'>): Moved {
    const { life, log, slotId, model } = this.options;
    const moved = movedBy(done, { ...o, heldAfterMiB: life.vram.heldMiB });
    const { tookMs, before, after, heldBeforeMiB, heldAfterMiB } = moved;
    const free = { freeBeforeMiB: before?.freeMiB ?? null, freeAfterMiB: after?.freeMiB ?? null };
    log.info({ event: 'model-moved', slotId, model: model.id, done, tookMs, ...free, heldBeforeMiB, heldAfterMiB });
    return moved;
  }
}
