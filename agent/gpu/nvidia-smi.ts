import { execa } from 'execa';
import { once } from 'node:events';
import type { GpuHealth } from '../../shared/host-snapshot.ts';
import { Deadline, pause, untilAborted } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';

/** After SIGKILL an exit takes milliseconds. A child without one is in the driver (D state) and stays there. */
const EXIT_AFTER_KILL_MS = 1_000;
/** What is still in the pipe when the exit is known. A grandchild may hold the pipe open for ever. */
const DRAIN_MS = 250;
const MAX_OUTPUT_BYTES = 1024 * 1024;

/** Tried once at start, top to bottom: one unknown field fails the whole query, and older drivers lack some. */
export const FIELD_LADDER = [
  [
    'timestamp',
    'index',
    'uuid',
    'name',
    'memory.total',
    'memory.used',
    'memory.free',
    'memory.reserved',
    'utilization.gpu',
    'temperature.gpu',
    'power.draw',
    'pstate',
  ],
  [
    'timestamp',
    'index',
    'uuid',
    'name',
    'memory.total',
    'memory.used',
    'memory.free',
    'utilization.gpu',
    'temperature.gpu',
    'power.draw',
  ],
  ['index', 'uuid', 'name', 'memory.total', 'memory.used', 'memory.free'],
] as const satisfies readonly (readonly string[])[];

export type Fields = readonly string[];

/** One line of `--query-gpu`. A cell that is not a number is null. */
export type GpuRow = {
  index: number;
  uuid: string;
  name: string;
  totalMiB: number | null;
  usedMiB: number | null;
  freeMiB: number | null;
  utilisationPercent: number | null;
  temperatureC: number | null;
  powerW: number | null;
  /** The driver says that this device does not report memory of its own: unified with the host's, or unreadable. */
  isMemoryUnsupported: boolean;
};

export type ComputeApp = { pid: number; gpuUuid: string; usedMiB: number | null };

export type SmiOutput = { exitCode: number | undefined; stdout: string; stderr: string };

/** Runs `nvidia-smi` one query at a time, each within a time limit; while one hangs in the driver, no other is started. */
export class NvidiaSmi implements AsyncDisposable {
  readonly #path: string;
  /** One-shots must answer within this time; a driver in trouble never does. */
  readonly #timeoutMs: number;
  #isStopped = false;
  #last: Promise<unknown> = Promise.resolve();
  /** Asked for and not started yet: whoever asks the same meanwhile gets the same answer. */
  readonly #queued = new Map<string, Promise<SmiOutput>>();
  /** A child that outlived SIGKILL. At most one: the next is only started once this one is gone. */
  #stuckPid: number | undefined;

  constructor(path: string, { timeoutMs }: { timeoutMs: number }) {
    this.#path = path;
    this.#timeoutMs = timeoutMs;
  }

