import { Deadline, untilAborted } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import type { ModelId } from '../../shared/job.ts';
import type { ModelMove } from '../../shared/protocol.ts';
import type { GpuReading, GpuSampler } from '../gpu/gpu-sampler.ts';
import type { VramMeasure } from '../gpu/vram-measure.ts';
import type { Admission } from './admission.ts';
import type { Changes } from './changes.ts';
import type { GpuLocks } from './gpu-locks.ts';
import { movedMessage, sumVram } from './move-message.ts';
import type { Moved } from './moved.ts';
import { movedBy, notMoved } from './moved.ts';
import type { Slot } from './slot.ts';
import { isAttached, isIdle, isUp, shouldBeUp } from './slot.ts';
import { say } from './telling.ts';
import type { WorkInHand } from './work-in-hand.ts';

export type Destination = 'load' | 'offload' | 'release';

export type ModelMovesOptions = {
  admission: Admission;
  sampler: GpuSampler;
  locks: GpuLocks;
  changes: Changes;
  work: WorkInHand;
  slots: () => readonly Slot[];
  /** Expected time until a slot is ready. */
  readyInMs: (slot: Slot) => number;
  times: { moveAnswerMs: number; heldAwayMs: number; stopGraceMs: number };
  signal: AbortSignal;
};

/** Size of the job that a person's load makes ready for. */
const MEGAPIXELS = 1;

/** A person's load, offload and release, and how long a model stays away after the latter two. */
export class ModelMoves {
  readonly #options: ModelMovesOptions;
  readonly #heldAwayUntilMs = new Map<ModelId, number>();
  /** The last one asked for of each model, until it is over. */
  readonly #moves = new Map<ModelId, { to: Destination; promise: Promise<ModelMove> }>();

  constructor(options: ModelMovesOptions) {
    this.#options = options;
  }

