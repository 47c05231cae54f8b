import { Deadline, pause, untilAborted } from '../../shared/abort.ts';
import { backoffMs } from '../../shared/backoff.ts';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { DriverVersion } from './driver-version.ts';
import type { GpuReading } from './gpu-table.ts';
import { GpuTable } from './gpu-table.ts';
import { LostGpus } from './lost-gpus.ts';
import { MigReader } from './mig-reader.ts';
import { NvidiaSmi, WARNING_EXIT, stuckName } from './nvidia-smi.ts';
import type { SmiOutput } from './smi-health.ts';
import { healthOf, isUnknownField } from './smi-health.ts';
import type { SmiLoopEnd } from './smi-loop.ts';
import { runSmiLoop } from './smi-loop.ts';
import type { ComputeApp, Fields, GpuRow, Trouble } from './smi-rows.ts';
import { FIELD_LADDER } from './smi-rows.ts';

export type { GpuReading } from './gpu-table.ts';
export type { ComputeApp } from './smi-rows.ts';

export type GpuSamplerOptions = {
  /** Undefined: it is never asked, and no GPU is known. */
  nvidiaSmi: string | undefined;
  sampleIntervalMs: number;
  /** A loop child that prints nothing for so long is replaced. */
  silenceMs: number;
  /** A one-shot question must be answered by then. */
  queryTimeoutMs: number;
  log: Log;
  onSample: () => void;
};

const STALE_INTERVALS = 2.5;
/** With intervals far below a second, a busy moment of this host must not make every GPU stale. */
const STALE_FLOOR_MS = 1_000;
/** The memory of MIG instances costs a whole inventory: rarely, but for transitions, which ask by themselves. */
const MIG_INTERVALS = 5;
/** A GPU whose neighbours went on without it for so long is not listed any more. */
const ABSENT_INTERVALS = 10;
/** How often a lost GPU is asked whether it answers, and for how long it must before it is used. */
const RECHECK_INTERVALS = 10;
const QUARANTINE_INTERVALS = 60;
/** What is said of the GPUs where they are none of our business. */
const NOT_ASKED: Trouble = { health: 'absent', reason: 'this agent reads none, as gpu.nvidia_smi says' };
/** A loop that prints at least this often answers sooner than a new process would. */
const QUICK_LOOP_MS = 100;

/** One long-lived `nvidia-smi -lms` child at a time; a silent or dead one is replaced, with back-off. */
export class GpuSampler implements AsyncDisposable {
  readonly #options: GpuSamplerOptions;
  readonly #smi: NvidiaSmi;
  readonly #table: GpuTable;
  readonly #mig: MigReader;
  readonly #driver: DriverVersion;
  readonly #lost: LostGpus;
  readonly #stop = new AbortController();
  readonly #listeners = new Set<() => void>();
  readonly #first: Promise<void>;
  #settleFirst: () => void = () => undefined;
  #trouble: Trouble | undefined;
  #rung = 0;
  /** Ends the loop child that runs: for good, or so that the next one asks for the GPUs that live now. */
  #reshape = new AbortController();
  #recheckedMs = performance.now();
  /** What the loop's rows give rise to: one at a time. */
  #errand: Promise<void> | undefined;
  #wantsDriver = false;
  readonly done: Promise<void>;

