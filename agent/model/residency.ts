import { Deadline } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import type { GpuStatus, ModelStateKind, ModelStatus } from '../../shared/host-snapshot.ts';
import type { JobRequest, ModelId } from '../../shared/job.ts';
import { megapixelsOf } from '../../shared/job.ts';
import type { Log } from '../../shared/log.ts';
import type { ModelMove } from '../../shared/protocol.ts';
import type { ServiceTime } from '../../shared/service-time.ts';
import type { GpuSampler } from '../gpu/gpu-sampler.ts';
import type { VramView, VramWant } from '../gpu/vram-planner.ts';
import { Admission } from './admission.ts';
import { Changes } from './changes.ts';
import type { ConfiguredModel } from './configured-model.ts';
import { step1xEdit } from './engines/step1x-edit.ts';
import { vllmOmni } from './engines/vllm-omni.ts';
import { loadedMiB } from './footprint.ts';
import { GpuLocks } from './gpu-locks.ts';
import { Learned } from './learned.ts';
import type { Lease } from './lease.ts';
import { leaseOf } from './lease.ts';
import { endLeftOver } from './left-over.ts';
import type { Destination } from './model-moves.ts';
import { ModelMoves } from './model-moves.ts';
import { ModelServer } from './model-server.ts';
import { statusOf } from './model-status.ts';
import { Room } from './room.ts';
import type { ModelTimes } from './server-life.ts';
import { ServerRecords } from './server-records.ts';
import type { Slot } from './slot.ts';
import { isAttached, isUp, isWokenByJob, newSlot, reloadMs } from './slot.ts';
import { Upkeep } from './upkeep.ts';
import { VramAccounts } from './vram-accounts.ts';
import { Weights } from './weights.ts';
import { WorkInHand } from './work-in-hand.ts';

export type { Lease } from './lease.ts';

export type ResidencyTimes = ModelTimes & { moveAnswerMs: number; heldAwayMs: number; jobFloorMs: number };

export type ResidencyOptions = {
  models: ConfiguredModel[];
  sampler: GpuSampler;
  /** Holds learned.json and servers.json. */
  stateDir: string;
  logDir: string;
  reserveMiB: number;
  /** Host RAM that offloaded models leave free. */
  ramReserveMiB: number;
  /** Idle models give their VRAM up when a program that is not ours needs it. */
  yieldsToForeign: boolean;
  logs: { maxMiB: number; keep: number };
  times: ResidencyTimes;
  log: Log;
  onChange: () => void;
};

export type SlotFacts = {
  state: ModelStateKind;
  /** A job could start without a load or a wake. */
  isReady: boolean;
  gpus: readonly string[];
  heldMiB: number;
  error?: AppError;
  retryInMs?: number;
  loadedMiB: number;
  peakMiB: number;
  /** Expected time until ready from the present state; 0 when it is. */
  reloadMs: number;
  loadMs: number;
  wakeMs: number;
  idleMs: number;
  heldAwayMs: number;
  service: ServiceTime;
};

const FIRST_SAMPLE_MS = 15_000;
/** What is published of a peak is that of one megapixel. */
const ONE_MEGAPIXEL = 1;

/**
 * Which servers hold which GPUs. The only one that starts, moves and ends servers; one transition per GPU at a time.
 * Every job is admitted: what it may need at its peak must be free, or is made free by evicting idle servers.
 */
export class Residency implements AsyncDisposable {
  readonly #options: ResidencyOptions;
  readonly #lifetime = new AbortController();
  readonly #work = new WorkInHand();
  readonly #locks = new GpuLocks();
  readonly #changes: Changes;
  readonly #learned: Learned;
  readonly #records: ServerRecords;
  readonly #weights: Weights;
  readonly #accounts: VramAccounts;
  readonly #room: Room;
  readonly #admission: Admission;
  readonly #moves: ModelMoves;
  readonly #upkeep: Upkeep;
  #slots: readonly Slot[];
  #upkeepRuns: Promise<void> = Promise.resolve();
  #stopWatching: () => void = () => undefined;
  #ended: Promise<void> | undefined;

