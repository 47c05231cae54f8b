import { pause } from '../../shared/abort.ts';
import type { ModelId } from '../../shared/job.ts';
import type { Log } from '../../shared/log.ts';
import type { Admission } from './admission.ts';
import type { Changes } from './changes.ts';
import type { ForeignPressure } from './foreign-pressure.ts';
import type { GpuLocks } from './gpu-locks.ts';
import { idleAction } from './idle-policy.ts';
import type { Room } from './room.ts';
import type { Slot } from './slot.ts';
import { canEnd, isAttached, isIdle, shouldBeUp } from './slot.ts';
import type { VramAccounts } from './vram-accounts.ts';
import type { Weights } from '../weights/weights.ts';
import type { WorkInHand } from './work-in-hand.ts';

export type UpkeepOptions = {
  admission: Admission;
  room: Room;
  accounts: VramAccounts;
  locks: GpuLocks;
  changes: Changes;
  work: WorkInHand;
  slots: () => readonly Slot[];
  pressure: ForeignPressure;
  weights: Weights;
  /** How long a person's wish, or another program's need, keeps this model away. */
  heldAwayMs: (model: ModelId) => number;
  /** Of the residency. */
  signal: AbortSignal;
  /** While the host drains nothing is started by itself. */
  isDraining: () => boolean;
  pulseMs: number;
  log: Log;
};

const ATTRIBUTE_EVERY_MS = 30_000;
/** While a model loads, memory is missing, or others come and go, its numbers move. */
const ATTRIBUTE_MOVING_MS = 1_000;
const WANTED_RETRY_MS = 10_000;
/** Two misses are a death: seen within 10 s at a pulse of 1 s. */
const HEALTH_EVERY_PULSES = 4;
/** Size of the job that a preload makes ready for. */
const MEGAPIXELS = 1;

/** What happens without being asked: preloads, retries, idle policies, health, logs and the accounts, in one pulse. */
export class Upkeep {
  readonly #options: UpkeepOptions;

  constructor(options: UpkeepOptions) {
    this.#options = options;
  }

  /** Ends with the signal. */
  async run(signal: AbortSignal): Promise<void> {
    const { slots, accounts, changes, work, pressure, pulseMs } = this.#options;
    let lookedMs = performance.now();
    for (let pulse = 1; !signal.aborted; pulse += 1) {
      this.#keepUp(signal);
      this.#applyIdlePolicy(signal);
      const servers = slots().map(({ server }) => server);
      for (const server of servers) {
        if (pulse % HEALTH_EVERY_PULSES === 0) void work.hold(server.checkHealth()); // its failure is in the server's state
      }
      await pressure.look(signal);
      const isMoving =
        servers.some(({ state }) => state.kind === 'loading') || accounts.hasDebts() || accounts.isBehind();
      if (performance.now() - lookedMs >= (isMoving ? ATTRIBUTE_MOVING_MS : ATTRIBUTE_EVERY_MS)) {
        await accounts.look(signal);
        lookedMs = performance.now();
        changes.announce();
      }
      await pause(pulseMs, signal);
    }
  }

  /**
   * Brings up what should be up at start, and what crashed when its time has come. Who was evicted waits for a job. Pinned
   * models first, then the largest, which have the fewest places, then in the order of agent.yaml. Only a pinned one takes
   * room from others: two preloads that do not fit together would else take turns.
   */
  #keepUp(signal: AbortSignal): void {
    const { admission, isDraining, heldAwayMs, log } = this.#options;
    const nowMs = performance.now();
    const takenNow = new Set<string>();
    for (const slot of this.#wantedFirst()) {
      const { state, counts } = slot.server;
      const isFirst = state.kind === 'released' && counts.loads === 0 && slot.notBeforeMs <= nowMs;
      const isRetry = state.kind === 'failed' && state.retry !== 'never' && state.retry.atMs <= nowMs;
      if (state.kind === 'ready') slot.isWanted = shouldBeUp(slot.model);
      if (!slot.isWanted || isDraining() || slot.bringing !== undefined || !(isRetry || isFirst)) continue;
      if (heldAwayMs(slot.model.id) > 0 || !this.#mayCome(slot, { takenNow, nowMs })) continue;
      slot.notBeforeMs = nowMs + WANTED_RETRY_MS;
      // Room is looked for again where it loads: who came in between keeps it.
      admission.bring(slot, { megapixels: MEGAPIXELS, mayEvict: slot.model.pin }).catch((error: unknown) => {
        if (!signal.aborted) log.warn({ event: 'preload-failed', slotId: slot.slotId, error: String(error) });
      });
    }
  }

  #wantedFirst(): Slot[] {
    const { slots, room } = this.#options;
    const rank = ({ model }: Slot): number => (model.pin ? 0 : 1);
    const sizeMiB = ({ model }: Slot): number => room.peakMiB(model, MEGAPIXELS);
    return [...slots()].sort((a, b) => rank(a) - rank(b) || sizeMiB(b) - sizeMiB(a));
  }

  /** Looks again at the next pulse. One after another on each GPU, so that each sees what the last one took. */
  #mayCome(slot: Slot, { takenNow, nowMs }: { takenNow: Set<string>; nowMs: number }): boolean {
    const { room, locks, weights, signal } = this.#options;
    if (isAttached(slot.model)) return true;
    if (weights.stateOf(slot.model).kind !== 'present') {
      if (weights.isDue(slot.model)) weights.pull(slot.model, signal).catch(() => undefined); // the model's status says why
      return false;
    }
    const plan = room.plan(slot, MEGAPIXELS);
    if (plan.kind === 'impossible') return slot.notBeforeMs <= nowMs; // to be refused, with names, in the log
    if (plan.kind !== 'fits' || plan.gpus.some((uuid) => takenNow.has(uuid) || locks.isHeld(uuid))) return false;
    if (plan.evict.length > 0 && !slot.model.pin) return false;
    for (const uuid of plan.gpus) takenNow.add(uuid);
    return true;
  }

  #applyIdlePolicy(signal: AbortSignal): void {
    const { slots, room, locks, work, log } = this.#options;
    for (const slot of slots()) {
      const { server, model } = slot;
      const action = idleAction({
        state: server.state.kind,
        inFlight: isIdle(slot) ? 0 : 1,
        isPinned: model.pin,
        canEnd: canEnd(model),
        idleMs: server.idleMs,
        canOffload: room.canOffload(slot) && room.hasRamFor(slot),
        offloadAfterMs: model.offloadAfterMs,
        releaseAfterMs: model.releaseAfterMs,
      });
      // A GPU in transition is left alone: the policy can wait for the next pulse.
      if (action === undefined || server.gpus.some((uuid) => locks.isHeld(uuid))) continue;
      work.hold(this.#putAway(slot, { action, signal })).catch((error: unknown) => {
        if (!signal.aborted) log.warn({ event: 'idle-policy-failed', slotId: slot.slotId, error: String(error) });
      });
    }
  }

  async #putAway(
    slot: Slot,
    { action, signal }: { action: 'offload' | 'release'; signal: AbortSignal },
  ): Promise<void> {
    using _lock = await this.#options.locks.acquire(slot.server.gpus, signal);
    if (!isIdle(slot)) return;
    await (action === 'offload' ? slot.server.offload() : slot.server.release());
  }
}
