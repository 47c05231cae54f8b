import { untilAborted } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Eviction } from '../gpu/vram-planner.ts';
import type { Changes } from './changes.ts';
import type { GpuLocks } from './gpu-locks.ts';
import type { Learned } from './learned.ts';
import type { ModelServer } from './model-server.ts';
import type { Room } from './room.ts';
import type { Slot } from './slot.ts';
import { isAttached, isIdle, isUp, refuseFailed, seconds } from './slot.ts';
import type { Weights } from './weights.ts';
import type { WorkInHand } from './work-in-hand.ts';

export type AdmissionOptions = {
  room: Room;
  learned: Learned;
  locks: GpuLocks;
  changes: Changes;
  work: WorkInHand;
  weights: Weights;
  slots: () => readonly Slot[];
  /** Of the residency: a caller that leaves ends nothing. */
  signal: AbortSignal;
  log: Log;
};

/** Plans are made again under the lock. If they keep changing, the host is too busy for this job. */
const MAX_PLANS = 5;

/** Gets servers ready for jobs: makes room, loads, wakes. One transition per GPU at a time. */
export class Admission {
  readonly #options: AdmissionOptions;

  constructor(options: AdmissionOptions) {
    this.#options = options;
  }

  /** Answers when the server is in use for this job; `Disposable` ends that use. */
  async use(
    slot: Slot,
    o: { megapixels: number; signal: AbortSignal; onDetail: (text: string) => void },
  ): Promise<Disposable> {
    slot.listeners.add(o.onDetail);
    try {
      for (let tries = 0; tries <= MAX_PLANS; tries += 1) {
        o.signal.throwIfAborted();
        const use = this.#useNow(slot, o.megapixels);
        if (use !== undefined) return use;
        if (tries === 0 && slot.detail !== undefined) o.onDetail(slot.detail);
        await untilAborted(this.bring(slot, o), o.signal);
      }
    } finally {
      slot.listeners.delete(o.onDetail);
    }
    const { alias } = slot.model;
    throw new AppError('GPU_BUSY', `The GPUs of ${alias} are taken by other models again and again. Try later.`);
  }

