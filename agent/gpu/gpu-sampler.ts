import { execa } from 'execa';
import { once } from 'node:events';
import { Deadline, pause, untilAborted } from '../../shared/abort.ts';
import { backoffMs } from '../../shared/backoff.ts';
import type { GpuHealth } from '../../shared/host-snapshot.ts';
import type { Log } from '../../shared/log.ts';
import { readHostMemory } from './host-memory.ts';
import { readInventory } from './inventory.ts';
import type { ComputeApp, Fields, GpuRow, SmiOutput } from './nvidia-smi.ts';
import {
  FIELD_LADDER,
  NvidiaSmi,
  exitOf,
  healthOf,
  isUnknownField,
  loopArgs,
  parseGpuLine,
  settlesWithin,
} from './nvidia-smi.ts';

export type { ComputeApp } from './nvidia-smi.ts';

/** One GPU as last seen. `ageMs` is part of the state: an old value is never shown as a new one. */
export type GpuReading = Omit<GpuRow, 'isMemoryUnsupported'> & { health: GpuHealth; ageMs: number };

export type GpuSamplerOptions = {
  nvidiaSmi: string;
  sampleIntervalMs: number;
  /** A loop child that prints nothing for so long is replaced. */
  silenceMs: number;
  /** A one-shot question must be answered by then. */
  queryTimeoutMs: number;
  log: Log;
  onSample: () => void;
};

type Seen = { row: GpuRow; atMs: number; problem: GpuHealth | undefined };

const STALE_INTERVALS = 2.5;
/** With intervals far below a second, a busy moment of this host must not make every GPU stale. */
const STALE_FLOOR_MS = 1_000;
const TERM_MS = 2_000;
const EXIT_MS = 3_000;
const INVENTORY_MS = 20_000;
/** A loop that prints at least this often answers sooner than a new process would. */
const QUICK_LOOP_MS = 100;
/** Integrated devices share the host's memory. A lost GPU must never turn into "128 GB free", hence the list. */
const UNIFIED = /\b(GB10|Thor|Orin|Xavier|Tegra|N1X)\b/i;

/** One long-lived `nvidia-smi -lms` child at a time; a silent or dead one is replaced, with back-off. */
export class GpuSampler implements AsyncDisposable {
  readonly #options: GpuSamplerOptions;
  readonly #smi: NvidiaSmi;
  readonly #stop = new AbortController();
  readonly #seen = new Map<string, Seen>();
  readonly #lost = new Set<string>();
  readonly #listeners = new Set<() => void>();
  readonly #first: Promise<void>;
  #settleFirst: () => void = () => undefined;
  #problem: { health: GpuHealth; reason: string } | undefined;
  #rung = 0;
  #inventoryRuns: Promise<{ driver: string }> | undefined;
  readonly done: Promise<void>;

  constructor(options: GpuSamplerOptions) {
    this.#options = options;
    this.#smi = new NvidiaSmi(options.nvidiaSmi, { timeoutMs: options.queryTimeoutMs });
    this.#first = new Promise((resolve) => (this.#settleFirst = resolve));
    this.done = this.#run(this.#stop.signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    this.#settleFirst();
    await this.done;
    await this.#smi[Symbol.asyncDispose]();
  }

