import { pause } from '../../shared/abort.ts';
import type { Log } from '../../shared/log.ts';
import type { Admission } from './admission.ts';
import type { Changes } from './changes.ts';
import type { GpuLocks } from './gpu-locks.ts';
import { idleAction } from './idle-policy.ts';
import type { Room } from './room.ts';
import type { Slot } from './slot.ts';
import { isAttached, isIdle, shouldBeUp } from './slot.ts';
import type { VramAccounts } from './vram-accounts.ts';
import type { WorkInHand } from './work-in-hand.ts';

export type UpkeepOptions = {
  admission: Admission;
  room: Room;
  accounts: VramAccounts;
  locks: GpuLocks;
  changes: Changes;
  work: WorkInHand;
  slots: () => readonly Slot[];
  pulseMs: number;
  log: Log;
};

const ATTRIBUTE_EVERY_MS = 30_000;
/** While a model loads, or memory is missing, its numbers move. */
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
    const { slots, accounts, changes, work, pulseMs, log } = this.#options;
    let lookedMs = performance.now();
    for (let pulse = 1; !signal.aborted; pulse += 1) {
      this.#keepUp(signal);
      this.#applyIdlePolicy(signal);
      const servers = slots().map(({ server }) => server);
      for (const server of servers) {
        if (pulse % HEALTH_EVERY_PULSES === 0) void work.hold(server.checkHealth()); // its failure is in the server's state
        await server.capLog().catch((error: unknown) => log.warn({ event: 'log-not-capped', error: String(error) }));
      }
      const isMoving = servers.some(({ state }) => state.kind === 'loading') || accounts.hasDebts();
      if (performance.now() - lookedMs >= (isMoving ? ATTRIBUTE_MOVING_MS : ATTRIBUTE_EVERY_MS)) {
        await accounts.look(signal);
        lookedMs = performance.now();
        changes.announce();
      }
      await pause(pulseMs, signal);
    }
  }

  /** Brings up what should be up at start, and what crashed when its time has come. Who was evicted waits for a job. */
  #keepUp(signal: AbortSignal): void {
    const { slots, admission, log } = this.#options;
    const nowMs = performance.now();
    for (const slot of slots()) {
      const { state, counts } = slot.server;
      const isFirst = state.kind === 'released' && counts.loads === 0 && slot.notBeforeMs <= nowMs;
      const isRetry = state.kind === 'failed' && state.retry !== 'never' && state.retry.atMs <= nowMs;
      if (state.kind === 'ready') slot.isWanted = shouldBeUp(slot.model);
      if (!slot.isWanted || slot.bringing !== undefined || !(isRetry || isFirst)) continue;
      slot.notBeforeMs = nowMs + WANTED_RETRY_MS;
      admission.bring(slot, { megapixels: MEGAPIXELS }).catch((error: unknown) => {
        if (!signal.aborted) log.warn({ event: 'preload-failed', slotId: slot.slotId, error: String(error) });
      });
    }
  }

  #applyIdlePolicy(signal: AbortSignal): void {
    const { slots, room, locks, work, log } = this.#options;
    for (const slot of slots()) {
      const { server, model } = slot;
      const action = idleAction({
        state: server.state.kind,
        inFlight: isIdle(slot) ? 0 : 1,
        isPinned: model.pin,
        isAttached: isAttached(model),
        idleMs: server.idleMs,
        canOffload: room.canOffload(slot),
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
