import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { z } from 'zod';
import type { JobRequest, ModelId } from '../../shared/job.ts';
import type { Log } from '../../shared/log.ts';
import { ServiceTime, estimateMs, learnServiceTime } from '../../shared/service-time.ts';
import type { ConfiguredModel } from '../configured-model.ts';
import type { Footprint } from './footprint.ts';
import { learnPeak, loadedMiB, shortagesAbove, sizeClass } from './footprint.ts';
import { jobDeadlineMs } from './job-deadline.ts';
import { launchText } from './same-server.ts';
import { StateFile } from '../../shared/state-file.ts';

const MiB = z.number().nonnegative();
const KEPT_TIMES = 9;
const KEPT_RATIOS = 50;
const times = z.array(z.number().nonnegative()).max(KEPT_TIMES);

/** What this host has measured about one model. */
const LearnedModel = z.object({
  /** What of the configuration decides about memory and times: measurements hold only as long as it is the same. */
  launch: z.string().nullable().default(null),
  /** Wall clock of the last change. */
  atMs: z.number().nonnegative().default(0),
  loadedMiB: MiB.nullable(),
  offloadedMiB: MiB.nullable(),
  peaks: z.array(z.object({ megapixels: z.number().positive(), peakMiB: MiB })).max(64),
  loadsMs: times,
  wakesMs: times,
  service: ServiceTime.nullable(),
  /** What the last jobs took, as multiples of their estimates. */
  ratios: z.array(z.number().positive()).max(KEPT_RATIOS).default([]),
});
type LearnedModel = z.infer<typeof LearnedModel>;

const LearnedFile = z.object({ version: z.literal(1), models: z.record(z.string(), LearnedModel) });

const NOTHING: Omit<LearnedModel, 'launch' | 'atMs'> = {
  loadedMiB: null,
  offloadedMiB: null,
  peaks: [],
  loadsMs: [],
  wakesMs: [],
  service: null,
  ratios: [],
};
/** A model that is not configured any more is remembered for so long, in case it comes back. */
const KEPT_MS = 90 * 24 * 3_600_000;
const KEPT_MODELS = 200;
/** One job that ran out of memory keeps others of its size away for so long at most: it may have been bad luck. */
const SHORTAGE_MS = 30 * 60_000;
/** The fixed part of a job, before anything is measured: request, text encoder, decoding of the image. */
const FIRST_FIXED_MS = 500;
/** First guesses: a server starts in 20 s and reads weights at 2 GiB/s; a wake moves them at 20 GiB/s. */
const FIRST_START_MS = 20_000;
const LOAD_MIB_PER_MS = 2;
const WAKE_MIB_PER_MS = 20;
const FIRST_WAKE_MS = 200;

type Shortage = { megapixels: number; aboveMiB: number; untilMs: number };

/**
 * Footprints and times of the models of this host, kept in the state directory. Measurements replace the first guesses. The
 * time of a load is that of the start alone: the download comes before it. What the first load spends on compiling is in it,
 * and the median of the next ones forgets that.
 */
export class Learned {
  readonly #file: StateFile<z.infer<typeof LearnedFile>>;
  readonly #log: Log;
  readonly #models = new Map<ModelId, LearnedModel>();
  readonly #launches = new Map<ModelId, string>();
  /** Not kept on disk, and forgotten at each start of the server: a new process has no fragments. */
  readonly #shortages = new Map<ModelId, readonly Shortage[]>();
  #written: Promise<void> = Promise.resolve();

  constructor({ stateDir, log }: { stateDir: string; log: Log }) {
    this.#file = new StateFile({ path: join(stateDir, 'learned.json'), schema: LearnedFile, log });
    this.#log = log;
  }