  constructor(options: GpuSamplerOptions) {
    this.#options = options;
    const { sampleIntervalMs: everyMs } = options;
    const staleMs = (intervals: number): number => Math.max(STALE_FLOOR_MS, STALE_INTERVALS * intervals * everyMs);
    const nvidiaSmi = options.nvidiaSmi ?? ''; // then it is never run
    this.#smi = new NvidiaSmi(nvidiaSmi, { timeoutMs: options.queryTimeoutMs });
    this.#mig = new MigReader(this.#smi);
    this.#driver = new DriverVersion({ smi: this.#smi, nvidiaSmi, log: options.log });
    this.#table = new GpuTable({
      staleMs: staleMs(1),
      migStaleMs: staleMs(MIG_INTERVALS),
      absentMs: Math.max(2 * STALE_FLOOR_MS, ABSENT_INTERVALS * everyMs),
      quarantineMs: QUARANTINE_INTERVALS * everyMs,
    });
    this.#lost = new LostGpus({
      ...{ smi: this.#smi, table: this.#table, log: options.log },
      fields: () => this.#fields,
      takesNextRung: (output) => this.#takesNextRung(output),
      onRows: (rows) => this.#keep(rows),
      onLost: () => this.#announce(),
    });
    this.#first = new Promise((resolve) => (this.#settleFirst = resolve));
    if (options.nvidiaSmi === undefined) {
      this.#trouble = NOT_ASKED;
      this.#settleFirst();
      this.done = Promise.resolve();
    } else this.done = this.#run(options.nvidiaSmi, this.#stop.signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    this.#reshape.abort();
    this.#settleFirst();
    await this.done;
    await this.#errand;
    await this.#smi[Symbol.asyncDispose]();
  }

  /** Calls back at every sample until the returned function is called. */
  onReadings(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Why no GPU can be used, when none can. */
  get problem(): Trouble | undefined {
    if (this.#trouble !== undefined) return this.#trouble;
    const readings = this.readings();
    const [first] = readings;
    if (first?.note === undefined || readings.some(({ note }) => note === undefined)) return undefined;
    return {
      health: first.health === 'absent' || first.health === 'lost' ? first.health : 'unreadable',
      reason: first.note,
    };
  }

  /** The driver's version; null until the inventory was read, and where it cannot be. */
  get driver(): string | null {
    return this.#driver.version;
  }

  readings(): GpuReading[] {
    return this.#table.readings(performance.now());
  }

  firstSample(signal: AbortSignal): Promise<void> {
    return untilAborted(this.#first, signal);
  }

  /** Values of this moment, within 3 s. Throws GPU_LOST where nvidia-smi does not answer or shows no GPU. */
  async sampleNow(signal: AbortSignal): Promise<GpuReading[]> {
    this.#refuseUnasked();
    if (await this.#hasQuickAnswer(signal)) return this.readings();
    const { rows, output } = await this.#smi.gpus(signal, { fields: this.#fields, only: this.#table.living() });
    this.#lost.hear(output.stdout + output.stderr);
    if (rows.length === 0) {
      const { health, reason } = healthOf(output);
      throw new AppError('GPU_LOST', `nvidia-smi shows no GPU (${health}): ${reason}. Run nvidia-smi on the host.`);
    }
    this.#keep(rows);
    if (this.#table.hasMig) await this.#readMig(signal);
    this.#announce();
    return this.readings();
  }

  /** Throws GPU_LOST where nvidia-smi does not answer. */
  async computeApps(signal: AbortSignal): Promise<ComputeApp[]> {
    this.#refuseUnasked();
    // Of a process on an instance the short list tells the GPU only.
    if (this.#table.hasMig) return this.#readMig(signal);
    return this.#smi.computeApps(signal, { only: this.#table.living() });
  }

  /** Reads the driver's version, now and after each trouble. */
  async inventory(): Promise<{ driver: string | null }> {
    if (this.#options.nvidiaSmi === undefined) return { driver: null };
    this.#wantsDriver = true;
    await this.#driver.read(this.#stop.signal);
    return { driver: this.driver };
  }

  /** Waits for the loop to print again after what it may have printed before the question. False where it does not. */
  async #hasQuickAnswer(signal: AbortSignal): Promise<boolean> {
    const { sampleIntervalMs } = this.#options;
    const readings = this.readings();
    if (sampleIntervalMs > QUICK_LOOP_MS || readings.length === 0 || this.#table.hasMig) return false;
    if (readings.some(({ health }) => health !== 'ok')) return false;
    using limit = new Deadline({ ms: 2 * STALE_INTERVALS * sampleIntervalMs, signal });
    for (let rounds = 0; rounds < 2; rounds += 1) {
      const askedMs = performance.now();
      const isNew = (): boolean => this.readings().every(({ ageMs }) => performance.now() - ageMs > askedMs);
      while (!limit.signal.aborted && !isNew()) await this.#nextReadings(limit.signal);
    }
    signal.throwIfAborted();
    return !limit.signal.aborted;
  }

  /** Returns early, without an error, when the signal aborts. */
  async #nextReadings(signal: AbortSignal): Promise<void> {
    let stop = (): void => undefined;
    const next = new Promise<void>((resolve) => (stop = this.onReadings(resolve)));
    await untilAborted(next, signal).catch(() => undefined); // the caller looks at the signal
    stop();
  }

  #refuseUnasked(): void {
    if (this.#options.nvidiaSmi === undefined) throw new AppError('GPU_LOST', `No GPU is read: ${NOT_ASKED.reason}.`);
  }

  get #fields(): Fields {
    return FIELD_LADDER[this.#rung] ?? FIELD_LADDER[2];
  }

  async #run(nvidiaSmi: string, signal: AbortSignal): Promise<void> {
    const { sampleIntervalMs: everyMs, silenceMs, log } = this.#options;
    for (let failures = 0; !signal.aborted;) {
      await this.#smi.untilFree(signal);
      if (signal.aborted) return;
      this.#reshape = new AbortController();
      const end = await runSmiLoop({
        ...{ nvidiaSmi, fields: this.#fields, intervalMs: everyMs, only: this.#table.living(), silenceMs },
        signal: this.#reshape.signal,
        onRows: (rows) => this.#onRows(rows),
        onWords: (text) => this.#lost.hear(text),
      });
      if (end.stuck !== undefined) this.#smi.countStuck(stuckName(end.stuck.pid), end.stuck.gone);
      if (signal.aborted) return;
      if (end.how === 'stopped' && end.stuck === undefined) continue;
      if (end.rows === 0 && this.#takesNextRung(end.output)) continue;
      failures = end.rows > 0 ? 1 : failures + 1;
      await this.#explain(end, signal);
      log.warn({ event: 'gpu-loop-ended', how: end.how, failures, ...this.problem, exitCode: end.output.exitCode });
      // A driver in trouble is not to be asked again and again.
      const isHanging = end.stuck !== undefined || (end.how === 'silent' && end.rows === 0);
      const limits = isHanging
        ? { firstMs: 10 * everyMs, maxMs: 300 * everyMs }
        : { firstMs: 2 * everyMs, maxMs: 30 * everyMs };
      await pause(backoffMs(failures, { ...limits, random: Math.random() }), signal);
    }
  }

  /** False where it is not for an unknown field that there is no answer, or where no field can be left out any more. */
  #takesNextRung(output: SmiOutput): boolean {
    if (!isUnknownField(output) || this.#rung === FIELD_LADDER.length - 1) return false;
    this.#rung += 1;
    this.#options.log.info({ event: 'gpu-fields-reduced', fields: this.#fields });
    return true;
  }

  /** Why the loop ended, for every GPU known so far. One dead GPU can take the answer for all: then each is asked alone. */
  async #explain({ output, how, rows, stuck }: SmiLoopEnd, signal: AbortSignal): Promise<void> {
    if (stuck !== undefined) {
      this.#troubleForAll({ health: 'unreadable', reason: 'nvidia-smi hangs in the GPU driver; restart the host' });
    } else if (how === 'silent') {
      // What it printed before it fell silent grows old by itself.
      const reason = `nvidia-smi has printed nothing for ${this.#options.silenceMs} ms; the GPU driver may hang`;
      if (rows === 0) this.#troubleForAll({ health: 'unreadable', reason });
    } else {
      const trouble = healthOf(output);
      if (trouble.health === 'lost') await this.#lost.find(output.stdout + output.stderr, signal);
      // A child that was killed, or ended well, after it printed values tells nothing about the GPUs.
      const saysNothing = rows > 0 && [undefined, 0, WARNING_EXIT].includes(output.exitCode);
      if (trouble.health === 'lost' ? this.#table.living() === undefined : !saysNothing) this.#troubleForAll(trouble);
    }
    this.#settleFirst();
    this.#announce();
  }

  #troubleForAll(trouble: Trouble): void {
    this.#trouble = trouble;
    this.#table.markAll(trouble);
  }

  #onRows(rows: GpuRow[]): void {
    this.#keep(rows);
    this.#errand ??= this.#runErrand(this.#stop.signal).finally(() => (this.#errand = undefined));
    if (this.#table.hasMig && this.#table.migAtMs === -Infinity) return; // the errand is about to read its instances
    this.#settleFirst();
    this.#announce();
  }

  /** Keeps rows as of now; any answer ends the trouble of all, which the next question would find again. */
  #keep(rows: readonly GpuRow[]): void {
    if (rows.length === 0) return;
    this.#table.note(rows, performance.now());
    if (this.#trouble === undefined) return;
    this.#trouble = undefined;
    // A driver that comes back may be another one.
    if (this.#wantsDriver) void this.inventory(); // never rejects
  }

  /** Reads the memory of MIG instances when it is due, and asks after lost GPUs. Never rejects. */
  async #runErrand(signal: AbortSignal): Promise<void> {
    const nowMs = performance.now();
    const { sampleIntervalMs: everyMs, log } = this.#options;
    if (this.#table.hasMig && nowMs - this.#table.migAtMs > MIG_INTERVALS * everyMs) {
      await this.#readMig(signal).catch((error: unknown) =>
        log.warn({ event: 'mig-unreadable', error: String(error) }),
      );
      this.#settleFirst();
      this.#announce();
    }
    if (nowMs - this.#recheckedMs < RECHECK_INTERVALS * everyMs) return;
    this.#recheckedMs = nowMs;
    const before = this.#table.lost();
    // The loop itself asks for all of them where none lives.
    if (this.#table.living() !== undefined) for (const id of before) await this.#lost.askAlone(id, signal);
    if (this.#table.lost().length < before.length) this.#reshape.abort();
  }

  async #readMig(signal: AbortSignal): Promise<ComputeApp[]> {
    const { instances, apps } = await this.#mig.read(signal, { only: this.#table.living() });
    this.#table.noteMig(instances, performance.now());
    return apps;
  }

  #announce(): void {
    for (const listener of this.#listeners) listener();
    this.#options.onSample();
  }
}