  /**
   * Gets a server ready for a job of this size. Joins the work under way for it, whatever size that was for: who joins
   * looks again afterwards. `isAsked`: a person wants it, so that a failure before does not count.
   */
  bring(slot: Slot, o: { megapixels: number; isAsked?: boolean }): Promise<void> {
    const { changes, work } = this.#options;
    if (isIdle(slot)) slot.promisedMiB = 0; // of a job that has ended
    slot.bringing ??= work.hold(
      this.#bringNow(slot, { megapixels: o.megapixels, isAsked: o.isAsked ?? false }).finally(() => {
        slot.bringing = undefined;
        slot.detail = undefined;
        changes.announce();
      }),
    );
    return slot.bringing;
  }

  /** Makes what room there is on the GPUs of a server that ran out of memory. False where nobody could go. */
  async evictIdleBeside(slot: Slot, signal: AbortSignal): Promise<boolean> {
    const { locks, slots, room } = this.#options;
    using _lock = await locks.acquire(slot.server.gpus, signal);
    const idle = slots().filter(
      (other) =>
        other !== slot &&
        !other.model.pin &&
        other.server.inFlight === 0 &&
        other.server.heldMiB > 0 &&
        (other.server.state.kind === 'ready' || other.server.state.kind === 'offloaded') &&
        other.server.gpus.some((uuid) => slot.server.gpus.includes(uuid)),
    );
    for (const other of idle) {
      const canOffload = other.server.state.kind === 'ready' && room.canOffload(other);
      await this.#evict(slot, { slotId: other.slotId, by: canOffload ? 'offload' : 'release' });
    }
    return idle.length > 0;
  }

  say(slot: Slot, text: string): void {
    slot.detail = text;
    for (const listener of slot.listeners) listener(text);
    this.#options.changes.announce();
  }

  /** At once, where nothing has to be moved first. In the same tick as the plan, so that nobody comes between. */
  #useNow(slot: Slot, megapixels: number): Disposable | undefined {
    if (!isUp(slot) || slot.bringing !== undefined) return undefined;
    const { room, changes } = this.#options;
    const { server, model } = slot;
    const plan = room.plan(slot, megapixels);
    if (plan.kind !== 'fits' || plan.evict.length > 0) return undefined;
    server.wakeByJob();
    const otherMiB = isIdle(slot) ? 0 : slot.promisedMiB;
    slot.promisedMiB = isAttached(model) ? 0 : Math.max(otherMiB, room.peakMiB(model, megapixels));
    const held = server.lease();
    return {
      [Symbol.dispose]: () => {
        held[Symbol.dispose]();
        changes.announce();
      },
    };
  }

  async #bringNow(slot: Slot, o: { megapixels: number; isAsked: boolean }): Promise<void> {
    const { room, locks, signal } = this.#options;
    const { server, model } = slot;
    if (!o.isAsked) refuseFailed(slot);
    if (isAttached(model)) {
      await server.load([]);
      return;
    }
    for (let tries = 0; tries < MAX_PLANS; tries += 1) {
      // 1. A plan from the last readings names the GPUs to wait for; a refusal only counts on fresh ones.
      const last = room.plan(slot, o.megapixels);
      const first = last.kind === 'fits' ? last : await room.planFresh(slot, o.megapixels);
      if (first.kind !== 'fits') throw room.refusal(slot, o.megapixels, first);
      const gpus = this.#gpusOf(first);
      if (gpus.some((uuid) => locks.isHeld(uuid))) this.say(slot, 'waiting for another model on its way');
      using _lock = await locks.acquire(gpus, signal);
      // 2. Meanwhile anything may have happened: only a plan made under the lock is carried out.
      if (await this.#bringLocked(slot, { ...o, gpus })) return;
    }
    throw new AppError('GPU_BUSY', `The GPUs for ${model.alias} changed hands while it waited. Try again.`);
  }

  /** False where the plan now needs other GPUs than those that are locked. */
  async #bringLocked(
    slot: Slot,
    o: { megapixels: number; isAsked: boolean; gpus: readonly string[] },
  ): Promise<boolean> {
    const { room } = this.#options;
    // What was evicted may free less than was thought, and a victim may have taken a job: so a plan after each round.
    for (let rounds = 0; rounds < MAX_PLANS; rounds += 1) {
      await slot.server.settled(); // it may be dying, which no lock prevents
      const plan = await room.planFresh(slot, o.megapixels);
      if (plan.kind !== 'fits') throw room.refusal(slot, o.megapixels, plan);
      if (!this.#gpusOf(plan).every((uuid) => o.gpus.includes(uuid))) return false;
      if (!o.isAsked) refuseFailed(slot);
      for (const eviction of plan.evict) await this.#evict(slot, eviction);
      if (plan.evict.length > 0) continue;
      slot.promisedMiB = room.peakMiB(slot.model, o.megapixels);
      if (await this.#makeReady(slot, plan.gpus)) return true;
    }
    return false;
  }

  /** False where it has begun to die since the plan: what then fits is another question. */
  async #makeReady(slot: Slot, gpus: readonly string[]): Promise<boolean> {
    const { learned, room } = this.#options;
    const { server, model } = slot;
    switch (server.state.kind) {
      case 'offloaded':
        this.say(slot, `waking ${model.alias}, usually ${seconds(learned.wakeMs(model))}`);
        await server.wake();
        return true;
      case 'released':
      case 'failed':
        this.say(slot, `loading ${model.alias}, usually ${seconds(learned.loadMs(model))}`);
        await server.load(gpus, room.measure(gpus));
        return true;
      case 'ready':
        return true; // only room for its peak was missing
      case 'loading':
      case 'offloading':
      case 'releasing':
        return false;
    }
  }

  async #evict(slot: Slot, { slotId, by }: Eviction): Promise<void> {
    const { server, model } = this.#slotOf(slotId);
    this.say(slot, `making room: ${by === 'offload' ? 'offloading' : 'releasing'} ${model.alias}`);
    try {
      // The memory was promised: an engine that gives back less than half of it, or refuses, loses the process.
      if (by === 'release' || !(await this.#offload(slotId, server))) await server.release();
    } catch (error) {
      if (!(error instanceof AppError) || error.code !== 'GPU_BUSY') throw error; // it took a job: the next plan sees that
    }
  }

  /** False where it freed too little, or the engine refused. */
  async #offload(slotId: string, server: ModelServer): Promise<boolean> {
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

  #gpusOf(plan: { gpus: readonly string[]; evict: readonly Eviction[] }): string[] {
    return [...plan.gpus, ...plan.evict.flatMap(({ slotId }) => this.#slotOf(slotId).server.gpus)];
  }

  #slotOf(slotId: string): Slot {
    const slot = this.#options.slots().find((candidate) => candidate.slotId === slotId);
    if (slot === undefined) throw new Error(`no slot ${slotId}`);
    return slot;
  }
}