  async read(): Promise<void> {
    const file = await this.#file.read();
    const recent = Object.entries(file?.models ?? {})
      .filter(([model, { atMs }]) => this.#launches.has(model) || Date.now() - atMs < KEPT_MS)
      .sort(([, a], [, b]) => b.atMs - a.atMs)
      .slice(0, KEPT_MODELS);
    for (const [model, learned] of recent) {
      if (this.#holds(model, learned)) this.#models.set(model, learned);
    }
  }

  /** This is how the model is started from now on. What was measured of another way to start it is forgotten. */
  configure(model: ConfiguredModel): void {
    this.#launches.set(model.id, launchKey(model));
    const learned = this.#models.get(model.id);
    if (learned === undefined || this.#holds(model.id, learned)) return;
    this.#models.delete(model.id);
    this.#shortages.delete(model.id);
  }

  of(model: ModelId): Footprint & Omit<LearnedModel, 'launch' | 'atMs'> {
    const nowMs = performance.now();
    const shortages = (this.#shortages.get(model) ?? []).filter(({ untilMs }) => untilMs > nowMs);
    return { ...(this.#models.get(model) ?? NOTHING), shortages };
  }

  service({ id, profile }: ConfiguredModel): ServiceTime {
    return this.of(id).service ?? { fixedMs: FIRST_FIXED_MS, unitMs: profile.stepMs, samples: 0 };
  }

  loadMs(model: ConfiguredModel): number {
    const guessMs = FIRST_START_MS + loadedMiB(this.of(model.id), model) / LOAD_MIB_PER_MS;
    return median(this.of(model.id).loadsMs) ?? guessMs;
  }

  wakeMs(model: ConfiguredModel): number {
    const guessMs = FIRST_WAKE_MS + loadedMiB(this.of(model.id), model) / WAKE_MIB_PER_MS;
    return median(this.of(model.id).wakesMs) ?? guessMs;
  }

  /** How long a job may go without a new step. `isFirst`: since its server was loaded without a warm-up. */
  deadlineMs(
    model: ConfiguredModel,
    o: { request: JobRequest; floorMs: number; limitMs: number; isFirst: boolean },
  ): number {
    const { ratios } = this.of(model.id);
    return jobDeadlineMs({ ...o, ratios, estimateMs: estimateMs(this.service(model), o.request) });
  }

  /** `heldMiB` undefined: nvidia-smi did not show it, or not as its alone. */
  loaded(model: ModelId, seen: { tookMs: number; heldMiB: number | undefined }): void {
    this.#shortages.delete(model);
    const loadsMs = [seen.tookMs, ...this.of(model).loadsMs].slice(0, KEPT_TIMES);
    const { heldMiB = 0 } = seen;
    this.#set(model, { loadsMs, ...(heldMiB > 0 && { loadedMiB: heldMiB }) });
  }

  woken(model: ModelId, seen: { tookMs: number }): void {
    this.#set(model, { wakesMs: [seen.tookMs, ...this.of(model).wakesMs].slice(0, KEPT_TIMES) });
  }

  /** What it keeps on the GPU when it is offloaded; null where that is not known after all. */
  offloaded(model: ModelId, seen: { heldMiB: number | null }): void {
    this.#set(model, { offloadedMiB: seen.heldMiB });
  }

  /** A job of this size has run to its end. */
  peak(model: ModelId, seen: { megapixels: number; peakMiB: number }): void {
    this.#shortages.set(model, shortagesAbove(this.#shortages.get(model) ?? [], seen.megapixels));
    this.#set(model, { peaks: [...learnPeak(this.of(model), seen).peaks] });
  }

  /** A job of this size ran out of memory when it had so much. */
  ranShort(model: ModelId, seen: { megapixels: number; aboveMiB: number }): void {
    const megapixels = sizeClass(seen.megapixels);
    const others = (this.#shortages.get(model) ?? []).filter((shortage) => shortage.megapixels !== megapixels);
    const shortage = { megapixels, aboveMiB: seen.aboveMiB, untilMs: performance.now() + SHORTAGE_MS };
    this.#shortages.set(model, [shortage, ...others]);
  }

  /**
   * A job has run to its end in one go. The first one after a load counts as well: where models take turns without a
   * warm-up image, every job is one.
   */
  job(model: ConfiguredModel, seen: { request: JobRequest; runMs: number }): void {
    const before = this.service(model);
    const ratio = seen.runMs / estimateMs(before, seen.request);
    const ratios = before.samples === 0 || !(ratio > 0) ? [] : [ratio]; // of a guess it says nothing
    this.#set(model.id, {
      service: learnServiceTime(before, seen),
      ratios: [...ratios, ...this.of(model.id).ratios].slice(0, KEPT_RATIOS),
    });
  }

  /** Settles when what was learned so far is on disk, or could not be written. */
  written(): Promise<void> {
    return this.#written;
  }

  #holds(model: ModelId, { launch }: LearnedModel): boolean {
    const configured = this.#launches.get(model);
    return configured === undefined || launch === null || launch === configured;
  }

  #set(model: ModelId, change: Partial<LearnedModel>): void {
    const before = this.#models.get(model) ?? NOTHING;
    const launch = this.#launches.get(model) ?? null;
    this.#models.set(model, { ...before, ...change, launch, atMs: Date.now() });
    // No job waits for it: a full disk costs what was learned since. The log is where it is seen.
    const writing = this.#file.write({ version: 1, models: Object.fromEntries(this.#models) });
    this.#written = writing.catch((error: unknown) => {
      this.#log.warn({ event: 'learned-not-written', error: String(error) });
    });
  }
}

/** As a hash, because tokens are among it: quantised weights are another footprint. */
function launchKey(model: ConfiguredModel): string {
  return createHash('sha256').update(launchText(model)).digest('hex').slice(0, 16);
}

function median(values: readonly number[]): number | undefined {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
}
