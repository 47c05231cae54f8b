import { AppError } from '../../shared/errors.ts';
import type { ModelId } from '../../shared/job.ts';
import type { GpuSampler } from '../gpu/gpu-sampler.ts';
import { readHostMemory } from '../gpu/host-memory.ts';
import type { VramMeasure } from '../gpu/vram-measure.ts';
import type { Resident, VramPlan, VramView, VramWant } from '../gpu/vram-planner.ts';
import { planVram } from '../gpu/vram-planner.ts';
import type { ConfiguredModel } from './configured-model.ts';
import { loadedMiB, offloadedMiB, peakMiB } from './footprint.ts';
import type { Learned } from './learned.ts';
import type { Slot } from './slot.ts';
import { isAttached, isIdle } from './slot.ts';
import type { VramAccounts } from './vram-accounts.ts';

export type RoomOptions = {
  sampler: GpuSampler;
  learned: Learned;
  accounts: VramAccounts;
  reserveMiB: number;
  /** Host RAM kept free of offloaded weights: the host itself must live. */
  ramReserveMiB: number;
  slots: () => readonly Slot[];
  signal: AbortSignal;
};

/** What room there is, what a job needs of it, and what the planner makes of the two. Decides nothing by itself. */
export class Room {
  readonly #options: RoomOptions;
  /** Models that bridges have work for, as last told: who is asked for counts as used this moment. */
  #offered: ReadonlySet<ModelId> = new Set();

  constructor(options: RoomOptions) {
    this.#options = options;
  }

  viewFor(offered: ReadonlySet<ModelId>): VramView {
    this.#offered = offered;
    return this.#view();
  }

