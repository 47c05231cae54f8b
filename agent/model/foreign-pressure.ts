import type { ModelId } from '../../shared/job.ts';
import type { Log } from '../../shared/log.ts';
import type { GpuSampler } from '../gpu/gpu-sampler.ts';
import type { Eviction } from '../gpu/vram-planner.ts';
import type { Evictor } from './evictor.ts';
import type { GpuLocks } from './gpu-locks.ts';
import { seconds } from './progress-text.ts';
import type { Room } from './room.ts';
import type { Slot } from './slot.ts';
import type { VramAccounts } from './vram-accounts.ts';
import type { WorkInHand } from './work-in-hand.ts';
import type { Yielding } from './yield-policy.ts';
import { CALM, whatToYield } from './yield-policy.ts';

export type ForeignPressureOptions = {
  /** The owner of the host wants it, as agent.yaml says now. */
  isOn: () => boolean;
  evictor: Evictor;
  room: Room;
  sampler: GpuSampler;
  accounts: VramAccounts;
  locks: GpuLocks;
  work: WorkInHand;
  slots: () => readonly Slot[];
  /** Batch work does not bring this model back for so long. */
  holdAway: (model: ModelId, ms: number) => void;
  log: Log;
};

type Gone = { alias: string; by: Eviction['by']; index: number; untilMs: number };

/** Idle models make way where programs that are not ours need memory. What is decided is in yield-policy.ts. */
export class ForeignPressure {
  readonly #options: ForeignPressureOptions;
  #memory = CALM;
  #pressed: readonly Yielding[] = [];
  /** GPUs, by index, that are short for programs that nvidia-smi does not list here. */
  #blind: readonly number[] = [];
  #blindBefore: readonly number[] = [];
  #gone: readonly Gone[] = [];
  /** One round at a time: what it frees is not to be seen before it has ended. */
  #round: Promise<unknown> | undefined;

  constructor(options: ForeignPressureOptions) {
    this.#options = options;
  }

  /** Looks at the last readings; asks who holds what only where memory is missing. Never rejects. */
  async look(signal: AbortSignal): Promise<void> {
    const { isOn, room, accounts, locks, log } = this.#options;
    if (!isOn()) [this.#pressed, this.#blind] = [[], []];
    if (!isOn() || this.#round !== undefined) return;
    const isShort = room.view().gpus.some(({ freeMiB, reserveMiB }) => freeMiB < reserveMiB);
    if (isShort) await accounts.look(signal);
    const view = room.view();
    // While a model of ours moves on a GPU, what is free there says nothing yet.
    const gpus = view.gpus.map((gpu) => (locks.isHeld(gpu.uuid) ? { ...gpu, usable: false } : gpu));
    const foreignMiB = Object.fromEntries(gpus.map(({ uuid }) => [uuid, sumOf(accounts.of(uuid).foreign)]));
    const { yields, memory } = whatToYield(
      { nowMs: performance.now(), view: { ...view, gpus }, foreignMiB },
      this.#memory,
    );
    this.#memory = memory;
    this.#pressed = yields;
    const isSeen = (uuid: string): boolean => yields.some((each) => each.uuid === uuid);
    const blind = gpus
      .filter(({ uuid, freeMiB, reserveMiB, usable }) => usable && freeMiB < reserveMiB && !isSeen(uuid))
      .filter(({ uuid }) => accounts.of(uuid).unlisted !== undefined)
      .map(({ uuid }) => this.#indexOf(uuid));
    // A program may take memory between the list of processes and the reading: one look proves nothing.
    this.#blind = blind.filter((index) => this.#blindBefore.includes(index));
    this.#blindBefore = blind;
    if (!yields.some(({ evict }) => evict.length > 0)) return;
    this.#round = this.#options.work
      .hold(this.#makeWay(yields, signal))
      .catch((error: unknown) => {
        if (!signal.aborted) log.warn({ event: 'yield-failed', error: String(error) });
      })
      .finally(() => (this.#round = undefined));
  }

  /** In sentences, for the status of the host. */
  problems(): string[] {
    const nowMs = performance.now();
    return [
      ...this.#pressed.map(({ uuid, shortMiB, grownMiB }) => {
        const names = this.#options.accounts.of(uuid).foreign.map(({ pid, name, usedMiB }) => {
          return `${name} (pid ${pid}, ${Math.round(usedMiB)} MiB)`;
        });
        return (
          `Other programs on GPU ${this.#indexOf(uuid)} have grown by ${Math.round(grownMiB)} MiB, and ${Math.ceil(shortMiB)} MiB ` +
          `are missing to the reserve: ${names.join(', ')}. Idle models make way.`
        );
      }),
      ...this.#blind.map(
        (index) =>
          `GPU ${index} has less free than its reserve, and nvidia-smi does not list here who holds the rest: yield_to_foreign ` +
          'cannot tell whether another program needs it, so no model makes way. In a container, run the agent with --pid=host.',
      ),
      ...this.#gone
        .filter(({ untilMs }) => untilMs > nowMs)
        .map(({ alias, by, index, untilMs }) => {
          const done = by === 'offload' ? 'offloaded' : 'released';
          const left = seconds(untilMs - nowMs);
          return `${alias} was ${done} because another program needs memory on GPU ${index}; batch work leaves it away for ${left}.`;
        }),
    ];
  }

  async #makeWay(yields: readonly Yielding[], signal: AbortSignal): Promise<void> {
    const { evictor, slots, holdAway, accounts, log } = this.#options;
    for (const { uuid, grownMiB, shortMiB, evict } of yields) {
      const foreign = accounts.of(uuid).foreign;
      log.warn({ event: 'yield-to-foreign', gpu: uuid, grownMiB, shortMiB, foreign, evict });
      for (const { slotId, by, holdMs } of evict) {
        const slot = slots().find((each) => each.slotId === slotId);
        if (slot === undefined) continue; // agent.yaml has dropped it
        holdAway(slot.model.id, holdMs);
        if (!(await evictor.putAway(slot, { by, signal }))) continue;
        const { alias } = slot.model;
        const before = this.#gone.filter((each) => each.alias !== alias && each.untilMs > performance.now());
        this.#gone = [...before, { alias, by, index: this.#indexOf(uuid), untilMs: performance.now() + holdMs }];
      }
    }
  }

  #indexOf(uuid: string): number {
    return this.#options.sampler.readings().find((reading) => reading.uuid === uuid)?.index ?? -1;
  }
}

function sumOf(foreign: readonly { usedMiB: number }[]): number {
  return foreign.reduce((sum, { usedMiB }) => sum + usedMiB, 0);
}