  /** Batch work does not bring it back for so long, or for as long as it is held away already. */
  holdAway(model: ModelId, ms: number): void {
    const untilMs = Math.max(this.#heldAwayUntilMs.get(model) ?? 0, performance.now() + ms);
    this.#heldAwayUntilMs.set(model, untilMs);
  }

  heldAwayMs(model: ModelId): number {
    return Math.max(0, (this.#heldAwayUntilMs.get(model) ?? 0) - performance.now());
  }

  /** Answers after `moveAnswerMs` at the latest; the move goes on, and the same call again joins it. */
  async move(model: ModelId, to: Destination, signal: AbortSignal): Promise<ModelMove> {
    const { slots, times, readyInMs, admission } = this.#options;
    const chosen = slots().filter((slot) => slot.model.id === model || slot.model.alias === model);
    const [first] = chosen;
    if (first === undefined) {
      const known = [...new Set(slots().map((slot) => slot.model.alias))].join(', ') || 'none';
      throw new AppError('MODEL_UNKNOWN', `No model ${model} is configured on this host. Configured: ${known}.`);
    }
    const { id, alias } = first.model;
    if (to === 'load') this.#heldAwayUntilMs.delete(id);
    else {
      this.holdAway(id, times.heldAwayMs);
      for (const slot of chosen) admission.abandonFetch(slot);
    }
    for (const slot of chosen) slot.isWanted = to === 'load' && shouldBeUp(slot.model);
    const startMs = performance.now();
    const work = this.#begin(chosen, { id, to });
    using limit = new Deadline({ ms: times.moveAnswerMs, signal });
    try {
      return await untilAborted(work, limit.signal);
    } catch (error) {
      if (!limit.isExpired || error instanceof AppError) throw error;
    }
    return {
      model: id,
      state: first.server.state.kind,
      done: 'nothing',
      message: `${alias} is still on its way: ${first.detail ?? first.server.state.kind}. Call again to wait for it.`,
      tookMs: performance.now() - startMs,
      readyInMs: to === 'load' ? readyInMs(first) : times.stopGraceMs,
      heldAwayMs: this.heldAwayMs(id),
    };
  }

  /** Joins the same move under way. Another one comes after it, so that the last word is what holds in the end. */
  #begin(slots: readonly Slot[], { id, to }: { id: ModelId; to: Destination }): Promise<ModelMove> {
    const last = this.#moves.get(id);
    if (last?.to === to) return last.promise;
    const before = last?.promise.catch(() => undefined); // its own callers see the failure
    const promise = (before ?? Promise.resolve())
      .then(() => this.#moveNow(slots, to))
      .finally(() => {
        if (this.#moves.get(id)?.promise === promise) this.#moves.delete(id);
      });
    this.#moves.set(id, { to, promise });
    this.#options.changes.announce(); // a load that waits for room learns that it is not wanted any more
    return this.#options.work.hold(promise);
  }

  async #moveNow(slots: readonly Slot[], to: Destination): Promise<ModelMove> {
    const startMs = performance.now();
    const [first] = slots;
    if (first === undefined) throw new Error('a move is of at least one slot');
    const moved = await Promise.all(
      slots.map((slot) => (to === 'load' ? this.#loadAsked(slot) : this.#putAway(slot, to))),
    );
    // From the end of the move on, unless somebody has asked for the model again.
    if (to !== 'load' && this.#moves.get(first.model.id)?.to === to) {
      this.holdAway(first.model.id, this.#options.times.heldAwayMs);
    }
    const vram = sumVram(moved);
    const heldAwayMs = this.heldAwayMs(first.model.id);
    return {
      model: first.model.id,
      state: first.server.state.kind,
      done: moved.find(({ done }) => done !== 'nothing')?.done ?? 'nothing',
      message: movedMessage({ alias: first.model.alias, state: first.server.state.kind, to, moved, vram, heldAwayMs }),
      tookMs: performance.now() - startMs,
      ...(vram && { vram }),
      heldAwayMs,
    };
  }

  /** As a job without an image would; where running jobs are in the way, after them. */
  async #loadAsked(slot: Slot): Promise<Moved> {
    const signal = this.#options.signal;
    const { server } = slot;
    for (;;) {
      const { state } = server;
      const startMs = performance.now();
      const heldBeforeMiB = server.heldMiB;
      const before = await this.#readings();
      if (isUp(slot)) return notMoved(server.heldMiB);
      try {
        const isJoined = slot.bringing !== undefined;
        await this.#options.admission.bring(slot, { megapixels: MEGAPIXELS, isAsked: true });
        if (isJoined && !isUp(slot)) continue; // a preload, which takes no room from others
        const isWake = state.kind === 'offloaded';
        const after = await this.#readings();
        // Which GPUs somebody else's server is on is not known: so the change on all of them is shown.
        const gpus = isAttached(slot.model) ? after.map(({ uuid }) => uuid) : server.gpus;
        return movedBy(isWake ? 'wake' : 'load', {
          startMs,
          before: freeOn(before, gpus),
          after: freeOn(after, gpus),
          heldBeforeMiB,
          heldAfterMiB: server.heldMiB,
        });
      } catch (error) {
        const isStillWanted =
          this.#moves.get(slot.model.id)?.to === 'load' && slot.leaving === undefined && !signal.aborted;
        if (!(error instanceof AppError) || error.code !== 'GPU_BUSY' || !isStillWanted) throw error;
        say(slot, error.message, this.#options.changes);
        await this.#options.changes.next(signal);
      }
    }
  }

  async #putAway(slot: Slot, to: 'offload' | 'release'): Promise<Moved> {
    const { server } = slot;
    const { signal } = this.#options;
    for (;;) {
      if (slot.bringing !== undefined) await slot.bringing.catch(() => undefined); // whoever asked for it sees the failure
      while (server.inFlight > 0) await this.#options.changes.next(signal);
      const { gpus } = server;
      using _lock = await this.#options.locks.acquire(gpus, signal);
      if (!isIdle(slot) || server.gpus !== gpus) continue; // meanwhile it was put to use, or elsewhere
      if (to === 'offload') return await server.offload();
      const moved = await server.release();
      server.forgive(); // also where it died by itself in that moment: who asked has what they wanted
      return moved;
    }
  }

  /** Empty where there is no GPU to look at: the server is somebody else's. */
  #readings(): Promise<GpuReading[]> {
    const { sampler, signal } = this.#options;
    return sampler.sampleNow(signal).catch(() => []);
  }
}

/** Free memory is all that is shown of it; undefined where nothing was read. */
function freeOn(readings: readonly GpuReading[], gpus: readonly string[]): VramMeasure | undefined {
  const here = readings.filter(({ uuid }) => gpus.includes(uuid));
  if (here.length === 0) return undefined;
  const freeMiB = here.reduce((sum, reading) => sum + (reading.freeMiB ?? 0), 0);
  return { freeMiB, mineMiB: 0, othersMiB: 0, isPresent: false, isListed: false, unexplainedMiB: null };
}