  /** What a job of this size needs on top of what the slot holds, so that its peak fits. */
  want(slot: Slot, megapixels: number): VramWant {
    const { slotId, server, model } = slot;
    const needMiB = isAttached(model) ? 0 : Math.max(0, this.peakMiB(model, megapixels) - this.#claimedMiB(slot));
    const isPlaced = isAttached(model) || server.gpus.length > 0;
    return { slotId, needMiB, gpuCount: model.gpuCount, ...(isPlaced && { onGpus: server.gpus }) };
  }

  peakMiB(model: ConfiguredModel, megapixels: number): number {
    return peakMiB(this.#options.learned.of(model.id), { ...model, megapixels });
  }

  /** Not where the server is known to keep more than half of its memory. */
  canOffload({ model }: Slot): boolean {
    const learned = this.#options.learned.of(model.id);
    return model.offload === 'auto' && offloadedMiB(learned, model) < loadedMiB(learned, model) / 2;
  }

  plan(slot: Slot, megapixels: number): VramPlan {
    if (isAttached(slot.model)) return { kind: 'fits', gpus: [], evict: [] };
    return planVram(this.want(slot, megapixels), this.#view());
  }

  /** On readings of this moment. Throws GPU_LOST: without a reading nothing is started. */
  async planFresh(slot: Slot, megapixels: number): Promise<VramPlan> {
    const { sampler, accounts, signal } = this.#options;
    // Without the list of processes it can be planned; without the readings it cannot.
    if ((await accounts.look(signal)) === undefined) await sampler.sampleNow(signal);
    return this.plan(slot, megapixels);
  }

  /** These GPUs as the last plan saw them. */
  measure(gpus: readonly string[]): VramMeasure | undefined {
    return this.#options.accounts.measure(gpus);
  }

  /** Why a plan cannot be carried out, with numbers and names. */
  refusal(slot: Slot, megapixels: number, plan: Exclude<VramPlan, { kind: 'fits' }>): AppError {
    const { alias } = slot.model;
    const { sampler, accounts } = this.#options;
    if (plan.kind === 'wait') {
      const names = plan.blockedBy.map((slotId) => this.#aliasOf(slotId)).join(', ');
      return new AppError(
        'GPU_BUSY',
        `${alias} needs GPU memory that ${names} is using now. It can start when that ends.`,
      );
    }
    const readings = sampler.readings();
    const degraded = readings.filter(({ uuid }) => accounts.isDegraded(uuid));
    const unusable = readings.filter(({ health }) => health !== 'ok');
    if (readings.length === 0 || unusable.length === readings.length) {
      const reason = sampler.problem?.reason ?? 'nvidia-smi shows no GPU';
      return new AppError('GPU_LOST', `${alias} cannot run: ${reason}. Run nvidia-smi on the host.`);
    }
    const foreign = readings.flatMap(({ index, uuid }) =>
      accounts
        .of(uuid)
        .foreign.map(({ pid, name, usedMiB }) => `${name} (pid ${pid}, ${Math.round(usedMiB)} MiB on GPU ${index})`),
    );
    const others = foreign.length === 0 ? '' : ` Other programs hold VRAM: ${foreign.join(', ')}.`;
    const waiting =
      degraded.length === 0
        ? ''
        : ` GPU ${degraded.map(({ index }) => index).join(', ')} waits for memory of an ended server.`;
    const needMiB = Math.round(this.want(slot, megapixels).needMiB);
    return new AppError(
      'GPU_OUT_OF_MEMORY',
      `${alias} needs ${needMiB} MiB of VRAM on ${slot.model.gpuCount} GPU(s), ${Math.round(plan.shortMiB)} MiB more than this ` +
        `host can free (${Math.round(plan.largestMiB)} MiB).${others}${waiting} Ask for a smaller image or use another host.`,
    );
  }

  #view(): VramView {
    const { sampler, accounts, reserveMiB, ramReserveMiB, slots } = this.#options;
    const placed = slots().filter(({ server }) => server.gpus.length > 0);
    const promisedOn = (uuid: string): number =>
      placed
        .filter(({ server }) => server.gpus.includes(uuid))
        .reduce((sum, slot) => sum + (this.#claimedMiB(slot) - slot.server.heldMiB) / slot.server.gpus.length, 0);
    const gpus = sampler.readings().map(({ uuid, totalMiB, freeMiB, health }) => ({
      uuid,
      totalMiB: totalMiB ?? 0,
      freeMiB: Math.max(0, (freeMiB ?? 0) - promisedOn(uuid)),
      reserveMiB,
      usable: health === 'ok' && freeMiB !== null && !accounts.isDegraded(uuid),
    }));
    const hostRamFreeMiB = Math.max(0, readHostMemory().availableMiB - ramReserveMiB);
    return { gpus, residents: placed.map((slot) => this.#residentOf(slot)), hostRamFreeMiB };
  }

  /**
   * What a slot claims of its GPUs: what it holds, or was promised for the work on it, whichever is more. Readings from
   * before the end of its last job still show that job's peak as used: until there are newer ones that memory is its own,
   * and its next job need not wait for them.
   */
  #claimedMiB(slot: Slot): number {
    const { server, promisedMiB } = slot;
    const readings = this.#options.sampler.readings().filter(({ uuid }) => server.gpus.includes(uuid));
    const showLastJob = server.state.kind === 'ready' && readings.some(({ ageMs }) => ageMs > server.idleMs);
    const isPromised = server.gpus.length > 0 && (!isIdle(slot) || showLastJob);
    return isPromised ? Math.max(server.heldMiB, promisedMiB) : server.heldMiB;
  }

  #residentOf(slot: Slot): Resident {
    const { slotId, server, model, bringing } = slot;
    const { learned } = this.#options;
    return {
      slotId,
      gpus: server.gpus,
      heldMiB: this.#claimedMiB(slot),
      state: server.state.kind,
      inFlight: server.inFlight + (bringing === undefined ? 0 : 1),
      isPinned: model.pin,
      isOffered: this.#offered.has(model.id),
      idleMs: server.idleMs,
      reloadMs: learned.loadMs(model),
      canOffload: this.canOffload(slot),
      offloadedMiB: Math.min(server.heldMiB, offloadedMiB(learned.of(model.id), model)),
    };
  }

  #aliasOf(slotId: string): string {
    const { slots } = this.#options;
    return slots().find((slot) => slot.slotId === slotId)?.model.alias ?? slotId;
  }
}