  /** Calls back at every sample until the returned function is called. */
  onReadings(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Why there are no readings, when there are none. */
  get problem(): { health: GpuHealth; reason: string } | undefined {
    return this.#problem;
  }

  readings(): GpuReading[] {
    const nowMs = performance.now();
    const staleMs = Math.max(STALE_FLOOR_MS, STALE_INTERVALS * this.#options.sampleIntervalMs);
    return [...this.#seen.values()]
      .map(({ row, atMs, problem }): GpuReading => {
        const ageMs = nowMs - atMs;
        const { isMemoryUnsupported: _, ...values } = row;
        return { ...values, health: problem ?? (ageMs > staleMs ? 'stale' : 'ok'), ageMs };
      })
      .sort((a, b) => a.index - b.index);
  }

  firstSample(signal: AbortSignal): Promise<void> {
    return untilAborted(this.#first, signal);
  }

  /** Values of this moment, within 3 s. Throws GPU_LOST where nvidia-smi does not answer or shows no GPU. */
  async sampleNow(signal: AbortSignal): Promise<GpuReading[]> {
    if (await this.#hasQuickAnswer(signal)) return this.readings();
    const only = this.#alive();
    this.#note(await this.#smi.gpus(signal, { fields: this.#fields, ...(only && { only }) }));
    return this.readings();
  }

  computeApps(signal: AbortSignal): Promise<ComputeApp[]> {
    return this.#smi.computeApps(signal);
  }

  /** The driver's version; null where it cannot be read. Never starts a second inventory while the first one hangs. */
  async inventory(): Promise<{ driver: string | null }> {
    using limit = new Deadline({ ms: INVENTORY_MS, signal: this.#stop.signal });
    this.#inventoryRuns ??= readInventory(this.#options.nvidiaSmi).finally(() => (this.#inventoryRuns = undefined));
    try {
      return await untilAborted(this.#inventoryRuns, limit.signal);
    } catch (error) {
      this.#options.log.warn({ event: 'gpu-inventory-failed', error: String(error) });
    }
    // The package takes any warning on stderr for a failure, and finds only a command named nvidia-smi.
    try {
      const output = await this.#smi.run(['--query-gpu=driver_version', '--format=csv,noheader'], this.#stop.signal);
      const version = output.stdout.split('\n')[0]?.trim() ?? '';
      return { driver: /^\d+(\.\d+)+$/.test(version) ? version : null };
    } catch {
      return { driver: null }; // the loop reports why the GPU cannot be read
    }
  }

  /** Waits for the loop to print again after what it may have printed before the question. False where it does not. */
  async #hasQuickAnswer(signal: AbortSignal): Promise<boolean> {
    const { sampleIntervalMs } = this.#options;
    const readings = this.readings();
    if (sampleIntervalMs > QUICK_LOOP_MS || readings.length === 0) return false;
    if (readings.some(({ health }) => health !== 'ok')) return false;
    using limit = new Deadline({ ms: 2 * STALE_INTERVALS * sampleIntervalMs, signal });
    for (let rounds = 0; rounds < 2; rounds += 1) {
      const askedMs = performance.now();
      const isNew = (): boolean => [...this.#seen.values()].every(({ atMs }) => atMs > askedMs);
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

  get #fields(): Fields {
    return FIELD_LADDER[this.#rung] ?? FIELD_LADDER[2];
  }

  async #run(signal: AbortSignal): Promise<void> {
    const { sampleIntervalMs: everyMs, log } = this.#options;
    for (let failures = 0; !signal.aborted;) {
      const { samples, output, isHanging } = await this.#loop(signal);
      if (signal.aborted) return;
      if (samples === 0 && isUnknownField(output) && this.#rung < FIELD_LADDER.length - 1) {
        this.#rung += 1;
        log.info({ event: 'gpu-fields-reduced', fields: this.#fields });
        continue;
      }
      failures = samples > 0 ? 1 : failures + 1;
      await this.#explain(output, isHanging, signal);
      log.warn({ event: 'gpu-loop-ended', failures, ...this.#problem, exitCode: output.exitCode });
      const firstMs = (isHanging ? 10 : 2) * everyMs;
      await pause(backoffMs(failures, { firstMs, maxMs: 15 * firstMs, random: Math.random() }), signal);
    }
  }

  /** One child, from its start to its end. Ends it when it is silent, or when the sampler stops. */
  async #loop(signal: AbortSignal): Promise<{ samples: number; output: SmiOutput; isHanging: boolean }> {
    const only = this.#alive();
    const args = loopArgs(this.#fields, { intervalMs: this.#options.sampleIntervalMs, ...(only && { only }) });
    using silence = new Deadline({ ms: this.#options.silenceMs, signal });
    const child = execa(this.#options.nvidiaSmi, args, {
      reject: false,
      buffer: false,
      stdin: 'ignore',
      forceKillAfterDelay: TERM_MS, // SIGTERM first: SIGKILL of a GPU client has frozen GPUs
    });
    let samples = 0;
    let spoken = '';
    let rest = '';
    const onText = (chunk: Buffer): void => {
      const lines = (rest + chunk.toString('latin1')).split('\n');
      rest = (lines.pop() ?? '').slice(-4_096);
      const rows = lines.flatMap((line) => parseGpuLine(line, this.#fields) ?? []);
      if (rows.length === 0) spoken = (spoken + lines.join('\n')).slice(-4_096);
      else {
        silence.restart();
        samples += rows.length;
        this.#note(rows);
      }
    };
    child.stdout.on('data', onText);
    child.stderr.on('data', (chunk: Buffer) => (spoken = (spoken + chunk.toString('latin1')).slice(-4_096)));
    const ended = exitOf(child);
    let exitCode: number | undefined;
    let isHanging = false;
    try {
      const end = await untilAborted(ended, silence.signal);
      exitCode = end.exitCode;
      spoken += end.error ?? '';
      await Promise.race([once(child.stdout, 'close'), pause(100, signal)]); // its last words; a grandchild may keep the pipe
    } catch {
      child.kill('SIGTERM');
      // Not bound to our own stop: the child must be gone when we are.
      isHanging = !(await settlesWithin(ended, TERM_MS + EXIT_MS));
      if (isHanging && child.pid !== undefined) this.#smi.countStuck(child.pid, ended);
    } finally {
      child.stdout.destroy();
      child.stderr.destroy();
      child.unref();
    }
    return { samples, output: { exitCode, stdout: spoken + rest, stderr: '' }, isHanging };
  }

  /** Why the loop ended, for every GPU known so far. One dead GPU can take the answer for all: then each is asked alone. */
  async #explain(output: SmiOutput, isHanging: boolean, signal: AbortSignal): Promise<void> {
    const problem = isHanging
      ? { health: 'unreadable' as const, reason: 'nvidia-smi hangs in the GPU driver; restart the host' }
      : healthOf(output);
    if (problem.health === 'lost' && this.#seen.size > 1) return this.#findLost(signal);
    this.#problem = problem;
    for (const seen of this.#seen.values()) {
      // A child that was ended, or died without a word, tells nothing about the GPU: the age of the values does.
      const saysNothing =
        !isHanging && (output.exitCode === undefined || output.exitCode === 0) && problem.health !== 'absent';
      if (!saysNothing) seen.problem = problem.health;
    }
    this.#settleFirst();
    this.#announce();
  }

  async #findLost(signal: AbortSignal): Promise<void> {
    for (const [uuid, seen] of this.#seen) {
      try {
        this.#note(await this.#smi.gpus(signal, { fields: this.#fields, only: [uuid] }));
        this.#lost.delete(uuid);
      } catch (error) {
        if (signal.aborted) return;
        this.#lost.add(uuid);
        seen.problem = 'lost';
        this.#options.log.error({ event: 'gpu-lost', uuid, index: seen.row.index, error: String(error) });
      }
    }
    this.#announce();
  }

  /** The GPUs to ask for, once one of them is known to spoil the answer for all. */
  #alive(): string[] | undefined {
    if (this.#lost.size === 0 || this.#lost.size === this.#seen.size) return undefined;
    return [...this.#seen.keys()].filter((uuid) => !this.#lost.has(uuid));
  }

  #note(rows: readonly GpuRow[]): void {
    const atMs = performance.now();
    for (const row of rows) this.#seen.set(row.uuid, { row: withHostMemory(row), atMs, problem: undefined });
    this.#problem = undefined;
    this.#settleFirst();
    this.#announce();
  }

  #announce(): void {
    for (const listener of this.#listeners) listener();
    this.#options.onSample();
  }
}

function withHostMemory(row: GpuRow): GpuRow {
  if (!row.isMemoryUnsupported || !UNIFIED.test(row.name)) return row;
  const { totalMiB, availableMiB } = readHostMemory();
  return { ...row, totalMiB, freeMiB: availableMiB, usedMiB: totalMiB - availableMiB };
}
