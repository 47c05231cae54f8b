import type { GpuStatus, ModelStatus, SlotStatus } from '../../../shared/host-snapshot.ts';
import { AppError } from '../../../shared/errors.ts';
import type { JobRequest } from '../../../shared/job.ts';
import type { ModelProfile } from '../../../shared/model-profile.ts';
import { learnServiceTime, workUnits } from '../../../shared/service-time.ts';
import type { ServiceTime } from '../../../shared/service-time.ts';
import type { ConfiguredModel } from '../../../agent/configured-model.ts';
import { planVram } from '../../../agent/gpu/vram-planner.ts';
import type { VramView, VramWant } from '../../../agent/gpu/vram-planner.ts';
import type { Servers } from '../../../agent/job/servers.ts';
import type { Lease } from '../../../agent/model/lease.ts';
import type { SlotFacts } from '../../../agent/model/slot-facts.ts';
import type { Rng } from '../world/rng.ts';
import type { Process } from '../world/world.ts';
import { pictureOf } from '../world/picture.ts';
import { world } from '../world/world.ts';
import type { HostPlan, ModelPlan, Poison } from './plan.ts';

const GPU_MIB = 24_000;
const RELEASE_MS = 800;

/** What a GPU does to jobs at the moment; the nemesis turns it. */
export type GpuTemper = { failShare: number; failsByDeath: boolean };

export type ServersWatch = {
  onRunStart: (jobName: string) => void;
  onRunEnd: (jobName: string) => void;
  onServerDeath: () => void;
};

type SimSlot = {
  slotId: string;
  plan: ModelPlan;
  model: ConfiguredModel;
  state: 'released' | 'loading' | 'ready' | 'releasing' | 'failed';
  gpu: string | undefined;
  inFlight: number;
  learned: ServiceTime;
  idleSinceMs: number;
  retryAtMs: number;
  failures: number;
  loading: Promise<void> | undefined;
  jobsDone: number;
  loads: number;
};

/** In the place of the residency: GPUs of random speed on which models load, run and fail. Memory is never over-committed. */
export class SimulatedServers implements Servers {
  readonly #host: HostPlan;
  readonly #slots: SimSlot[];
  readonly #gpus: string[];
  readonly #rng: Rng;
  readonly #process: Process;
  readonly #temper: GpuTemper;
  readonly #watch: ServersWatch;
  readonly #poisonOf: (jobName: string) => Poison;
  onChange: () => void = () => undefined;
  #changed: (() => void)[] = [];

  constructor(o: {
    host: HostPlan;
    process: Process;
    temper: GpuTemper;
    watch: ServersWatch;
    poisonOf: (jobName: string) => Poison;
  }) {
    this.#host = o.host;
    this.#process = o.process;
    this.#temper = o.temper;
    this.#watch = o.watch;
    this.#poisonOf = o.poisonOf;
    this.#rng = world().rng;
    this.#gpus = Array.from({ length: o.host.gpus }, (_, at) => `GPU-${o.host.name}-${at}`);
    this.#slots = o.host.models.map((plan) => newSlot(plan, o.host.slowness));
  }

  get slots(): readonly { slotId: string; model: ConfiguredModel }[] {
    return this.#slots;
  }