  constructor(options: ResidencyOptions) {
    this.#options = options;
    const { models, stateDir, log, sampler, times, reserveMiB, ramReserveMiB } = options;
    this.#changes = new Changes(options.onChange);
    this.#learned = new Learned({ stateDir, log });
    this.#records = new ServerRecords({ stateDir, log });
    this.#weights = new Weights({ stateDir, logDir: options.logDir, log, onChange: () => this.#changes.announce() });
    this.#accounts = new VramAccounts({ sampler, log, servers: () => this.#servers() });
    const ours = {
      ...{ sampler, log, learned: this.#learned, accounts: this.#accounts, locks: this.#locks },
      ...{ changes: this.#changes, work: this.#work, signal: this.#lifetime.signal },
      slots: () => this.#slots,
    };
    this.#room = new Room({ ...ours, reserveMiB, ramReserveMiB });
    this.#admission = new Admission({ ...ours, room: this.#room, weights: this.#weights });
    const readyInMs = ({ slotId }: Slot): number => this.slotFacts(slotId).reloadMs;
    this.#moves = new ModelMoves({ ...ours, admission: this.#admission, readyInMs, times });
    const pulseMs = times.healthPollMs;
    this.#upkeep = new Upkeep({ ...ours, admission: this.#admission, room: this.#room, pulseMs });
    this.#slots = models.flatMap((model) =>
      this.#newSlots(model, { to: model.replicas === 'auto' ? 1 : model.replicas }),
    );
  }

  /** Ends when the residency does; a defect in its upkeep rejects it. */
  get done(): Promise<void> {
    return this.#upkeepRuns;
  }

  get slots(): readonly { slotId: string; model: ConfiguredModel }[] {
    return this.#slots;
  }

  /** Ends what a crashed agent left running, before anything is loaded. Preloads come later, once the GPUs are known. */
  async start(signal: AbortSignal): Promise<void> {
    const { sampler, log, times } = this.#options;
    await this.#learned.read();
    await endLeftOver(await this.#records.leftOver(), { sampler, times, signal, log });
    await this.#records.clear();
    this.#stopWatching = sampler.onReadings(() => this.#addReplicas());
    this.#addReplicas();
    this.#upkeepRuns = this.#keepUp(this.#lifetime.signal);
  }

  /** Free now, less what is promised to servers that load or work. */
  vramView(offered: ReadonlySet<ModelId>): VramView {
    return this.#room.viewFor(offered);
  }

  slotFacts(slotId: string): SlotFacts {
    const slot = this.#slot(slotId);
    const { server, model } = slot;
    const { state } = server;
    const loadMs = this.#learned.loadMs(model);
    const wakeMs = isWokenByJob(slot) ? 0 : this.#learned.wakeMs(model);
    const retry = state.kind === 'failed' ? state.retry : 'never';
    const retryInMs = retry === 'never' ? undefined : Math.max(0, retry.atMs - performance.now());
    return {
      state: state.kind,
      isReady: isUp(slot),
      gpus: server.gpus,
      heldMiB: server.heldMiB,
      ...(state.kind === 'failed' && { error: state.error }),
      ...(retryInMs !== undefined && { retryInMs }),
      loadedMiB: loadedMiB(this.#learned.of(model.id), model),
      peakMiB: this.#room.peakMiB(model, ONE_MEGAPIXEL),
      reloadMs: reloadMs(slot, { loadMs, wakeMs, retryInMs: retryInMs ?? 0 }),
      loadMs,
      wakeMs,
      idleMs: server.idleMs,
      heldAwayMs: this.heldAwayMs(model.id),
      service: this.#learned.service(model),
    };
  }

  /** What a job needs on top of what the slot holds, so that its peak fits. */
  wantFor(slotId: string, job: JobRequest | { megapixels: number }): VramWant {
    return this.#room.want(this.#slot(slotId), 'megapixels' in job ? job.megapixels : megapixelsOf(job));
  }

  /**
   * Makes the server ready for a job of this size and keeps it so until the lease is disposed. Joins a load under way.
   * Throws MODEL_FAILED, GPU_OUT_OF_MEMORY, GPU_BUSY or GPU_LOST.
   */
  async admit(
    slotId: string,
    o: { megapixels: number; signal: AbortSignal; onDetail: (text: string) => void },
  ): Promise<Lease> {
    const slot = this.#slot(slotId);
    const use = await this.#admission.use(slot, o);
    const { sampler } = this.#options;
    return leaseOf(slot, {
      ...{ use, sampler, learned: this.#learned, locks: this.#locks, admission: this.#admission },
      slots: () => this.#slots,
      look: () => void this.#work.hold(this.#accounts.look(this.#lifetime.signal)), // never rejects
    });
  }

  /** A person's load, offload or release. Answers after `moveAnswerMs` at the latest; the same call again joins. */
  move(model: ModelId, to: Destination, signal: AbortSignal): Promise<ModelMove> {
    return this.#moves.move(model, to, signal);
  }

  modelStatus(): Omit<ModelStatus, 'slots'>[] {
    return this.#options.models.flatMap((model) => {
      const facts = { learned: this.#learned, room: this.#room, heldAwayMs: this.heldAwayMs(model.id) };
      return statusOf(this.#slotsOf(model), facts) ?? [];
    });
  }

  gpuStatus(): GpuStatus[] {
    return this.#options.sampler.readings().map((reading) => ({
      ...reading,
      isDegraded: this.#accounts.isDegraded(reading.uuid),
      ...this.#accounts.of(reading.uuid),
    }));
  }

  learn(slotId: string, seen: { request: JobRequest; runMs: number; peakMiB?: number }): void {
    const { model } = this.#slot(slotId);
    this.#learned.job(model, seen);
    if (seen.peakMiB === undefined) return;
    this.#learned.peak(model.id, { megapixels: megapixelsOf(seen.request), peakMiB: seen.peakMiB });
  }

  /** How long batch work still leaves this model away, in ms; 0 when it may come back. */
  heldAwayMs(model: ModelId): number {
    return this.#moves.heldAwayMs(model);
  }

  /** Stops all servers at the same time, without looking at their VRAM. */
  shutdown({ graceMs = 2 * this.#options.times.stopGraceMs }: { graceMs?: number } = {}): Promise<void> {
    this.#ended ??= this.#end(graceMs);
    return this.#ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.shutdown();
  }

  async #keepUp(signal: AbortSignal): Promise<void> {
    const { sampler, log } = this.#options;
    try {
      using limit = new Deadline({ ms: FIRST_SAMPLE_MS, signal });
      await sampler.firstSample(limit.signal);
    } catch {
      if (!signal.aborted) log.warn({ event: 'gpu-no-first-sample' }); // it comes later, or the GPU's health says why not
    }
    await this.#accounts.look(signal);
    await this.#upkeep.run(signal);
  }

  async #end(graceMs: number): Promise<void> {
    this.#stopWatching();
    this.#lifetime.abort(new AppError('INTERRUPTED', 'The agent stops.'));
    await Promise.all(this.#servers().map((server) => server.shutdown({ graceMs })));
    await this.#weights[Symbol.asyncDispose]();
    await this.#work.ended();
    await this.#upkeepRuns.catch(() => undefined); // whoever watches `done` has seen it
    await this.#learned.written();
  }

  #newSlots(model: ConfiguredModel, { from = 0, to }: { from?: number; to: number }): Slot[] {
    const { sampler, logDir, times, log } = this.#options;
    return Array.from({ length: Math.max(0, to - from) }, (_, at) => {
      const slotId = from + at === 0 ? model.alias : `${model.alias}#${from + at + 1}`;
      const server = new ModelServer({
        ...{ slotId, model, sampler, logDir, times, log, learned: this.#learned, records: this.#records },
        engine: model.engine === 'vllm-omni' ? vllmOmni() : step1xEdit(),
        look: (signal) => this.#accounts.look(signal),
        onChange: () => this.#changes.announce(),
        onVramMissing: (claim) => this.#accounts.owe(claim),
      });
      return newSlot(slotId, { model, server });
    });
  }

  /** How many GPUs there are is known only when they are read; one that was lost may come back. */
  #addReplicas(): void {
    const before = this.#slots.length;
    this.#slots = this.#options.models.flatMap((model) => {
      const slots = this.#slotsOf(model);
      if (model.replicas !== 'auto') return slots;
      return [...slots, ...this.#newSlots(model, { from: slots.length, to: this.#autoReplicas(model) })];
    });
    if (this.#slots.length > before) this.#changes.announce();
  }

  /** One for each GPU it fits alone. */
  #autoReplicas(model: ConfiguredModel): number {
    if (isAttached(model) || model.gpuCount > 1) return 1;
    const needMiB = this.#room.peakMiB(model, ONE_MEGAPIXEL) + this.#options.reserveMiB;
    const fitting = this.#options.sampler.readings().filter(({ totalMiB }) => (totalMiB ?? 0) >= needMiB);
    return Math.max(1, fitting.length);
  }

  #slotsOf(model: ConfiguredModel): Slot[] {
    return this.#slots.filter((slot) => slot.model === model);
  }

  #slot(slotId: string): Slot {
    const slot = this.#slots.find((candidate) => candidate.slotId === slotId);
    if (slot === undefined) throw new Error(`no slot ${slotId}`);
    return slot;
  }

  #servers(): ModelServer[] {
    return this.#slots.map(({ server }) => server);
  }
}
