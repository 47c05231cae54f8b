import { untilAborted } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import type { VramMeasure } from '../gpu/vram-measure.ts';
import type { Eviction } from '../gpu/vram-planner.ts';
import type { Changes } from './changes.ts';
import type { Evictor } from './evictor.ts';
import type { GpuLocks } from './gpu-locks.ts';
import type { Learned } from './learned.ts';
import { progressText, sayEveryMs } from './progress-text.ts';
import type { Room } from './room.ts';
import type { Slot } from './slot.ts';
import { isAttached, isIdle, isUp, refuseFailed } from './slot.ts';
import { say, whileTelling } from './telling.ts';
import type { Weights } from '../weights/weights.ts';
import { downloadText } from '../weights/weights-text.ts';
import type { WorkInHand } from './work-in-hand.ts';

export type AdmissionOptions = {
  room: Room;
  evictor: Evictor;
  learned: Learned;
  locks: GpuLocks;
  changes: Changes;
  work: WorkInHand;
  weights: Weights;
  slots: () => readonly Slot[];
  /** Of the residency: a caller that leaves ends nothing. */
  signal: AbortSignal;
};

export type Wish = {
  megapixels: number;
  /** A person wants it, so that a failure before does not count. */
  isAsked?: boolean;
  /** Where false, nobody has to go for it: it ends as it began, without a word, where there is no room otherwise. */
  mayEvict?: boolean;
};

/** How often the progress of a download is said. */
const SAY_DOWNLOAD_MS = 2_000;
/** Plans are made again under the lock. If they keep changing, the host is too busy for this job. */
const MAX_PLANS = 5;