  vramView(offered: ReadonlySet<string>): VramView {
    return {
      gpus: this.#gpus.map((uuid) => ({
        uuid,
        totalMiB: GPU_MIB,
        freeMiB: GPU_MIB - this.#heldOn(uuid),
        reserveMiB: 0,
        usable: true,
        isOut: false,
      })),
      residents: this.#slots.flatMap((slot) =>
        slot.gpu === undefined
          ? []
          : [
              {
                ...{ slotId: slot.slotId, gpus: [slot.gpu], heldMiB: slot.plan.needMiB, state: slot.state },
                ...{ inFlight: slot.inFlight, isPinned: false, isOffered: offered.has(slot.model.id) },
                ...{ idleMs: this.#nowMs - slot.idleSinceMs, reloadMs: slot.plan.loadMs, wakeMs: slot.plan.loadMs },
                ...{ canOffload: false, offloadedMiB: 0 },
              },
            ],
      ),
      hostRamFreeMiB: 0,
    };
  }

  slotFacts(slotId: string): SlotFacts {
    const slot = this.#slot(slotId);
    const retryInMs = Math.max(0, slot.retryAtMs - this.#nowMs);
    const reloadMs = slot.state === 'ready' ? 0 : slot.plan.loadMs + (slot.state === 'failed' ? retryInMs : 0);
    return {
      state: slot.state,
      isReady: slot.state === 'ready',
      gpus: slot.gpu === undefined ? [] : [slot.gpu],
      heldMiB: slot.gpu === undefined ? 0 : slot.plan.needMiB,
      ...(slot.state === 'failed' && { error: new AppError('MODEL_FAILED', 'its server died'), retryInMs }),
      loadedMiB: slot.plan.needMiB,
      peakMiB: slot.plan.needMiB,
      reloadMs,
      loadMs: slot.plan.loadMs,
      wakeMs: slot.plan.loadMs,
      idleMs: this.#nowMs - slot.idleSinceMs,
      heldAwayMs: 0,
      service: slot.learned,
    };
  }

  wantFor(slotId: string): VramWant {
    const { gpu, plan } = this.#slot(slotId);
    return gpu === undefined
      ? { slotId, needMiB: plan.needMiB, gpuCount: 1 }
      : { slotId, needMiB: 0, gpuCount: 1, onGpus: [gpu] };
  }

  whyNoRoom(): string | undefined {
    return undefined;
  }

  async admit(slotId: string, o: { signal: AbortSignal; onDetail: (text: string) => void }): Promise<Lease> {
    const slot = this.#slot(slotId);
    for (;;) {
      o.signal.throwIfAborted();
      if (slot.state === 'ready') break;
      if (slot.state === 'failed' && slot.retryAtMs > this.#nowMs) throw died();
      o.onDetail('loading');
      slot.loading ??= this.#load(slot).finally(() => (slot.loading = undefined));
      await slot.loading;
    }
    slot.inFlight += 1;
    let isOpen = true;
    return {
      gpuNames: [slot.gpu ?? ''],
      run: (request, _inputs, run) => this.#run(slot, request, run),
      [Symbol.dispose]: () => {
        if (!isOpen) return;
        isOpen = false;
        slot.inFlight -= 1;
        slot.idleSinceMs = this.#nowMs;
        this.#announce();
      },
    };
  }

  learn(slotId: string, seen: { request: JobRequest; runMs: number }): void {
    const slot = this.#slot(slotId);
    slot.learned = learnServiceTime(slot.learned, seen);
  }

  move(): Promise<never> {
    return Promise.reject(new AppError('GPU_BUSY', 'nobody moves models by hand in this world'));
  }

  fetchWeights(): void {
    // They are all there.
  }

  async pullWeights(): Promise<void> {
    // As above.
  }

  gpuStatus(): GpuStatus[] {
    return this.#gpus.map((uuid, index) => ({
      ...{ uuid, index, name: 'Simulated GPU', totalMiB: GPU_MIB, usedMiB: this.#heldOn(uuid) },
      ...{ freeMiB: GPU_MIB - this.#heldOn(uuid), utilisationPercent: null, temperatureC: null, powerW: null },
      ...{ health: 'ok' as const, ageMs: 0, isDegraded: false, oursMiB: this.#heldOn(uuid), foreign: [] },
    }));
  }

  modelStatus(slots: ReadonlyMap<string, SlotStatus>): ModelStatus[] {
    return this.#slots.map((slot) => {
      const status = slots.get(slot.slotId);
      const { needMiB, loadMs } = slot.plan;
      return {
        ...{ model: slot.model.id, alias: slot.model.alias, engine: slot.model.engine, isAttached: false },
        ...{ profile: slot.model.profile, profileFrom: 'configured' as const, state: slot.state },
        ...{ gpus: slot.gpu === undefined ? [] : [slot.gpu], heldMiB: slot.gpu === undefined ? 0 : needMiB },
        ...{ isPinned: false, loadedMiB: needMiB, peakMiB: needMiB, isMeasured: true, loadMs, wakeMs: loadMs },
        ...{ service: slot.learned, idleMs: 0, heldAwayMs: 0, jobsDone: slot.jobsDone, loads: slot.loads },
        ...{ offloads: 0, releases: 0, slots: status === undefined ? [] : [status] },
      };
    });
  }

  /** No GPU works or moves. */
  get isIdle(): boolean {
    return this.#slots.every((slot) => slot.inFlight === 0 && slot.loading === undefined);
  }

  get #nowMs(): number {
    return this.#process.machine.monoMs(world().nowMs);
  }

  #heldOn(uuid: string): number {
    return this.#slots.reduce((sum, slot) => sum + (slot.gpu === uuid ? slot.plan.needMiB : 0), 0);
  }

  async #load(slot: SimSlot): Promise<void> {
    for (;;) {
      const plan = planVram(this.wantFor(slot.slotId), this.vramView(new Set()));
      if (plan.kind === 'impossible') throw new AppError('GPU_OUT_OF_MEMORY', 'it never fits');
      if (plan.kind === 'wait') await this.#nextChange();
      else if (plan.evict.length > 0) await this.#release(plan.evict.map(({ slotId }) => this.#slot(slotId)));
      else {
        slot.state = 'loading';
        slot.gpu = plan.gpus[0];
        this.#announce();
        await this.#sleep(slot.plan.loadMs * this.#rng.between(0.8, 1.3));
        if (this.#rng.chance(this.#temper.failShare / 3)) {
          this.#die(slot);
          throw died();
        }
        slot.state = 'ready';
        slot.loads += 1;
        slot.idleSinceMs = this.#nowMs;
        this.#announce();
        return;
      }
    }
  }

  async #release(victims: readonly SimSlot[]): Promise<void> {
    for (const victim of victims) {
      victim.state = 'releasing';
      this.#announce();
      await this.#sleep(RELEASE_MS);
      victim.state = 'released';
      victim.gpu = undefined;
    }
    this.#announce();
  }

  async #run(slot: SimSlot, request: JobRequest, o: Parameters<Lease['run']>[2]): ReturnType<Lease['run']> {
    const jobName = request.prompt;
    const runMs =
      (slot.plan.fixedMs + slot.plan.unitMs * workUnits(request)) * this.#host.slowness * this.#rng.between(0.9, 1.2);
    const poison = this.#poisonOf(jobName);
    const isFailing = this.#rng.chance(this.#temper.failShare);
    this.#watch.onRunStart(jobName);
    try {
      return await new Promise((resolve, reject) => {
        const onAbort = (): void => reject(o.signal.reason as Error);
        o.signal.addEventListener('abort', onAbort, { once: true });
        void this.#sleep(runMs * 0.5)
          .then(async () => {
            o.onStep(1, 2);
            if (poison === 'kills' || (isFailing && this.#temper.failsByDeath)) {
              await this.#sleep(300);
              this.#die(slot);
              throw died();
            }
            if (poison === 'fails' || isFailing) throw new AppError('ENGINE_FAILED', 'the engine said 500');
            await this.#sleep(runMs * 0.5);
            slot.jobsDone += 1;
            const noise = Buffer.alloc(100 + Math.floor(1500 * this.#rng.next() ** 3), this.#rng.int(1, 255));
            const picture = pictureOf({ width: request.width ?? 64, height: request.height ?? 64, noise });
            o.sink.begin(runMs);
            // It comes in pieces, and the head is not always in the first.
            const cut = this.#rng.int(1, picture.length - 1);
            await o.sink.write(picture.subarray(0, cut));
            await this.#sleep(1);
            await o.sink.write(picture.subarray(cut));
            resolve({ runMs, notes: [] });
          })
          .catch(reject)
          .finally(() => o.signal.removeEventListener('abort', onAbort));
      });
    } finally {
      this.#watch.onRunEnd(jobName);
    }
  }

  #die(slot: SimSlot): void {
    slot.state = 'failed';
    slot.gpu = undefined;
    slot.failures += 1;
    slot.retryAtMs = this.#nowMs + 2_000 * 2 ** Math.min(3, slot.failures - 1);
    this.#watch.onServerDeath();
    world().timer(slot.retryAtMs - this.#nowMs + 1, this.#process, () => this.#announce());
    this.#announce();
  }

  #sleep(ms: number): Promise<void> {
    return new Promise((resolve) => world().timer(ms, this.#process, resolve));
  }

  #nextChange(): Promise<void> {
    return new Promise((resolve) => this.#changed.push(resolve));
  }

  #announce(): void {
    for (const wake of this.#changed.splice(0)) wake();
    this.onChange();
  }

  #slot(slotId: string): SimSlot {
    const slot = this.#slots.find((each) => each.slotId === slotId);
    if (slot === undefined) throw new Error(`no slot ${slotId}`);
    return slot;
  }
}

function died(): AppError {
  return new AppError('MODEL_FAILED', 'the server died');
}

function newSlot(plan: ModelPlan, slowness: number): SimSlot {
  const mine = { ...plan, loadMs: plan.loadMs * slowness };
  return {
    ...{ slotId: plan.id, plan: mine, model: configured(plan), state: 'released', gpu: undefined, inFlight: 0 },
    ...{ learned: { fixedMs: 500, unitMs: 80, samples: 0 }, idleSinceMs: 0, retryAtMs: 0, failures: 0 },
    ...{ loading: undefined, jobsDone: 0, loads: 0 },
  };
}

function configured({ id, needMiB }: ModelPlan): ConfiguredModel {
  const profile: ModelProfile = {
    ...{ model: id, type: 'standard', capabilities: ['generate'], steps: 28, maxSteps: 200, guidanceOff: 1 },
    ...{ guidance: { field: 'guidance_scale', value: 4 }, supportsNegativePrompt: false, width: 1024, height: 1024 },
    ...{ multiple: 16, maxMegapixels: 16, aspectRatios: {}, maxInputs: 0, hasSizeLevel: false, stepMs: 80 },
    ...{ weightsMiB: needMiB, peakMiB: needMiB, sources: {} },
  };
  return {
    ...{ alias: id, id, engine: 'vllm-omni', profile, profileFrom: 'configured', capabilities: ['generate'] },
    ...{ launch: { kind: 'owned', command: [], args: [], env: {}, download: 'none' }, gpuCount: 1, replicas: 1 },
    ...{ vramMiB: needMiB, offload: 'none', offloadAfterMs: null, releaseAfterMs: null, warmsUp: false },
    ...{ preload: false, pin: false },
  };
}
