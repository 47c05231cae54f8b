import { pause, untilAborted } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import type { GpuStatus, ModelStateKind, ModelStatus } from '../../shared/host-snapshot.ts';
import type { JobRequest, ModelId } from '../../shared/job.ts';
import { megapixelsOf } from '../../shared/job.ts';
import type { Log } from '../../shared/log.ts';
import type { ModelMove } from '../../shared/protocol.ts';
import type { ServiceTime } from '../../shared/service-time.ts';
import { estimateMs } from '../../shared/service-time.ts';
import type { GpuReading, GpuSampler } from '../gpu/gpu-sampler.ts';
import { readHostMemory } from '../gpu/host-memory.ts';
import type { VramMeasure } from '../gpu/vram-measure.ts';
import type { Eviction, VramPlan, VramView, VramWant } from '../gpu/vram-planner.ts';
import { planVram } from '../gpu/vram-planner.ts';
import type { ConfiguredModel } from './configured-model.ts';
import { step1xEdit } from './engines/step1x-edit.ts';
import { vllmOmni } from './engines/vllm-omni.ts';
import { loadedMiB, offloadedMiB, peakMiB } from './footprint.ts';
import { GpuLocks } from './gpu-locks.ts';
import { idleAction } from './idle-policy.ts';
import { Learned } from './learned.ts';
import type { ModelTimes, Moved } from './model-server.ts';
import { ModelServer } from './model-server.ts';
import { movedMessage, sumVram } from './move-message.ts';
import { watchPeak } from './peak-watch.ts';
import { ProcessTree } from './process-tree.ts';
import { ServerRecords } from './server-records.ts';
import { VramAccounts } from './vram-accounts.ts';

export type ResidencyTimes = ModelTimes & { moveAnswerMs: number; heldAwayMs: number };