  /** No query starts any more; one that runs is given its time, because ending a GPU client by force has frozen GPUs. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isStopped = true;
    await this.#last;
  }

  /** Counts a child as hanging in the driver until `gone` settles. */
  countStuck(pid: number, gone: Promise<unknown>): void {
    this.#stuckPid = pid;
    const clear = (): void => {
      if (this.#stuckPid === pid) this.#stuckPid = undefined;
    };
    gone.then(clear, clear);
  }

  async gpus(signal: AbortSignal, { fields, only }: { fields: Fields; only?: readonly string[] }): Promise<GpuRow[]> {
    const output = await this.run(queryArgs(fields, only), signal);
    const rows = output.stdout.split('\n').flatMap((line) => parseGpuLine(line, fields) ?? []);
    if (rows.length > 0) return rows;
    const { health, reason } = healthOf(output);
    throw new AppError('GPU_LOST', `nvidia-smi shows no GPU (${health}): ${reason}. Run nvidia-smi on the host.`);
  }

  async computeApps(signal: AbortSignal): Promise<ComputeApp[]> {
    const output = await this.run(COMPUTE_APPS_ARGS, signal);
    if (output.exitCode === 0 || output.exitCode === 14) return parseComputeApps(output.stdout);
    throw new AppError('GPU_LOST', `nvidia-smi cannot list GPU processes: ${healthOf(output).reason}.`);
  }

  /** One query after the other, because each one of a hanging driver leaves a process that nothing can end. */
  run(args: readonly string[], signal: AbortSignal): Promise<SmiOutput> {
    return untilAborted(this.#queued.get(args.join(' ')) ?? this.#enqueue(args), signal);
  }

  #enqueue(args: readonly string[]): Promise<SmiOutput> {
    const key = args.join(' ');
    const turn = this.#last.then(() => {
      this.#queued.delete(key);
      return this.#runNow(args);
    });
    this.#queued.set(key, turn);
    this.#last = turn.catch(() => undefined); // who asked sees the failure; the next in line does not care
    return turn;
  }

  async #runNow(args: readonly string[]): Promise<SmiOutput> {
    if (this.#isStopped) throw new AppError('INTERRUPTED', 'The agent stops.');
    if (this.#stuckPid !== undefined) {
      throw new AppError(
        'GPU_LOST',
        `nvidia-smi (process ${this.#stuckPid}) hangs in the GPU driver and cannot be ended. Restart the host.`,
      );
    }
    const child = execa(this.#path, [...args], {
      reject: false,
      buffer: false,
      stdin: 'ignore',
      killSignal: 'SIGKILL',
    });
    const stdout = collect(child.stdout);
    const stderr = collect(child.stderr);
    const ended = exitOf(child);
    using deadline = new Deadline({ ms: this.#timeoutMs });
    try {
      const end = await untilAborted(ended, deadline.signal);
      if (end.error !== undefined) return { exitCode: undefined, stdout: '', stderr: end.error };
      await settlesWithin(Promise.all([stdout.ended, stderr.ended]), DRAIN_MS);
      return { exitCode: end.exitCode, stdout: stdout.text(), stderr: stderr.text() };
    } catch (cause) {
      if (!deadline.isExpired) throw cause;
      child.kill('SIGKILL');
      const isGone = await settlesWithin(ended, EXIT_AFTER_KILL_MS);
      if (!isGone && child.pid !== undefined) this.countStuck(child.pid, ended);
      throw new AppError(
        'GPU_LOST',
        `nvidia-smi did not answer within ${this.#timeoutMs} ms. The GPU driver may hang.`,
        {
          cause,
        },
      );
    } finally {
      child.stdout.destroy();
      child.stderr.destroy();
      child.unref();
    }
  }
}

/** The end of a child: its exit, or why it never started. Never its `close`, which waits for whoever holds its pipes. */
export function exitOf(child: NodeJS.EventEmitter): Promise<{ exitCode?: number; error?: string }> {
  return new Promise((resolve) => {
    child.once('exit', (code: number | null) => resolve(code === null ? {} : { exitCode: code }));
    child.once('error', (error: Error) => resolve({ error: String(error) }));
  });
}

/** True where the promise settled in time. */
export async function settlesWithin(promise: Promise<unknown>, ms: number): Promise<boolean> {
  const isSettled = new AbortController();
  const settled = promise.then(
    () => true,
    () => true,
  );
  try {
    return await Promise.race([settled, pause(ms, isSettled.signal).then(() => false)]);
  } finally {
    isSettled.abort(); // its timer would keep the process alive
  }
}

export const COMPUTE_APPS_ARGS = [
  '--query-compute-apps=pid,gpu_uuid,used_gpu_memory',
  '--format=csv,noheader,nounits',
] as const;

function queryArgs(fields: Fields, only?: readonly string[]): string[] {
  const base = [`--query-gpu=${fields.join(',')}`, '--format=csv,noheader,nounits'];
  return only === undefined ? base : [...base, '-i', only.join(',')];
}

export function loopArgs(
  fields: Fields,
  { intervalMs, only }: { intervalMs: number; only?: readonly string[] },
): string[] {
  return [...queryArgs(fields, only), '-lms', String(intervalMs)];
}

