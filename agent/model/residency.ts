import { Deadline } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import type { GpuStatus, ModelStatus } from '../../shared/host-snapshot.ts';
import type { JobRequest, ModelId } from '../../shared/job.ts';
import { megapixelsOf } from '../../shared/job.ts';
import type { Log } from '../../shared/log.ts';
import type { ModelMove } from '../../shared/protocol.ts';
import type { GpuSampler } from '../gpu/gpu-sampler.ts';
import type { VramView, VramWant } from '../gpu/vram-planner.ts';
import { Admission } from './admission.ts';
import { Changes } from './changes.ts';
import { CgroupRoot } from '../server/cgroup.ts';
import type { ConfiguredModel } from '../configured-model.ts';
import { HOST } from '../engine/engine.ts';
import { step1xEdit } from '../engine/step1x-edit.ts';
import { vllmOmni } from '../engine/vllm-omni.ts';
import { PortTable } from '../server/free-port.ts';
import { Evictor } from './evictor.ts';
import { ForeignPressure } from './foreign-pressure.ts';
import { GpuLocks } from './gpu-locks.ts';
import { Learned } from './learned.ts';
import type { Lease } from './lease.ts';
import { leaseOf } from './lease.ts';
import { endLeftOver } from '../server/left-over.ts';
import type { Destination } from './model-moves.ts';
import { ModelMoves } from './model-moves.ts';
import { ModelServer } from './model-server.ts';
import { statusOf } from './model-status.ts';
import { ProcessTable } from '../server/process-table.ts';
import { Room, isMigInstance } from './room.ts';
import { Roster } from './roster.ts';
import type { ModelTimes } from './server-life.ts';
import { ServerRecords } from '../server/server-records.ts';
import type { Slot } from './slot.ts';
import { isAttached, isIdle, newSlot } from './slot.ts';
import type { SlotFacts } from './slot-facts.ts';
import { missingWeightsOf, slotFacts } from './slot-facts.ts';
import { Upkeep } from './upkeep.ts';
import { VramAccounts } from './vram-accounts.ts';
import { Weights } from '../weights/weights.ts';
import { WorkInHand } from './work-in-hand.ts';

export type { Lease } from './lease.ts';
export type { SlotFacts } from './slot-facts.ts';

export type ResidencyTimes = ModelTimes & {
  moveAnswerMs: number;
  heldAwayMs: number;
  jobFloorMs: number;
  jobLimitMs: number;
};

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
  /** A person has taken the host out of service: nothing is loaded by itself. */
  isDraining?: () => boolean;
  /** Somebody has this slot beside what the residency knows of: it must not vanish under them. */
  isTaken?: (slotId: string) => boolean;
  logs: { maxMiB: number; keep: number };
  times: ResidencyTimes;
  log: Log;
  onChange: () => void;
};