export type ResidencyOptions = {
  models: ConfiguredModel[];
  sampler: GpuSampler;
  /** Holds learned.json and servers.json. */
  stateDir: string;
  logDir: string;
  reserveMiB: number;
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

/** A server in use until disposed. */
export type Lease = Disposable & {
  gpuNames: string[];
  run(
    request: JobRequest,
    inputs: readonly Buffer[],
    o: { signal: AbortSignal; onStep: (step: number, steps: number) => void },
  ): Promise<{ image: Buffer; runMs: number; notes: string[] }>;
};

type Slot = {
  slotId: string;
  model: ConfiguredModel;
  server: ModelServer;
  /** VRAM it may grow to for what was promised to it: the reading of free memory does not show that yet. */
  promisedMiB: number;
  /** The work of getting it ready, joined by all who want it. */
  bringing: Promise<void> | undefined;
  /** What is being done for it, for a person. */
  detail: string | undefined;
  readonly listeners: Set<(text: string) => void>;
  /** Should be up: preload or pin. Cleared by a person's offload or release. */
  isWanted: boolean;
  notBeforeMs: number;
};

const ATTRIBUTE_EVERY_MS = 30_000;
const FIRST_SAMPLE_MS = 15_000;
/** Where a preload found no room, it is tried again. */
const WANTED_RETRY_MS = 10_000;
const HEALTH_EVERY_POLLS = 10;
/** Kept free of offloaded weights: the host itself must live. */
const HOST_RAM_RESERVE_MIB = 2_048;
/** A job takes at most so many times its expected time, and never less than the floor: then its server hangs. */
const HANG_FACTOR = 10;
const HANG_FLOOR_MS = 600_000;
/** Plans are made again under the lock. If they keep changing, the host is too busy for this job. */
const MAX_PLANS = 5;
const UNITS = Object.freeze({ megapixels: 1 });

/**
 * Which servers hold which GPUs. The only one that starts, moves and ends servers; one transition per GPU at a time.
 * Every job is admitted: what it may need at its peak must be free, or is made free by evicting idle servers.
 */
export class Residency implements AsyncDisposable {
  readonly #options: ResidencyOptions;
  readonly #lifetime = new AbortController();
  readonly #learned: Learned;
  readonly #records: ServerRecords;
  readonly #accounts: VramAccounts;
  readonly #locks = new GpuLocks();
  readonly #heldAwayUntilMs = new Map<ModelId, number>();
  readonly #moves = new Map<string, Promise<ModelMove>>();
  readonly #background = new Set<Promise<unknown>>();
  #slots: Slot[];
  #offered: ReadonlySet<ModelId> = new Set();
  #changed: { promise: Promise<void>; resolve: () => void } = signalOnce();
  #ended: Promise<void> | undefined;
  #ticking: Promise<void> = Promise.resolve();

  constructor(options: ResidencyOptions) {
    this.#options = options;
    const { stateDir, log, sampler } = options;
    this.#learned = new Learned({ stateDir, log });
    this.#records = new ServerRecords({ stateDir, log });
    this.#accounts = new VramAccounts({ sampler, log });
    this.#slots = options.models.flatMap((model) =>
      this.#slotsOf(model, model.replicas === 'auto' ? 1 : model.replicas),
    );
  }

  /** Ends when the residency does; a defect in its loop rejects it. */
  get done(): Promise<void> {
    return this.#ticking;
  }

  get slots(): readonly { slotId: string; model: ConfiguredModel }[] {
    return this.#slots;
  }

  /** Ends what a crashed agent left running before anything is loaded; then preloads in the background. */
  async start(signal: AbortSignal): Promise<void> {
    await this.#learned.read();
    await this.#endLeftOver(signal);
    const { sampler, log } = this.#options;
    try {
      await sampler.firstSample(AbortSignal.any([signal, AbortSignal.timeout(FIRST_SAMPLE_MS)]));
    } catch {
      signal.throwIfAborted();
      log.warn({ event: 'gpu-no-first-sample' }); // its readings come later, or its health says why not
    }
    this.#slots = this.#options.models.flatMap((model) => {
      const existing = this.#slots.filter((slot) => slot.model === model);
      return model.replicas === 'auto'
        ? [...existing, ...this.#slotsOf(model, this.#autoReplicas(model), existing.length)]
        : existing;
    });
    await this.#accounts.look(this.#servers(), signal);
    this.#ticking = this.#tick(this.#lifetime.signal);
  }

  /** Free now, less what is promised to servers that load or work. */
  vramView(offered: ReadonlySet<ModelId>): VramView {
    this.#offered = offered;
    return this.#view();
  }

  slotFacts(slotId: string): SlotFacts {
    const slot = this.#slot(slotId);
    const { server, model } = slot;
    const { state } = server;
    const learned = this.#learned.of(model.id);
    const loadMs = this.#learned.loadMs(model);
    const wakeMs = isWokenByJob(slot) ? 0 : this.#learned.wakeMs(model);
    const failed = state.kind === 'failed' ? state : undefined;
    const retryInMs =
      failed && failed.retry !== 'never' ? Math.max(0, failed.retry.atMs - performance.now()) : undefined;
    return {
      state: state.kind,
      isReady: state.kind === 'ready' || (state.kind === 'offloaded' && isWokenByJob(slot)),
      gpus: server.gpus,
      heldMiB: server.heldMiB,
      ...(failed && { error: failed.error }),
      ...(retryInMs !== undefined && { retryInMs }),
      loadedMiB: loadedMiB(learned, model),
      peakMiB: peakMiB(learned, { ...model, ...UNITS }),
      reloadMs: reloadMs(slot, { loadMs, wakeMs, retryInMs: retryInMs ?? 0 }),
      loadMs,
      wakeMs,
      idleMs: server.idleMs,
      heldAwayMs: this.isHeldAway(model.id),
      service: this.#learned.service(model),
    };
  }

  /** What a job needs on top of what the slot holds, so that its peak fits. */
  wantFor(slotId: string, job: JobRequest | { megapixels: number }): VramWant {
    const slot = this.#slot(slotId);
    const { server, model } = slot;
    const megapixels = 'megapixels' in job ? job.megapixels : megapixelsOf(job);
    const needMiB = isAttached(model) ? 0 : Math.max(0, this.#peak(model, megapixels) - claimedMiB(slot));
    const isPlaced = isAttached(model) || server.gpus.length > 0;
    return { slotId, needMiB, gpuCount: model.gpuCount, ...(isPlaced && { onGpus: server.gpus }) };
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
    slot.listeners.add(o.onDetail);
    try {
      for (let tries = 0; tries <= MAX_PLANS; tries += 1) {
        o.signal.throwIfAborted();
        const lease = this.#leaseNow(slot, o.megapixels);
        if (lease !== undefined) return lease;
        if (tries === 0 && slot.detail !== undefined) o.onDetail(slot.detail);
        await untilAborted(this.#bring(slot, o.megapixels), o.signal);
      }
    } finally {
      slot.listeners.delete(o.onDetail);
    }
    throw new AppError(
      'GPU_BUSY',
      `The GPUs of ${slot.model.alias} are taken by other models again and again. Try later.`,
    );
  }

  /** A person's load, offload or release. Answers after `moveAnswerMs` at the latest; the same call again joins. */
  async move(model: ModelId, to: 'load' | 'offload' | 'release', signal: AbortSignal): Promise<ModelMove> {
    const slots = this.#slots.filter((slot) => slot.model.id === model || slot.model.alias === model);
    const [first] = slots;
    if (first === undefined)
      throw new AppError('MODEL_UNKNOWN', `No model ${model} is configured on this host. See list_models.`);
    if (to === 'load') this.#heldAwayUntilMs.delete(first.model.id);
    else this.#holdAway(first.model.id);
    for (const slot of slots) slot.isWanted = to === 'load' && shouldBeUp(slot.model);
    const startMs = performance.now();
    const key = `${to} ${first.model.id}`;
    const work = this.#moves.get(key) ?? this.#beginMove(key, slots, to);
    const limited = AbortSignal.any([signal, AbortSignal.timeout(this.#options.times.moveAnswerMs)]);
    try {
      return await untilAborted(work, limited);
    } catch (error) {
      signal.throwIfAborted();
      if (!limited.aborted || error instanceof AppError) throw error;
    }
    const { reloadMs: readyInMs } = this.slotFacts(first.slotId);
    return {
      model: first.model.id,
      state: first.server.state.kind,
      done: 'nothing',
      message: `${first.model.alias} is still on its way: ${first.detail ?? first.server.state.kind}. Call again to wait for it.`,
      tookMs: performance.now() - startMs,
      readyInMs: to === 'load' ? readyInMs : this.#options.times.stopGraceMs,
      heldAwayMs: this.isHeldAway(first.model.id),
    };
  }

  modelStatus(): Omit<ModelStatus, 'slots'>[] {
    return this.#options.models.flatMap((model) => {
      const slots = this.#slots.filter((slot) => slot.model === model);
      const shown = [...slots].sort((a, b) => RANK[b.server.state.kind] - RANK[a.server.state.kind])[0];
      return shown === undefined ? [] : [this.#statusOf(shown, slots)];
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
  isHeldAway(model: ModelId): number {
    return Math.max(0, (this.#heldAwayUntilMs.get(model) ?? 0) - performance.now());
  }

  /** Stops all servers at the same time, without looking at their VRAM. */
  shutdown({ graceMs = 2 * this.#options.times.stopGraceMs }: { graceMs?: number } = {}): Promise<void> {
    this.#ended ??= this.#end(graceMs);
    return this.#ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.shutdown();
  }

  async #end(graceMs: number): Promise<void> {
    this.#lifetime.abort(new AppError('INTERRUPTED', 'The agent stops.'));
    await Promise.all(this.#servers().map((server) => server.shutdown({ graceMs })));
    await Promise.allSettled([...this.#background, this.#ticking]);
    await this.#learned.written();
  }

  #slotsOf(model: ConfiguredModel, count: number, from = 0): Slot[] {
    return Array.from({ length: Math.max(0, count - from) }, (_, at) => {
      const nth = from + at + 1;
      const slotId = nth === 1 ? model.alias : `${model.alias}#${nth}`;
      const { sampler, logDir, times, log } = this.#options;
      const server = new ModelServer({
        slotId,
        model,
        engine: model.engine === 'vllm-omni' ? vllmOmni() : step1xEdit(),
        ...{ sampler, logDir, times, log, learned: this.#learned, records: this.#records },
        onChange: () => this.#announce(),
        onVramMissing: (claim) => this.#accounts.owe(claim),
      });
      return {
        slotId,
        model,
        server,
        promisedMiB: 0,
        bringing: undefined,
        detail: undefined,
        listeners: new Set<(text: string) => void>(),
        // Attached servers are up already: we only have to find them.
        isWanted: shouldBeUp(model),
        notBeforeMs: 0,
      };
    });
  }

  /** One for each GPU it fits alone. */
  #autoReplicas(model: ConfiguredModel): number {
    if (isAttached(model) || model.gpuCount > 1) return 1;
    const needMiB = this.#peak(model, UNITS.megapixels) + this.#options.reserveMiB;
    const fitting = this.#options.sampler.readings().filter(({ totalMiB }) => (totalMiB ?? 0) >= needMiB);
    return Math.max(1, fitting.length);
  }

  async #endLeftOver(signal: AbortSignal): Promise<void> {
    const { log, times, sampler } = this.#options;
    const records = await this.#records.leftOver();
    await Promise.all(
      records.map(async (record) => {
        const tree = new ProcessTree(record);
        const pids = tree.scan();
        if (pids.length === 0) return;
        log.warn({ event: 'server-left-over', slotId: record.slotId, pids });
        const survivors = await tree.stop({ graceMs: times.stopGraceMs, signal });
        if (survivors.length > 0) log.error({ event: 'server-not-killed', slotId: record.slotId, pids: survivors });
        // What it held before is unknown; that nvidia-smi does not list it any more is what can be waited for.
        const endMs = performance.now() + times.vramBackMs;
        while (performance.now() < endMs && !signal.aborted) {
          const apps = await sampler.computeApps(signal).catch(() => []); // without a driver there is nothing to wait for
          if (!apps.some(({ pid }) => pids.includes(pid))) return;
          await pause(Math.min(250, times.healthPollMs), signal);
        }
      }),
    );
    signal.throwIfAborted();
    await this.#records.clear();
  }

  #leaseNow(slot: Slot, megapixels: number): Lease | undefined {
    const { server, model } = slot;
    const isUp = server.state.kind === 'ready' || (server.state.kind === 'offloaded' && isWokenByJob(slot));
    if (!isUp || slot.bringing !== undefined) return undefined;
    const plan = this.#plan(slot, megapixels);
    if (plan.kind !== 'fits' || plan.evict.length > 0) return undefined;
    server.wakeByJob();
    const peak = isAttached(model) ? 0 : this.#peak(model, megapixels);
    slot.promisedMiB = Math.max(slot.promisedMiB, peak);
    return this.#lease(slot);
  }

  #lease(slot: Slot): Lease {
    const { server, model } = slot;
    const held = server.lease();
    const names = this.#options.sampler.readings().filter(({ uuid }) => server.gpus.includes(uuid));
    return {
      gpuNames: isAttached(model) ? ['attached server'] : names.map(({ name }) => name),
      run: async (request, inputs, o) => {
        const expectedMs = estimateMs(this.#learned.service(model), request);
        const options = { ...o, deadlineMs: Math.max(HANG_FLOOR_MS, HANG_FACTOR * expectedMs) };
        try {
          return await this.#run(slot, request, inputs, options);
        } catch (error) {
          if (!(error instanceof AppError) || error.code !== 'GPU_OUT_OF_MEMORY' || server.state.kind !== 'ready')
            throw error;
          if (!(await this.#evictIdleBeside(slot, o.signal))) throw error;
          const second = await this.#run(slot, request, inputs, options);
          return {
            ...second,
            notes: [...second.notes, 'Ran out of GPU memory once; idle models made room for a second try.'],
          };
        }
      },
      [Symbol.dispose]: () => {
        held[Symbol.dispose]();
        if (server.inFlight === 0) slot.promisedMiB = 0;
        this.#announce();
      },
    };
  }

  async #run(
    slot: Slot,
    request: JobRequest,
    inputs: readonly Buffer[],
    options: { signal: AbortSignal; deadlineMs: number; onStep: (step: number, steps: number) => void },
  ): Promise<{ image: Buffer; runMs: number; notes: string[] }> {
    const { server, model } = slot;
    const heldMiB = server.heldMiB;
    using peak = watchPeak(this.#options.sampler, server.gpus);
    let isAlone = this.#isAlone(slot);
    const startMs = performance.now();
    const result = await server.run(request, inputs, options);
    const runMs = performance.now() - startMs;
    isAlone &&= this.#isAlone(slot);
    // The change of free memory is this job's only where nothing else moved on its GPUs.
    if (isAlone && server.gpus.length > 0) {
      const seenMiB = Math.max(heldMiB + peak.usedMiB(), loadedMiB(this.#learned.of(model.id), model));
      this.#learned.peak(model.id, { megapixels: megapixelsOf(request), peakMiB: seenMiB });
      if (server.isHeldInFlux || Math.abs(peak.grownMiB()) > 64)
        void this.#inBackground(this.#accounts.look(this.#servers(), this.#lifetime.signal)); // never rejects
    }
    return { ...result, runMs };
  }

  #isAlone(slot: Slot): boolean {
    const { gpus } = slot.server;
    if (gpus.some((uuid) => this.#locks.isHeld(uuid))) return false;
    return !this.#slots.some(
      (other) => other !== slot && other.server.inFlight > 0 && other.server.gpus.some((uuid) => gpus.includes(uuid)),
    );
  }

  /** Joins the work under way for this slot, whatever size that was for: who joins looks again afterwards. */
  #bring(slot: Slot, megapixels: number, o: { isAsked: boolean } = { isAsked: false }): Promise<void> {
    slot.bringing ??= this.#inBackground(
      this.#bringNow(slot, megapixels, o).finally(() => {
        slot.bringing = undefined;
        slot.detail = undefined;
        this.#announce();
      }),
    );
    return slot.bringing;
  }

  async #bringNow(slot: Slot, megapixels: number, { isAsked }: { isAsked: boolean }): Promise<void> {
    const { server, model } = slot;
    if (!isAsked) refuseFailed(slot);
    if (isAttached(model)) {
      await (server.state.kind === 'offloaded' ? server.wake() : server.load([]));
      return;
    }
    for (let tries = 0; tries < MAX_PLANS; tries += 1) {
      const cheap = this.#plan(slot, megapixels);
      const first = cheap.kind === 'fits' ? cheap : await this.#planFresh(slot, megapixels);
      if (first.kind !== 'fits') throw this.#refusal(slot, megapixels, first);
      const gpus = this.#gpusOf(first);
      this.#say(slot, `waiting for the GPU`);
      using _lock = await this.#locks.acquire(gpus);
      this.#lifetime.signal.throwIfAborted();
      // Between the plan and the lock anything may have happened: only a plan made under the lock is carried out.
      const plan = await this.#planFresh(slot, megapixels);
      if (plan.kind !== 'fits') throw this.#refusal(slot, megapixels, plan);
      if (!this.#gpusOf(plan).every((uuid) => gpus.includes(uuid))) continue;
      if (!isAsked) refuseFailed(slot);
      slot.promisedMiB = this.#peak(model, megapixels);
      try {
        for (const eviction of plan.evict) await this.#evict(slot, eviction);
        await this.#makeReady(slot, plan.gpus);
      } catch (error) {
        // A victim took a job between the plan and its turn: so another plan.
        if (error instanceof AppError && error.code === 'GPU_BUSY' && tries + 1 < MAX_PLANS) continue;
        throw error;
      } finally {
        // A lease, if one follows, promises anew; it comes before anybody else plans.
        if (server.inFlight === 0) slot.promisedMiB = 0;
        void this.#inBackground(this.#accounts.look(this.#servers(), this.#lifetime.signal)); // never rejects
      }
      return;
    }
    throw new AppError(
      'GPU_BUSY',
      `The GPUs for ${model.alias} changed hands ${MAX_PLANS} times while it waited. Try again.`,
    );
  }

  async #makeReady(slot: Slot, gpus: readonly string[]): Promise<void> {
    const { server, model } = slot;
    switch (server.state.kind) {
      case 'offloaded':
        this.#say(slot, `waking ${model.alias}, usually ${seconds(this.#learned.wakeMs(model))}`);
        await server.wake();
        return;
      case 'released':
      case 'failed':
        this.#say(slot, `loading ${model.alias}, usually ${seconds(this.#learned.loadMs(model))}`);
        await server.load(gpus);
        return;
      case 'ready':
        return; // only room for its peak was missing
      case 'loading':
      case 'offloading':
      case 'releasing':
        // Its death is being settled: who waits looks again.
        await this.#nextChange(this.#lifetime.signal);
    }
  }

  async #evict(slot: Slot, { slotId, by }: Eviction): Promise<void> {
    const victim = this.#slot(slotId);
    const { alias } = victim.model;
    this.#say(slot, `making room: ${by === 'offload' ? 'offloading' : 'releasing'} ${alias}`);
    if (by === 'release') {
      await victim.server.release();
      return;
    }
    const freedMiB = await this.#offloadVictim(victim);
    // The memory was promised: an engine that gives back less than half of it loses the process.
    if (freedMiB === undefined) await victim.server.release();
  }

  /** What came free; undefined where it was not worth it, or the engine refused. */
  async #offloadVictim({ slotId, server }: Slot): Promise<number | undefined> {
    const { log } = this.#options;
    try {
      const { heldBeforeMiB: heldMiB, freedMiB } = await server.offload();
      if (freedMiB >= heldMiB / 2) return freedMiB;
      log.warn({ event: 'offload-insufficient', slotId, freedMiB, heldMiB });
    } catch (error) {
      if (!(error instanceof AppError) || error.code === 'GPU_BUSY') throw error;
      log.warn({ event: 'offload-failed', slotId, error: error.message });
    }
    return undefined;
  }

  /** Makes what room there is on the GPUs of a server that ran out of memory. False where nobody could go. */
  async #evictIdleBeside(slot: Slot, signal: AbortSignal): Promise<boolean> {
    using _lock = await untilAborted(this.#locks.acquire(slot.server.gpus), signal);
    const idle = this.#slots.filter(
      ({ server, model }) =>
        server !== slot.server &&
        !model.pin &&
        server.inFlight === 0 &&
        server.heldMiB > 0 &&
        (server.state.kind === 'ready' || server.state.kind === 'offloaded') &&
        server.gpus.some((uuid) => slot.server.gpus.includes(uuid)),
    );
    for (const { slotId, server } of idle) {
      const canOffload = server.state.kind === 'ready' && this.#canOffload(this.#slot(slotId));
      await this.#evict(slot, { slotId, by: canOffload ? 'offload' : 'release' });
    }
    return idle.length > 0;
  }

  async #planFresh(slot: Slot, megapixels: number): Promise<VramPlan> {
    const signal = this.#lifetime.signal;
    await this.#options.sampler.sampleNow(signal); // throws GPU_LOST: without a reading nothing is started
    await this.#accounts.look(this.#servers(), signal);
    return this.#plan(slot, megapixels);
  }

  #plan(slot: Slot, megapixels: number): VramPlan {
    if (isAttached(slot.model)) return { kind: 'fits', gpus: [], evict: [] };
    return planVram(this.wantFor(slot.slotId, { megapixels }), this.#view());
  }

  #gpusOf(plan: { gpus: readonly string[]; evict: readonly Eviction[] }): string[] {
    return [...plan.gpus, ...plan.evict.flatMap(({ slotId }) => this.#slot(slotId).server.gpus)];
  }

  #view(): VramView {
    const owned = this.#slots.filter(({ model }) => !isAttached(model));
    const gpus = this.#options.sampler.readings().map(({ uuid, totalMiB, freeMiB, health }) => {
      const promisedMiB = owned
        .filter(({ server }) => server.gpus.includes(uuid))
        .reduce((sum, slot) => sum + (claimedMiB(slot) - slot.server.heldMiB) / slot.server.gpus.length, 0);
      return {
        uuid,
        totalMiB: totalMiB ?? 0,
        freeMiB: Math.max(0, (freeMiB ?? 0) - promisedMiB),
        reserveMiB: this.#options.reserveMiB,
        usable: health === 'ok' && freeMiB !== null && !this.#accounts.isDegraded(uuid),
      };
    });
    const residents = owned
      .filter(({ server }) => server.gpus.length > 0)
      .map((slot) => ({
        slotId: slot.slotId,
        gpus: slot.server.gpus,
        heldMiB: claimedMiB(slot),
        state: slot.server.state.kind,
        inFlight: slot.server.inFlight + (slot.bringing === undefined ? 0 : 1),
        isPinned: slot.model.pin,
        isOffered: this.#offered.has(slot.model.id),
        idleMs: slot.server.idleMs,
        reloadMs: this.#learned.loadMs(slot.model),
        canOffload: this.#canOffload(slot),
        offloadedMiB: Math.min(slot.server.heldMiB, offloadedMiB(this.#learned.of(slot.model.id), slot.model)),
      }));
    const hostRamFreeMiB = Math.max(0, readHostMemory().availableMiB - HOST_RAM_RESERVE_MIB);
    return { gpus, residents, hostRamFreeMiB };
  }

  /** Not where it is known to keep more than half of its memory. */
  #canOffload({ model }: Slot): boolean {
    const learned = this.#learned.of(model.id);
    return model.offload === 'auto' && offloadedMiB(learned, model) < loadedMiB(learned, model) / 2;
  }

  #peak(model: ConfiguredModel, megapixels: number): number {
    return peakMiB(this.#learned.of(model.id), { ...model, megapixels });
  }

  #refusal(slot: Slot, megapixels: number, plan: Exclude<VramPlan, { kind: 'fits' }>): AppError {
    const { alias } = slot.model;
    if (plan.kind === 'wait') {
      const names = plan.blockedBy.map((slotId) => this.#slot(slotId).model.alias).join(', ');
      return new AppError(
        'GPU_BUSY',
        `${alias} needs GPU memory that ${names} is using now. It can start when that ends.`,
      );
    }
    const readings = this.#options.sampler.readings();
    const degraded = readings.filter(({ uuid }) => this.#accounts.isDegraded(uuid));
    const unusable = readings.filter(({ health }) => health !== 'ok');
    if (readings.length === 0 || unusable.length === readings.length) {
      const reason = this.#options.sampler.problem?.reason ?? 'nvidia-smi shows no GPU';
      return new AppError('GPU_LOST', `${alias} cannot run: ${reason}. Run nvidia-smi on the host.`);
    }
    const foreign = readings.flatMap(({ index, uuid }) =>
      this.#accounts
        .of(uuid)
        .foreign.map(({ pid, name, usedMiB }) => `${name} (pid ${pid}, ${Math.round(usedMiB)} MiB on GPU ${index})`),
    );
    const others = foreign.length === 0 ? '' : ` Other programs hold VRAM: ${foreign.join(', ')}.`;
    const waiting =
      degraded.length === 0
        ? ''
        : ` GPU ${degraded.map(({ index }) => index).join(', ')} waits for memory of an ended server.`;
    const needMiB = Math.round(this.wantFor(slot.slotId, { megapixels }).needMiB);
    return new AppError(
      'GPU_OUT_OF_MEMORY',
      `${alias} needs ${needMiB} MiB of VRAM on ${slot.model.gpuCount} GPU(s), ${Math.round(plan.shortMiB)} MiB more than this ` +
        `host can free (${Math.round(plan.largestMiB)} MiB).${others}${waiting} Ask for a smaller image or use another host.`,
    );
  }

  #beginMove(key: string, slots: readonly Slot[], to: 'load' | 'offload' | 'release'): Promise<ModelMove> {
    const work = this.#moveNow(slots, to).finally(() => this.#moves.delete(key));
    this.#moves.set(key, work);
    return this.#inBackground(work);
  }

  async #moveNow(slots: readonly Slot[], to: 'load' | 'offload' | 'release'): Promise<ModelMove> {
    const startMs = performance.now();
    const [first] = slots;
    if (first === undefined) throw new Error('a move is of at least one slot');
    const moved = await Promise.all(
      slots.map((slot) => (to === 'load' ? this.#loadAsked(slot) : this.#putAway(slot, to))),
    );
    if (to !== 'load') this.#holdAway(first.model.id);
    const vram = sumVram(moved);
    const heldAwayMs = this.isHeldAway(first.model.id);
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
    const signal = this.#lifetime.signal;
    const { server } = slot;
    for (;;) {
      const { state } = server;
      const startMs = performance.now();
      const heldBeforeMiB = server.heldMiB;
      const before = await this.#readings();
      if (state.kind === 'ready' || (state.kind === 'offloaded' && isWokenByJob(slot))) return nothing(server);
      try {
        await this.#bring(slot, UNITS.megapixels, { isAsked: true });
        const isWake = state.kind === 'offloaded';
        const after = await this.#readings();
        const measures = { before: freeOn(before, server.gpus), after: freeOn(after, server.gpus) };
        const tookMs = performance.now() - startMs;
        const held = { heldBeforeMiB, heldAfterMiB: server.heldMiB, freedMiB: 0 };
        return { done: isWake ? 'wake' : 'load', tookMs, ...(server.gpus.length > 0 && measures), ...held };
      } catch (error) {
        if (!(error instanceof AppError) || error.code !== 'GPU_BUSY' || signal.aborted) throw error;
        this.#say(slot, error.message);
        await this.#nextChange(signal);
      }
    }
  }

  async #putAway(slot: Slot, to: 'offload' | 'release'): Promise<Moved> {
    const { server, model } = slot;
    const signal = this.#lifetime.signal;
    for (;;) {
      if (slot.bringing !== undefined) await slot.bringing.catch(() => undefined); // whoever asked for it sees the failure
      while (server.inFlight > 0) await this.#nextChange(signal);
      signal.throwIfAborted();
      using _lock = await this.#locks.acquire(server.gpus);
      if (server.inFlight > 0 || slot.bringing !== undefined) continue;
      const isRelease = to === 'release' || (model.offload === 'none' && !isAttached(model));
      const moved = await (isRelease ? server.release() : server.offload());
      void this.#inBackground(this.#accounts.look(this.#servers(), signal)); // never rejects
      return moved;
    }
  }

  async #readings(): Promise<GpuReading[]> {
    return this.#options.sampler.sampleNow(this.#lifetime.signal).catch(() => []); // attached, without a GPU here
  }

  #holdAway(model: ModelId): void {
    this.#heldAwayUntilMs.set(model, performance.now() + this.#options.times.heldAwayMs);
  }

  /** Idle policies, retries, health checks and the accounts: one pulse for all of them. */
  async #tick(signal: AbortSignal): Promise<void> {
    const { healthPollMs } = this.#options.times;
    let lookedMs = performance.now();
    for (let pulse = 1; !signal.aborted; pulse += 1) {
      this.#keepUp();
      this.#applyIdlePolicy();
      if (pulse % HEALTH_EVERY_POLLS === 0) {
        for (const server of this.#servers()) void this.#inBackground(server.checkHealth());
      }
      const isMoving = this.#slots.some(({ server }) => server.state.kind === 'loading') || this.#accounts.hasDebts();
      const everyMs = isMoving ? 1_000 : ATTRIBUTE_EVERY_MS;
      if (performance.now() - lookedMs >= everyMs) {
        await this.#accounts.look(this.#servers(), signal);
        lookedMs = performance.now();
        this.#announce();
      }
      await pause(healthPollMs, signal);
    }
  }

  /** Brings up what should be up at start, and what crashed when its time has come. Who was evicted waits for a job. */
  #keepUp(): void {
    const nowMs = performance.now();
    for (const slot of this.#slots) {
      const { state, counts } = slot.server;
      const isFirst = state.kind === 'released' && counts.loads === 0;
      const isRetry = state.kind === 'failed' && state.retry !== 'never' && state.retry.atMs <= nowMs;
      if (!slot.isWanted || slot.bringing !== undefined || !(isRetry || (isFirst && slot.notBeforeMs <= nowMs)))
        continue;
      slot.notBeforeMs = nowMs + WANTED_RETRY_MS;
      this.#bring(slot, UNITS.megapixels).catch((error: unknown) => {
        if (this.#lifetime.signal.aborted) return;
        this.#options.log.warn({ event: 'preload-failed', slotId: slot.slotId, error: String(error) });
      });
    }
  }

  #applyIdlePolicy(): void {
    for (const slot of this.#slots) {
      const { server, model } = slot;
      const action = idleAction({
        state: server.state.kind,
        inFlight: server.inFlight + (slot.bringing === undefined ? 0 : 1),
        isPinned: model.pin,
        isAttached: isAttached(model),
        idleMs: server.idleMs,
        canOffload: this.#canOffload(slot),
        offloadAfterMs: model.offloadAfterMs,
        releaseAfterMs: model.releaseAfterMs,
      });
      // A GPU in transition is left alone: the policy can wait for the next pulse.
      if (action === undefined || server.gpus.some((uuid) => this.#locks.isHeld(uuid))) continue;
      const work = this.#putAwayIdle(slot, action);
      this.#inBackground(work).catch((error: unknown) => {
        this.#options.log.warn({ event: 'idle-policy-failed', slotId: slot.slotId, error: String(error) });
      });
    }
  }

  async #putAwayIdle(slot: Slot, action: 'offload' | 'release'): Promise<void> {
    const { server } = slot;
    using _lock = await this.#locks.acquire(server.gpus);
    if (server.inFlight > 0 || slot.bringing !== undefined) return;
    await (action === 'offload' ? server.offload() : server.release());
  }

  #statusOf({ server, model, detail }: Slot, slots: readonly Slot[]): Omit<ModelStatus, 'slots'> {
    const { state } = server;
    const learned = this.#learned.of(model.id);
    const shown = state.kind === 'failed' ? state.error.message : detail;
    const sum = (of: (slot: Slot) => number): number => slots.reduce((total, slot) => total + of(slot), 0);
    return {
      model: model.id,
      alias: model.alias,
      engine: model.engine,
      isAttached: isAttached(model),
      profile: model.profile,
      profileFrom: model.profileFrom,
      state: state.kind,
      ...(shown !== undefined && { detail: shown }),
      gpus: [...new Set(slots.flatMap((slot) => slot.server.gpus))],
      heldMiB: sum((slot) => slot.server.heldMiB),
      isPinned: model.pin,
      loadedMiB: loadedMiB(learned, model),
      peakMiB: this.#peak(model, UNITS.megapixels),
      isMeasured: learned.loadedMiB !== null,
      loadMs: this.#learned.loadMs(model),
      wakeMs: this.#learned.wakeMs(model),
      service: this.#learned.service(model),
      idleMs: Math.min(...slots.map((slot) => slot.server.idleMs)),
      heldAwayMs: this.isHeldAway(model.id),
      jobsDone: sum((slot) => slot.server.counts.jobsDone),
      loads: sum((slot) => slot.server.counts.loads),
      offloads: sum((slot) => slot.server.counts.offloads),
      releases: sum((slot) => slot.server.counts.releases),
      ...(server.version !== undefined && { version: server.version }),
    };
  }

  #slot(slotId: string): Slot {
    const slot = this.#slots.find((candidate) => candidate.slotId === slotId);
    if (slot === undefined) throw new Error(`no slot ${slotId}`);
    return slot;
  }

  #servers(): ModelServer[] {
    return this.#slots.map(({ server }) => server);
  }

  #say(slot: Slot, text: string): void {
    slot.detail = text;
    for (const listener of slot.listeners) listener(text);
    this.#announce();
  }

  #announce(): void {
    const { resolve } = this.#changed;
    this.#changed = signalOnce();
    resolve();
    this.#options.onChange();
  }

  async #nextChange(signal: AbortSignal): Promise<void> {
    await untilAborted(this.#changed.promise, signal);
  }

  /** Keeps hold of work that its callers may leave; the caller of it still sees the failure. */
  #inBackground<T>(work: Promise<T>): Promise<T> {
    this.#background.add(work);
    const forget = (): void => void this.#background.delete(work);
    work.then(forget, forget);
    return work;
  }
}

