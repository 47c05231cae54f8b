import { join } from 'node:path';
import { z } from 'zod';
import type { JobRequest, ModelId } from '../../shared/job.ts';
import type { Log } from '../../shared/log.ts';
import { ServiceTime, learnServiceTime } from '../../shared/service-time.ts';
import type { ConfiguredModel } from './configured-model.ts';
import { learnPeak, loadedMiB } from './footprint.ts';
import { StateFile } from './state-file.ts';

const MiB = z.number().nonnegative();
const times = z.array(z.number().nonnegative()).max(9);

/** What this host has measured about one model. */
const LearnedModel = z.object({
  loadedMiB: MiB.nullable(),
  offloadedMiB: MiB.nullable(),
  peaks: z.array(z.object({ megapixels: z.number().positive(), peakMiB: MiB })),
  loadsMs: times,
  wakesMs: times,
  service: ServiceTime.nullable(),
});
export type LearnedModel = z.infer<typeof LearnedModel>;

const LearnedFile = z.object({ version: z.literal(1), models: z.record(z.string(), LearnedModel) });

const NOTHING: LearnedModel = {
  loadedMiB: null,
  offloadedMiB: null,
  peaks: [],
  loadsMs: [],
  wakesMs: [],
  service: null,
};
/** The fixed part of a job, before anything is measured: request, text encoder, decoding of the image. */
const FIRST_FIXED_MS = 500;
/** First guesses: a server starts in 20 s and reads weights at 2 GiB/s; a wake moves them at 20 GiB/s. */
const FIRST_START_MS = 20_000;
const LOAD_MIB_PER_MS = 2;
const WAKE_MIB_PER_MS = 20;
const FIRST_WAKE_MS = 200;
const KEPT_TIMES = 9;

/** Footprints and times of the models of this host, kept in the state directory. Measurements replace the first guesses. */
export class Learned {
  readonly #file: StateFile<z.infer<typeof LearnedFile>>;
  readonly #log: Log;
  readonly #models = new Map<ModelId, LearnedModel>();
  #written: Promise<void> = Promise.resolve();

  constructor({ stateDir, log }: { stateDir: string; log: Log }) {
    this.#file = new StateFile({ path: join(stateDir, 'learned.json'), schema: LearnedFile, log });
    this.#log = log;
  }

  async read(): Promise<void> {
    const file = await this.#file.read();
    for (const [model, learned] of Object.entries(file?.models ?? {})) this.#models.set(model, learned);
  }

  of(model: ModelId): LearnedModel {
    return this.#models.get(model) ?? NOTHING;
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

  loaded(model: ModelId, seen: { tookMs: number; heldMiB: number }): void {
    const before = this.of(model);
    const loadsMs = [seen.tookMs, ...before.loadsMs].slice(0, KEPT_TIMES);
    this.#set(model, { ...before, loadsMs, ...(seen.heldMiB > 0 && { loadedMiB: seen.heldMiB }) });
  }

  woken(model: ModelId, seen: { tookMs: number }): void {
    const before = this.of(model);
    this.#set(model, { ...before, wakesMs: [seen.tookMs, ...before.wakesMs].slice(0, KEPT_TIMES) });
  }

  offloaded(model: ModelId, seen: { heldMiB: number }): void {
    this.#set(model, { ...this.of(model), offloadedMiB: seen.heldMiB });
  }

  peak(model: ModelId, seen: { megapixels: number; peakMiB: number }): void {
    const before = this.of(model);
    this.#set(model, { ...before, peaks: [...learnPeak(before, seen).peaks] });
  }

  job(model: ConfiguredModel, seen: { request: JobRequest; runMs: number }): void {
    this.#set(model.id, { ...this.of(model.id), service: learnServiceTime(this.service(model), seen) });
  }

  /** Settles when what was learned so far is on disk, or could not be written. */
  written(): Promise<void> {
    return this.#written;
  }

  #set(model: ModelId, learned: LearnedModel): void {
    this.#models.set(model, learned);
    // No job waits for it: a full disk costs what was learned since. The log is where it is seen.
    const writing = this.#file.write({ version: 1, models: Object.fromEntries(this.#models) });
    this.#written = writing.catch((error: unknown) => {
      this.#log.warn({ event: 'learned-not-written', error: String(error) });
    });
  }
}

function median(values: readonly number[]): number | undefined {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
}