/** What agent.yaml may change about the host's memory while the agent runs. */
export type MemorySettings = Pick<ResidencyOptions, 'reserveMiB' | 'ramReserveMiB' | 'yieldsToForeign'>;

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
  readonly #table = new ProcessTable();
  readonly #ports = new PortTable(HOST);
  #cgroups: CgroupRoot | undefined;
  readonly #weights: Weights;
  readonly #accounts: VramAccounts;
  readonly #room: Room;
  readonly #evictor: Evictor;
  readonly #admission: Admission;
  readonly #moves: ModelMoves;
  readonly #pressure: ForeignPressure;
  readonly #upkeep: Upkeep;
  readonly #roster: Roster;
  readonly #settings: MemorySettings;
  #upkeepRuns: Promise<void> = Promise.resolve();
  #stopWatching: () => void = () => undefined;
  #ended: Promise<void> | undefined;

  constructor(options: ResidencyOptions) {
    this.#options = options;
    const { models, stateDir, log, sampler, times, reserveMiB, ramReserveMiB, yieldsToForeign } = options;
    const settings: MemorySettings = { reserveMiB, ramReserveMiB, yieldsToForeign };
    this.#settings = settings;
    this.#changes = new Changes(() => {
      this.#roster.look();
      options.onChange();
    });
    this.#learned = new Learned({ stateDir, log });
    this.#records = new ServerRecords({ stateDir, log });
    this.#weights = new Weights({
      ...{ stateDir, logDir: options.logDir, stallMs: times.stallMs, retryFirstMs: times.retryFirstMs, log },
      onChange: () => this.#changes.announce(),
      onProgress: () => options.onChange(), // whoever waits for room need not plan again
    });
    this.#accounts = new VramAccounts({ sampler, log, servers: () => this.#servers() });
    const ours = {
      ...{ sampler, log, learned: this.#learned, accounts: this.#accounts, locks: this.#locks },
      ...{ changes: this.#changes, work: this.#work, signal: this.#lifetime.signal },
      slots: () => this.#roster.slots,
    };
    this.#room = new Room({
      ...ours,
      // A reload may change them.
      get reserveMiB() {
        return settings.reserveMiB;
      },
      get ramReserveMiB() {
        return settings.ramReserveMiB;
      },
    });
    this.#evictor = new Evictor({ ...ours, room: this.#room });
    const roomy = { ...ours, room: this.#room, evictor: this.#evictor };
    this.#admission = new Admission({ ...roomy, weights: this.#weights });
    const readyInMs = ({ slotId }: Slot): number => this.slotFacts(slotId).reloadMs;
    const staying = (): Slot[] => this.#roster.slots.filter(({ leaving }) => leaving === undefined);
    const parts = { ...roomy, admission: this.#admission };
    this.#moves = new ModelMoves({ ...parts, slots: staying, readyInMs, times });
    this.#pressure = new ForeignPressure({
      ...parts,
      isOn: () => settings.yieldsToForeign,
      holdAway: (model, ms) => this.#moves.holdAway(model, ms),
    });
    const pulseMs = times.healthPollMs;
    const isDraining = options.isDraining ?? (() => false);
    const heldAwayMs = (model: ModelId): number => this.heldAwayMs(model);
    const upkeepParts = { weights: this.#weights, pressure: this.#pressure, heldAwayMs };
    this.#upkeep = new Upkeep({ ...parts, ...upkeepParts, isDraining, pulseMs });
    this.#roster = new Roster({
      ...ours,
      newSlot: (slotId, model) => this.#newSlot(slotId, model),
      autoReplicas: (model) => this.#autoReplicas(model),
      isTaken: options.isTaken ?? (() => false),
      cut: async (slot) => {
        this.#admission.abandonFetch(slot);
        await slot.server.cutLoad();
      },
      release: (slot) => this.#release(slot),
      onChange: () => this.#changes.announce(),
    });
    this.#roster.change(models);
  }

  /** Ends when the residency does; a defect in its upkeep rejects it. */
  get done(): Promise<void> {
    return this.#upkeepRuns;
  }

  get slots(): readonly { slotId: string; model: ConfiguredModel }[] {
    return this.#roster.slots;
  }

  /**
   * Other models or other settings, from a reload of agent.yaml. Returns at once: servers whose definition is the same are
   * not touched, all others end what they have first. What was learned stays, because it is kept by the model's id.
   */
  reconfigure(models: readonly ConfiguredModel[], settings: MemorySettings): void {
    Object.assign(this.#settings, settings);
    this.#roster.change(models);
    this.#changes.announce();
  }

  /** Somebody let go of a slot. */
  look(): void {
    this.#roster.look();
  }

  /** Ends what a crashed agent left running, before anything is loaded. Preloads come later, once the GPUs are known. */
  async start(signal: AbortSignal): Promise<void> {
    const { sampler, log, logDir, stateDir, times } = this.#options;
    await this.#learned.read();
    this.#cgroups = await CgroupRoot.open({ stateDir, log });
    const records = await this.#records.leftOver();
    const where = { cgroups: this.#cgroups, table: this.#table, logDir };
    await endLeftOver({ records, ...where, sampler, times, signal, log });
    await this.#records.clear();
    this.#stopWatching = sampler.onReadings(() => this.#countReplicas());
    this.#countReplicas();
    this.#upkeepRuns = this.#keepUp(this.#lifetime.signal);
  }

  /** Free now, less what is promised to servers that load or work. */
  vramView(offered: ReadonlySet<ModelId>): VramView {
    return this.#room.viewFor(offered);
  }

  slotFacts(slotId: string): SlotFacts {
    const slot = this.#slot(slotId);
    const parts = { learned: this.#learned, room: this.#room, weights: this.#weights };
    return slotFacts(slot, { ...parts, heldAwayMs: this.heldAwayMs(slot.model.id) });
  }

  /** What a job needs on top of what the slot holds, so that its peak fits. */
  wantFor(slotId: string, job: JobRequest | { megapixels: number }): VramWant {
    return this.#room.want(this.#slot(slotId), 'megapixels' in job ? job.megapixels : megapixelsOf(job));
  }

  /** Why a job of this size cannot have its room now, not even once the busy models have gone; undefined when it can. */
  whyNoRoom(slotId: string, megapixels: number): string | undefined {
    const slot = this.#slot(slotId);
    const plan = this.#room.plan(slot, megapixels);
    return plan.kind === 'impossible' ? this.#room.refusal(slot, megapixels, plan).message : undefined;
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
      ...{ use, sampler, learned: this.#learned, locks: this.#locks, evictor: this.#evictor },
      slots: () => this.#roster.slots,
      look: () => this.#work.hold(this.#accounts.look(this.#lifetime.signal)),
      jobFloorMs: this.#options.times.jobFloorMs,
      jobLimitMs: this.#options.times.jobLimitMs,
    });
  }

  /** Somebody wants this model: its weights are downloaded, unless that failed a moment ago or needs a person first. */
  fetchWeights(model: ModelId): void {
    const slot = this.#roster.slots.find((each) => each.model.id === model);
    if (slot === undefined || missingWeightsOf(slot, this.#weights) === undefined || !this.#weights.isDue(slot.model))
      return;
    // Its failure is in the state of the weights, and logged there.
    void this.#work.hold(this.#weights.pull(slot.model, this.#lifetime.signal)).catch(() => undefined);
  }

  /** The same, asked for by a person: what failed before is tried again, and its failure is an answer. */
  async pullWeights(model: ModelId, signal: AbortSignal): Promise<void> {
    const slot = this.#roster.slots.find((each) => each.model.id === model);
    if (slot === undefined || missingWeightsOf(slot, this.#weights) === undefined) return;
    await this.#weights.pull(slot.model, signal, { isAsked: true });
  }

  /** A person's load, offload or release. Answers after `moveAnswerMs` at the latest; the same call again joins. */
  move(model: ModelId, to: Destination, signal: AbortSignal): Promise<ModelMove> {
    const named = this.#roster.slots.filter((slot) => slot.model.id === model || slot.model.alias === model);
    const [first] = named;
    if (first?.leaving !== undefined && named.every(({ leaving }) => leaving !== undefined)) {
      const message = `${first.model.alias} is on its way out. ${first.leaving} Ask again in a moment.`;
      return Promise.reject(new AppError('GPU_BUSY', message));
    }
    return this.#moves.move(model, to, signal);
  }

  modelStatus(): Omit<ModelStatus, 'slots'>[] {
    return this.#roster.models.flatMap((model) => {
      const facts = {
        ...{ learned: this.#learned, room: this.#room, heldAwayMs: this.heldAwayMs(model.id) },
        weights: this.#weights.stateOf(model),
      };
      return statusOf(this.#roster.slotsOf(model), facts) ?? [];
    });
  }

  gpuStatus(): GpuStatus[] {
    return this.#options.sampler.readings().map((reading) => ({
      ...reading,
      isDegraded: this.#accounts.isDegraded(reading.uuid),
      ...this.#accounts.of(reading.uuid),
    }));
  }

  learn(slotId: string, seen: { request: JobRequest; runMs: number }): void {
    const model = this.#roster.slots.find((slot) => slot.slotId === slotId)?.model;
    if (model === undefined) return; // agent.yaml dropped it while the picture was being stored
    this.#learned.job(model, seen);
  }

  /** What other programs cost the models of this host at the moment, in sentences. */
  problems(): string[] {
    return this.#pressure.problems();
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

  #newSlot(slotId: string, model: ConfiguredModel): Slot {
    const { sampler, logDir, logs, times, log } = this.#options;
    this.#learned.configure(model);
    const server: ModelServer = new ModelServer({
      ...{ slotId, model, sampler, logDir, logs, times, log, learned: this.#learned, records: this.#records },
      ...{ ports: this.#ports, table: this.#table, cgroups: () => this.#cgroups },
      usedMiB: (gpus) => {
        const here = sampler.readings().filter(({ uuid }) => gpus.includes(uuid));
        return here.reduce((sum, { usedMiB }) => sum + (usedMiB ?? 0), 0);
      },
      engine: model.engine === 'vllm-omni' ? vllmOmni() : step1xEdit(),
      extraEnv: () => this.#weights.environment(model),
      look: (signal) => this.#accounts.look(signal),
      isAlone: (gpus) => !this.#servers().some((other) => other !== server && other.isWorkingOn(gpus)),
      hostRamFreeMiB: () => this.#room.hostRamFreeMiB(),
      onChange: () => this.#changes.announce(),
      onVramMissing: (claim) => this.#accounts.owe(claim),
    });
    return newSlot(slotId, { model, server });
  }

  /** Under the lock of its GPUs, as every transition; meanwhile it may have been put to use. */
  async #release(slot: Slot): Promise<void> {
    using _lock = await this.#locks.acquire(slot.server.gpus, this.#lifetime.signal);
    if (isIdle(slot) && slot.leaving !== undefined) await slot.server.release();
  }

  /** How many GPUs there are is known only when they are read; one that was lost may come back. */
  #countReplicas(): void {
    if (this.#roster.settle()) this.#changes.announce();
  }

  /** One for each GPU it fits alone, or for each group of GPUs that one server spans. */
  #autoReplicas(model: ConfiguredModel): number {
    if (isAttached(model)) return 1;
    const needMiB = this.#room.peakMiB(model, ONE_MEGAPIXEL) / model.gpuCount + this.#settings.reserveMiB;
    const fitting = this.#options.sampler
      .readings()
      .filter(({ uuid, totalMiB }) => (totalMiB ?? 0) >= needMiB && (model.gpuCount === 1 || !isMigInstance(uuid)));
    return Math.max(1, Math.floor(fitting.length / model.gpuCount));
  }

  #slot(slotId: string): Slot {
    const slot = this.#roster.slots.find((candidate) => candidate.slotId === slotId);
    if (slot === undefined) throw new Error(`no slot ${slotId}`);
    return slot;
  }

  #servers(): ModelServer[] {
    return this.#roster.slots.map(({ server }) => server);
  }
}