/** Which replica stands for the model in the status: the one that is furthest on its way to work. */
const RANK: Record<ModelStateKind, number> = {
  ready: 7,
  loading: 6,
  offloading: 5,
  offloaded: 4,
  releasing: 3,
  released: 2,
  failed: 1,
  unknown: 0,
};

function isAttached(model: ConfiguredModel): boolean {
  return model.launch.kind === 'attached';
}

function shouldBeUp(model: ConfiguredModel): boolean {
  return model.preload || model.pin || isAttached(model);
}

function isWokenByJob({ model }: Slot): boolean {
  return model.engine === 'step1x-edit';
}

/** What it holds or was promised, whichever is more. */
function claimedMiB({ server, promisedMiB }: Slot): number {
  return Math.max(server.heldMiB, server.gpus.length > 0 ? promisedMiB : 0);
}

function refuseFailed({ server, model }: Slot): void {
  const { state } = server;
  if (state.kind !== 'failed') return;
  if (state.retry === 'never') {
    const hint = `It is not started again by itself; correct the cause, then load_model ${model.alias}.`;
    throw new AppError('MODEL_FAILED', `${state.error.message}\n${hint}`, { cause: state.error });
  }
  const inMs = state.retry.atMs - performance.now();
  if (inMs <= 0) return;
  throw new AppError('MODEL_FAILED', `${state.error.message}\nThe next start is possible in ${seconds(inMs)}.`, {
    cause: state.error,
  });
}