/** Undefined for anything that is not a whole row: error text, half a line, another number of cells. */
export function parseGpuLine(line: string, fields: Fields): GpuRow | undefined {
  const cells = line.split(',').map((cell) => cell.trim());
  if (cells.length !== fields.length) return undefined;
  const cell = (field: string): string => cells[fields.indexOf(field)] ?? '';
  const index = numberOrNull(cell('index'));
  const uuid = cell('uuid');
  if (index === null || !/^(GPU|MIG)-/.test(uuid)) return undefined;
  return {
    index,
    uuid,
    name: cell('name'),
    totalMiB: numberOrNull(cell('memory.total')),
    usedMiB: numberOrNull(cell('memory.used')),
    freeMiB: numberOrNull(cell('memory.free')),
    utilisationPercent: numberOrNull(cell('utilization.gpu')),
    temperatureC: numberOrNull(cell('temperature.gpu')),
    powerW: numberOrNull(cell('power.draw')),
    isMemoryUnsupported: /^\[?(N\/A|Not Supported)\]?$/.test(cell('memory.total')),
  };
}

/** Rows with a pid and a GPU; memory is null where the driver hides it (WSL, MIG, no permission). */
export function parseComputeApps(text: string): ComputeApp[] {
  return text.split('\n').flatMap((line) => {
    const [pid, gpuUuid, used] = line.split(',').map((cell) => cell.trim());
    const pidNumber = numberOrNull(pid ?? '');
    if (pidNumber === null || gpuUuid === undefined || !/^(GPU|MIG)-/.test(gpuUuid)) return [];
    return [{ pid: pidNumber, gpuUuid, usedMiB: numberOrNull(used ?? '') }];
  });
}

export function isUnknownField(output: SmiOutput): boolean {
  return output.exitCode === 2 && /not a valid field/.test(output.stdout + output.stderr);
}

/** What an exit without readings means. 14 is a warning about the infoROM: its output counts, so it never gets here. */
export function healthOf({ exitCode, stdout, stderr }: SmiOutput): { health: GpuHealth; reason: string } {
  const text = `${stdout}\n${stderr}`.trim();
  const said = text
    .split('\n')
    .find((line) => line.trim() !== '')
    ?.trim()
    .slice(0, 300);
  if (/ENOENT/.test(text) && exitCode === undefined)
    return {
      health: 'absent',
      reason: 'nvidia-smi was not found; name it under gpu.nvidia_smi in agent.yaml if it is not on the PATH',
    };
  if (exitCode === 15 || /GPU is lost|fallen off the bus|Unable to determine the device handle/i.test(text)) {
    return { health: 'lost', reason: said ?? 'a GPU has fallen off the bus' };
  }
  if (exitCode === 6 || /No devices were found/.test(text)) return { health: 'absent', reason: said ?? 'no GPU found' };
  return { health: 'unreadable', reason: said ?? EXIT_MEANINGS[exitCode ?? -1] ?? `nvidia-smi ended with ${exitCode}` };
}

const EXIT_MEANINGS: Record<number, string> = {
  2: 'nvidia-smi does not know an argument',
  3: 'the query is not available on this device',
  4: 'no permission to read the GPU',
  8: 'a power cable of the GPU is not connected',
  9: 'the NVIDIA driver is not loaded',
  10: 'the driver found an interrupt problem of the GPU',
  12: 'the NVML library is missing',
  13: 'the NVML library is too old for this nvidia-smi',
  18: 'driver and library versions do not match; restart the host',
};

/** A number or null: `[N/A]`, `[Not Supported]`, `ERR!`, an empty cell and all other words are no number. */
function numberOrNull(cell: string): number | null {
  return /^-?\d+(\.\d+)?$/.test(cell) ? Number(cell) : null;
}

function collect(stream: NodeJS.ReadableStream): { text: () => string; ended: Promise<unknown> } {
  const chunks: Buffer[] = [];
  let bytes = 0;
  stream.on('data', (chunk: Buffer) => {
    bytes += chunk.length;
    if (bytes <= MAX_OUTPUT_BYTES) chunks.push(chunk);
  });
  const ended = once(stream, 'close').catch(() => undefined); // an error of the pipe ends it just the same
  return { text: () => Buffer.concat(chunks).toString('utf8'), ended };
}
