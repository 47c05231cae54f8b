import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Eviction } from '../gpu/vram-planner.ts';
import type { Changes } from './changes.ts';
import type { GpuLocks } from './gpu-locks.ts';
import type { Room } from './room.ts';
import type { Slot } from './slot.ts';
import { isIdle } from './slot.ts';
import { say } from './telling.ts';

export type EvictorOptions = {
  room: Room;
  locks: GpuLocks;
  changes: Changes;
  slots: () => readonly Slot[];
  log: Log;
};

/** Offloads or releases idle servers because their memory is needed. One that does not give it back loses its process. */
export class Evictor {
  readonly #options: EvictorOptions;
  /** How often each model had to go, by alias. */
  readonly counts = new Map<string, Record<Eviction['by'], number>>();

  constructor(options: EvictorOptions) {
    this.#options = options;
  }

  /** Under the lock of its GPUs, which the caller has. False where it has taken a job: the next plan sees that. */
  async evict(victim: Slot, { by, isFor }: { by: Eviction['by']; isFor?: Slot }): Promise<boolean> {
    const text = `making room: ${by === 'offload' ? 'offloading' : 'releasing'} ${victim.model.alias}`;
    if (isFor !== undefined) say(isFor, text, this.#options.changes);
    try {
      // The memory was promised: an engine that gives back less than half of it, or refuses, is ended.
      if (by === 'release' || !(await this.#offload(victim))) await victim.server.release();
      this.#count(victim, by);
      return true;
    } catch (error) {
      if (!(error instanceof AppError) || error.code !== 'GPU_BUSY') throw error;
      return false;
    }
  }

  /** As `evict`, as soon as its GPUs are in no other transition, and only if it is still idle then. */
  async putAway(victim: Slot, { by, signal }: { by: Eviction['by']; signal: AbortSignal }): Promise<boolean> {
    const { gpus } = victim.server;
    using _lock = await this.#options.locks.acquire(gpus, signal);
    if (!isIdle(victim) || victim.model.pin || victim.server.gpus !== gpus) return false;
    return await this.evict(victim, { by });
  }

  /** Makes what room there is on the GPUs of a server that ran out of memory. False where nobody could go. */
  async evictBeside(slot: Slot, signal: AbortSignal): Promise<boolean> {
    const { locks, room } = this.#options;
    // Whoever goes is in transition on all of its GPUs.
    const gpus = [slot, ...this.#idleBeside(slot)].flatMap(({ server }) => server.gpus);
    using _lock = await locks.acquire(gpus, signal);
    const idle = this.#idleBeside(slot).filter(({ server }) => server.gpus.every((uuid) => gpus.includes(uuid)));
    for (const other of idle) {
      const canOffload = other.server.state.kind === 'ready' && room.canOffload(other) && room.hasRamFor(other);
      await this.evict(other, { by: canOffload ? 'offload' : 'release', isFor: slot });
    }
    return idle.length > 0;
  }

  #count({ model: { alias } }: Slot, by: Eviction['by']): void {
    const counts = this.counts.get(alias) ?? { offload: 0, release: 0 };
    this.counts.set(alias, { ...counts, [by]: counts[by] + 1 });
  }

  /** Not another replica of it, as the planner has it. */
  #idleBeside({ model, server: { gpus } }: Slot): Slot[] {
    return this.#options.slots().filter((other) => {
      const { server } = other;
      const { kind } = server.state;
      const isThere = server.heldMiB > 0 && server.gpus.some((uuid) => gpus.includes(uuid));
      const mayGo = isIdle(other) && !other.model.pin && (kind === 'ready' || kind === 'offloaded');
      return other.model !== model && isThere && mayGo;
    });
  }

  /** False where it freed too little, or the engine refused. */
  async #offload({ slotId, server }: Slot): Promise<boolean> {
    const { log } = this.#options;
    try {
      const { heldBeforeMiB: heldMiB, freedMiB } = await server.offload();
      if (freedMiB >= heldMiB / 2) return true;
      log.warn({ event: 'offload-insufficient', slotId, freedMiB, heldMiB });
    } catch (error) {
      if (!(error instanceof AppError) || error.code === 'GPU_BUSY') throw error;
      log.warn({ event: 'offload-failed', slotId, error: error.message });
    }
    return false;
  }
}
