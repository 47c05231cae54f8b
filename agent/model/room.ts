import { AppError } from '../../shared/errors.ts';
import type { VramCapacity } from '../../shared/host-snapshot.ts';
import type { ModelId } from '../../shared/job.ts';
import type { GpuReading, GpuSampler } from '../gpu/gpu-sampler.ts';
import { readHostMemory } from '../gpu/host-memory.ts';
import type { VramMeasure } from '../gpu/vram-measure.ts';
import type { Resident, VramPlan, VramView, VramWant } from '../gpu/vram-planner.ts';
import { planVram } from '../gpu/vram-planner.ts';
import type { ConfiguredModel } from '../configured-model.ts';
import { loadedMiB, offloadedMiB, peakMiB } from './footprint.ts';
import type { Learned } from './learned.ts';
import type { Slot } from './slot.ts';
import { isAttached, isIdle } from './slot.ts';
import type { VramAccounts } from './vram-accounts.ts';
import { vramCapacity } from './vram-capacity.ts';

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
    return this.view();
  }

  /** What a job of this size needs on top of what the slot holds, so that its peak fits. */
  want(slot: Slot, megapixels: number): VramWant {
    const { slotId, server, model } = slot;
    const needMiB = isAttached(model) ? 0 : Math.max(0, this.peakMiB(model, megapixels) - this.#claimedMiB(slot));
    const isPlaced = isAttached(model) || server.gpus.length > 0;
    const { kind } = server.state;
    const mayMove =
      isPlaced && !isAttached(model) && server.inFlight === 0 && (kind === 'ready' || kind === 'offloaded');
    return {
      ...{ slotId, needMiB, gpuCount: model.gpuCount },
      ...(isPlaced && { onGpus: server.gpus }),
      ...(mayMove && { elsewhereMiB: this.peakMiB(model, megapixels) }),
    };
  }

  peakMiB(model: ConfiguredModel, megapixels: number): number {
    const mostMiB = this.#mostMiB(model, () => 0);
    return peakMiB(this.#options.learned.of(model.id), { ...model, megapixels, mostMiB });
  }

  /**
   * What jobs of this model can have here at the very most, however long they wait, and what they need by their size. Other
   * programs and models that may go count as gone; a pinned one stays. Undefined where that cannot be said.
   */
  capacity(model: ConfiguredModel): VramCapacity | undefined {
    if (isAttached(model)) return undefined; // its VRAM may be another machine's
    const pinned = this.#options.slots().filter((slot) => slot.model.pin && slot.model.id !== model.id);
    const mostMiB = this.#mostMiB(model, (uuid) =>
      pinned
        .filter(({ server }) => server.gpus.includes(uuid))
        .reduce((sum, { server }) => sum + server.heldMiB / server.gpus.length, 0),
    );
    if (mostMiB === undefined) return undefined;
    const guess = { ...model, mostMiB: this.#mostMiB(model, () => 0) };
    const learned = this.#options.learned.of(model.id);
    const needMiB = (megapixels: number): number => peakMiB(learned, { ...guess, megapixels });
    return vramCapacity({ mostMiB, largestMegapixels: model.profile.maxMegapixels, needMiB });
  }

  /** Not where the server is known to keep more than half of its memory, nor where host RAM and VRAM are one. */
  canOffload({ model, server }: Slot): boolean {
    const isUnified = ({ uuid, isUnified: isOne = false }: GpuReading): boolean => isOne && server.gpus.includes(uuid);
    if (this.#options.sampler.readings().some(isUnified)) return false;
    const learned = this.#options.learned.of(model.id);
    return model.offload === 'auto' && offloadedMiB(learned, model) < loadedMiB(learned, model) / 2;
  }

  /** Host RAM can take what an offload moves there. */
  hasRamFor(slot: Slot): boolean {
    return this.#toRamMiB(slot) <= this.hostRamFreeMiB();
  }

  plan(slot: Slot, megapixels: number): VramPlan {
    if (isAttached(slot.model)) return { kind: 'fits', gpus: [], evict: [] };
    return planVram(this.want(slot, megapixels), this.view());
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
    const unusable = readings.filter(({ health }) => health !== 'ok');
    if (readings.length === 0 || unusable.length === readings.length) {
      const reason = sampler.problem?.reason ?? 'nvidia-smi shows no GPU';
      return new AppError('GPU_LOST', `${alias} cannot run: ${reason}. Run nvidia-smi on the host.`);
    }
    const here = readings.filter(({ uuid }) => slot.server.gpus.includes(uuid));
    const unread = here.find(({ health }) => health !== 'ok' && health !== 'stale');
    if (unread !== undefined) {
      const message = `${alias} is on GPU ${unread.index}, which is ${unread.health}. Run nvidia-smi on the host.`;
      return new AppError('GPU_LOST', message);
    }
    const stuck = here.find(({ uuid }) => accounts.isDegraded(uuid));
    if (stuck !== undefined) {
      const message = `${alias} is on GPU ${stuck.index}, where memory of an ended server has not come back. It waits for that.`;
      return new AppError('GPU_BUSY', message);
    }
    const strangers = this.strangers();
    const others = strangers === undefined ? '' : ` ${strangers}`;
    const without = this.#outOfUse(readings);
    const isSplit = slot.model.gpuCount > 1 && readings.some(({ uuid }) => isMigInstance(uuid));
    const split = isSplit ? ' A server cannot span several MIG instances.' : '';
    const needMiB = Math.round(this.want(slot, megapixels).needMiB);
    return new AppError(
      'GPU_OUT_OF_MEMORY',
      `${alias} needs ${needMiB} MiB of VRAM on ${slot.model.gpuCount} GPU(s), ${Math.round(plan.shortMiB)} MiB more than this ` +
        `host can free (${Math.round(plan.largestMiB)} MiB).${split}${others}${without} Ask for a smaller image or use another host.`,
    );
  }

  /** Who else holds VRAM here, in sentences; undefined where nobody is known to. */
  strangers(): string | undefined {
    const { sampler, accounts } = this.#options;
    const known = sampler.readings().map(({ index, uuid }) => ({ index, ...accounts.of(uuid) }));
    const foreign = known.flatMap(({ index, foreign: holders }) =>
      holders
        .filter(({ usedMiB }) => usedMiB > 0)
        .map(({ pid, name, usedMiB }) => `${name} (pid ${pid}, ${Math.round(usedMiB)} MiB on GPU ${index})`),
    );
    const sentences = [
      ...(foreign.length === 0 ? [] : [`Other programs hold VRAM: ${foreign.join(', ')}.`]),
      ...known.flatMap(({ index, unlisted }) => (unlisted === undefined ? [] : [`On GPU ${index} ${unlisted}.`])),
    ];
    return sentences.length === 0 ? undefined : sentences.join(' ');
  }

  /** GPUs that give nothing to anybody now, and why. */
  #outOfUse(readings: readonly GpuReading[]): string {
    return readings
      .map(({ uuid, index, health, note }) => {
        const { degraded } = this.#options.accounts.of(uuid);
        if (degraded !== undefined) return ` GPU ${index}: ${degraded}`;
        return health === 'ok' ? '' : ` GPU ${index} is not used now: ${note ?? `its reading is ${health}`}.`;
      })
      .join('');
  }

  view(): VramView {
    const { sampler, accounts, reserveMiB, ramReserveMiB, slots } = this.#options;
    const placed = slots().filter(({ server }) => server.gpus.length > 0);
    const promisedOn = (uuid: string): number =>
      placed
        .filter(({ server }) => server.gpus.includes(uuid))
        .reduce((sum, slot) => sum + (this.#claimedMiB(slot) - slot.server.heldMiB) / slot.server.gpus.length, 0);
    const gpus = sampler.readings().map(({ uuid, totalMiB, freeMiB, health, isUnified = false }) => ({
      uuid,
      totalMiB: totalMiB ?? 0,
      freeMiB: (freeMiB ?? 0) - promisedOn(uuid),
      // Where the GPU's memory is the host's, what the host must keep is kept there.
      reserveMiB: isUnified ? Math.max(reserveMiB, ramReserveMiB) : reserveMiB,
      usable: health === 'ok' && freeMiB !== null,
      // One late reading must not stop work: `stale` is not out.
      isOut: (health !== 'ok' && health !== 'stale') || accounts.isDegraded(uuid),
      isMigInstance: isMigInstance(uuid),
    }));
    const residents = placed.map((slot) => this.#residentOf(slot, placed));
    return { gpus, residents, hostRamFreeMiB: this.hostRamFreeMiB() };
  }

  /**
   * What readings show as used on the GPUs of a server that moves or works, and that nobody is known to hold: it has taken it
   * since the last look at processes, and will give it back. Without it, all that it took would seem to be gone for ever.
   */
  #takenSinceMiB({ server }: Slot, placed: readonly Slot[]): number {
    const readings = this.#options.sampler.readings().filter(({ uuid }) => server.gpus.includes(uuid));
    const perGpu = readings.map(({ uuid, totalMiB, freeMiB }) => {
      if (totalMiB === null || freeMiB === null) return 0;
      const here = placed.filter((slot) => slot.server.gpus.includes(uuid));
      const oursMiB = here.reduce((sum, slot) => sum + slot.server.heldMiB / slot.server.gpus.length, 0);
      const othersMiB = this.#options.accounts.of(uuid).foreign.reduce((sum, { usedMiB }) => sum + usedMiB, 0);
      return Math.max(0, totalMiB - freeMiB - oursMiB - othersMiB);
    });
    // It gives back the same on each of them.
    return perGpu.length === 0 ? 0 : Math.max(...perGpu) * perGpu.length;
  }

  /** Of the GPUs that give most. Undefined where one of them does not show its size, and so may turn out to be larger. */
  #mostMiB({ gpuCount }: ConfiguredModel, keptMiB: (uuid: string) => number): number | undefined {
    const readings = this.#options.sampler.readings();
    const { reserveMiB, ramReserveMiB } = this.#options;
    if (readings.length === 0 || readings.some(({ totalMiB }) => totalMiB === null)) return undefined;
    const whole = gpuCount === 1 ? readings : readings.filter(({ uuid }) => !isMigInstance(uuid));
    const rooms = whole.map(({ uuid, totalMiB, usedMiB, freeMiB, health, isUnified = false }) => {
      // The driver keeps a part of a GPU for itself, which is neither used nor free.
      const isKnown = health === 'ok' && usedMiB !== null && freeMiB !== null;
      const sizeMiB = Math.min(totalMiB ?? 0, isKnown ? usedMiB + freeMiB : Infinity);
      return sizeMiB - (isUnified ? Math.max(reserveMiB, ramReserveMiB) : reserveMiB) - keptMiB(uuid);
    });
    const least = rooms.sort((a, b) => b - a)[gpuCount - 1];
    return least === undefined ? 0 : Math.max(0, least) * gpuCount;
  }

  /** Host RAM for offloaded weights. What is on its way there counts as taken. */
  hostRamFreeMiB(): number {
    const { ramReserveMiB, slots } = this.#options;
    const onTheWay = slots().filter(({ server }) => server.state.kind === 'offloading');
    const comingMiB = onTheWay.reduce((sum, slot) => sum + this.#toRamMiB(slot), 0);
    return Math.max(0, readHostMemory().availableMiB - ramReserveMiB - comingMiB);
  }

  #toRamMiB({ server, model }: Slot): number {
    const learned = this.#options.learned.of(model.id);
    return Math.max(0, server.heldMiB - offloadedMiB(learned, model));
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

  #residentOf(slot: Slot, placed: readonly Slot[]): Resident {
    const { slotId, server, model, bringing } = slot;
    const { learned } = this.#options;
    const { kind } = server.state;
    const isSettled = isIdle(slot) && (kind === 'ready' || kind === 'offloaded');
    const takenSinceMiB = isSettled ? 0 : this.#takenSinceMiB(slot, placed);
    return {
      slotId,
      gpus: server.gpus,
      heldMiB: this.#claimedMiB(slot) + takenSinceMiB,
      state: kind,
      inFlight: server.inFlight + (bringing === undefined ? 0 : 1),
      isPinned: model.pin,
      isOffered: this.#offered.has(model.id),
      idleMs: server.idleMs,
      reloadMs: learned.loadMs(model),
      wakeMs: learned.wakeMs(model),
      canOffload: this.canOffload(slot),
      offloadedMiB: Math.min(server.heldMiB, offloadedMiB(learned.of(model.id), model)),
    };
  }

  #aliasOf(slotId: string): string {
    const { slots } = this.#options;
    return slots().find((slot) => slot.slotId === slotId)?.model.alias ?? slotId;
  }
}

/** As nvidia-smi names them. */
export function isMigInstance(uuid: string): boolean {
  return uuid.startsWith('MIG-');
}