function reloadMs({ server }: Slot, o: { loadMs: number; wakeMs: number; retryInMs: number }): number {
  switch (server.state.kind) {
    case 'ready':
      return 0;
    case 'offloaded':
      return o.wakeMs;
    case 'loading':
      return Math.max(0, o.loadMs - server.inStateMs);
    case 'offloading':
      return 2 * o.wakeMs;
    case 'released':
    case 'releasing':
      return o.loadMs;
    case 'failed':
      return o.retryInMs + o.loadMs;
  }
}

function nothing(server: ModelServer): Moved {
  return { done: 'nothing', tookMs: 0, heldBeforeMiB: server.heldMiB, heldAfterMiB: server.heldMiB, freedMiB: 0 };
}

function freeOn(readings: readonly GpuReading[], gpus: readonly string[]): VramMeasure {
  const here = readings.filter(({ uuid }) => gpus.includes(uuid));
  const freeMiB = here.reduce((sum, reading) => sum + (reading.freeMiB ?? 0), 0);
  return { freeMiB, mineMiB: 0, othersMiB: 0, isListed: false };
}

function seconds(ms: number): string {
  return ms < 10_000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 1000)} s`;
}

function signalOnce(): { promise: Promise<void>; resolve: () => void } {
  let resolve = (): void => undefined;
  const promise = new Promise<void>((settle) => (resolve = settle));
  return { promise, resolve };
}