/** Gets servers ready for jobs: makes room, loads, wakes. One transition per GPU at a time. */
export class Admission {
  readonly #options: AdmissionOptions;
  readonly #fetching = new Map<Slot, AbortController>();

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
   * looks again afterwards.
   */
  bring(slot: Slot, o: Wish): Promise<void> {
    const { changes, work } = this.#options;
    if (isIdle(slot)) slot.promisedMiB = 0; // of a job that has ended
    slot.bringing ??= work.hold(
      this.#bringNow(slot, { isAsked: false, mayEvict: true, ...o }).finally(() => {
        slot.bringing = undefined;
        slot.detail = undefined;
        changes.announce();
      }),
    );
    return slot.bringing;
  }

  /** Nobody wants this server any more: it is not loaded when its weights are there. The download itself goes on. */
  abandonFetch(slot: Slot): void {
    this.#fetching.get(slot)?.abort(notWanted(slot));
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

  async #bringNow(slot: Slot, o: Required<Wish>): Promise<void> {
    const { room, locks, changes, signal } = this.#options;
    const { model } = slot;
    if (slot.leaving !== undefined) throw notWanted(slot);
    if (!o.isAsked) refuseFailed(slot);
    if (isAttached(model)) {
      if (o.isAsked) slot.server.forgive();
      await this.#load(slot, []);
      return;
    }
    await this.#fetchWeights(slot, o);
    for (let tries = 0; tries < MAX_PLANS; tries += 1) {
      // 1. A plan from the last readings names the GPUs to wait for; a refusal only counts on fresh ones.
      const last = room.plan(slot, o.megapixels);
      const first = last.kind === 'fits' ? last : await room.planFresh(slot, o.megapixels);
      if (first.kind !== 'fits') throw room.refusal(slot, o.megapixels, first);
      const gpus = this.#gpusOf(first);
      if (gpus.some((uuid) => locks.isHeld(uuid))) say(slot, 'waiting for another model on its way', changes);
      using _lock = await locks.acquire(gpus, signal);
      // 2. Meanwhile anything may have happened: only a plan made under the lock is carried out.
      if (await this.#bringLocked(slot, { ...o, gpus })) return;
    }
    throw new AppError('GPU_BUSY', `The GPUs for ${model.alias} changed hands while it waited. Try again.`);
  }

  /** False where the plan now needs other GPUs than those that are locked. What may not evict ends where it would have to. */
  async #bringLocked(slot: Slot, o: Required<Wish> & { gpus: readonly string[] }): Promise<boolean> {
    const { room, evictor } = this.#options;
    // What was evicted may free less than was thought, and a victim may have taken a job: so a plan after each round.
    for (let rounds = 0; rounds < MAX_PLANS; rounds += 1) {
      await slot.server.settled(); // it may be dying, which no lock prevents
      const plan = await room.planFresh(slot, o.megapixels);
      if (plan.kind !== 'fits') throw room.refusal(slot, o.megapixels, plan);
      if (!this.#gpusOf(plan).every((uuid) => o.gpus.includes(uuid))) return false;
      if (!o.isAsked) refuseFailed(slot);
      if (plan.evict.length > 0 && !o.mayEvict) return true; // somebody came while it waited
      for (const { slotId, by } of plan.evict) await evictor.evict(this.#slotOf(slotId), { by, isFor: slot });
      if (plan.evict.length > 0) continue;
      slot.promisedMiB = room.peakMiB(slot.model, o.megapixels);
      if (o.isAsked) slot.server.forgive();
      if (await this.#makeReady(slot, plan.gpus)) return true;
    }
    return false;
  }

  /** False where it has begun to die since the plan: what then fits is another question. */
  async #makeReady(slot: Slot, gpus: readonly string[]): Promise<boolean> {
    const { learned, room } = this.#options;
    const { server, model } = slot;
    switch (server.state.kind) {
      case 'offloaded': {
        const isMeasured = learned.of(model.id).wakesMs.length > 0;
        await this.#telling(slot, server.wake(), { doing: 'waking', usualMs: learned.wakeMs(model), isMeasured });
        return true;
      }
      case 'released':
      case 'failed':
        await this.#load(slot, gpus, room.measure(gpus));
        return true;
      case 'ready':
        return true; // only room for its peak was missing
      case 'loading':
      case 'offloading':
      case 'releasing':
        return false;
    }
  }

  /** Before any room is looked for: a download takes an hour, and needs no GPU and nobody's leaving. */
  async #fetchWeights(slot: Slot, { isAsked }: { isAsked: boolean }): Promise<void> {
    const { weights, changes, signal } = this.#options;
    const { model } = slot;
    const unwanted = new AbortController();
    this.#fetching.set(slot, unwanted);
    const text = (): string | undefined => {
      if (slot.leaving !== undefined) unwanted.abort(notWanted(slot));
      const state = weights.stateOf(model);
      return state.kind === 'absent' || state.kind === 'failed' ? undefined : downloadText(state);
    };
    try {
      const there = untilAborted(weights.pull(model, signal, { isAsked }), unwanted.signal);
      await whileTelling(there, { text, everyMs: SAY_DOWNLOAD_MS, say: (words) => say(slot, words, changes) });
    } finally {
      this.#fetching.delete(slot);
    }
  }

  async #load(slot: Slot, gpus: readonly string[], before?: VramMeasure): Promise<void> {
    const { learned } = this.#options;
    const { server, model } = slot;
    const isMeasured = learned.of(model.id).loadsMs.length > 0;
    const load = server.load(gpus, before);
    await this.#telling(slot, load, { doing: 'loading', usualMs: learned.loadMs(model), isMeasured });
  }

  async #telling(
    slot: Slot,
    work: Promise<unknown>,
    o: { doing: 'loading' | 'waking'; usualMs: number; isMeasured: boolean },
  ): Promise<void> {
    const startMs = performance.now();
    await whileTelling(work, {
      text: () => progressText({ ...o, alias: slot.model.alias, soFarMs: performance.now() - startMs }),
      everyMs: sayEveryMs(o.usualMs),
      say: (words) => say(slot, words, this.#options.changes),
    });
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

function notWanted({ model, leaving }: Slot): AppError {
  return new AppError('GPU_BUSY', leaving ?? `A person asked to move ${model.alias} away.`);
}
