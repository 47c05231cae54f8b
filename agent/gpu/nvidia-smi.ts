import { execa } from 'execa';
import { once } from 'node:events';
import { Deadline, pause, untilAborted } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import type { SmiOutput } from './smi-health.ts';
import { healthOf } from './smi-health.ts';
import type { ComputeApp, Fields, GpuRow } from './smi-rows.ts';
import { COMPUTE_APPS_ARGS, parseComputeApps, parseGpuLine, queryArgs, wholeLines } from './smi-rows.ts';

/** After SIGKILL an exit takes milliseconds. A child without one is in the driver (D state) and stays there. */
const EXIT_AFTER_KILL_MS = 1_000;
/** What is still in the pipe when the exit is known. A grandchild may hold the pipe open for ever. */
const DRAIN_MS = 250;
const MAX_OUTPUT_BYTES = 1024 * 1024;
/** An infoROM is corrupted: said after an answer that is valid. */
export const WARNING_EXIT = 14;

/** Runs `nvidia-smi` one query at a time, each within a time limit; while one hangs in the driver, no other is started. */
export class NvidiaSmi implements AsyncDisposable {
  readonly #path: string;
  /** One-shots must answer within this time; a driver in trouble never does. */
  readonly #timeoutMs: number;
  #isStopped = false;
  #last: Promise<unknown> = Promise.resolve();
  /** Asked for and not started yet: whoever asks the same meanwhile gets the same answer. */
  readonly #queued = new Map<string, Promise<SmiOutput>>();
  /** A child that nothing could end. At most one: the next is only started once this one is gone. */
  #stuck: { who: string; gone: Promise<unknown> } | undefined;

  constructor(path: string, { timeoutMs }: { timeoutMs: number }) {
    this.#path = path;
    this.#timeoutMs = timeoutMs;
  }

  /** No query starts any more; one that runs is given its time, because ending a GPU client by force has frozen GPUs. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isStopped = true;
    await this.#last;
  }

  /** Counts a child as hanging in the driver until `gone` settles. Nobody waits for it but who wants to start another. */
  countStuck(who: string, gone: Promise<unknown>): void {
    const stuck = { who, gone };
    this.#stuck = stuck;
    const clear = (): void => {
      if (this.#stuck === stuck) this.#stuck = undefined;
    };
    gone.then(clear, clear);
  }

  /** Settles when no child hangs, or when the signal aborts. */
  async untilFree(signal: AbortSignal): Promise<void> {
    while (this.#stuck !== undefined && !signal.aborted) {
      await untilAborted(this.#stuck.gone, signal).catch(() => undefined); // gone is gone, however it went
    }
  }

  /** The rows that it printed, and all that it said: one lost GPU may be named between the rows of the others. */
  async gpus(
    signal: AbortSignal,
    { fields, only }: { fields: Fields; only?: readonly string[] | undefined },
  ): Promise<{ rows: GpuRow[]; output: SmiOutput }> {
    const output = await this.run(queryArgs(fields, only), signal);
    return { rows: wholeLines(output.stdout).flatMap((line) => parseGpuLine(line, fields) ?? []), output };
  }

  async computeApps(
    signal: AbortSignal,
    { only }: { only?: readonly string[] | undefined } = {},
  ): Promise<ComputeApp[]> {
    const output = await this.run(
      [...COMPUTE_APPS_ARGS, ...(only === undefined ? [] : ['-i', only.join(',')])],
      signal,
    );
    const apps = parseComputeApps(output.stdout);
    // An empty list must be an answer: taken from garbage, it would show every server as gone.
    const isAnswer = apps.length > 0 || /^\s*$|No running|infoROM/i.test(output.stdout);
    const isWhole = output.stdout === '' || output.stdout.endsWith('\n');
    if ((output.exitCode === 0 || output.exitCode === WARNING_EXIT) && isAnswer && isWhole) return apps;
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
    if (this.#stuck !== undefined) {
      throw new AppError(
        'GPU_LOST',
        `${this.#stuck.who} hangs in the GPU driver and cannot be ended. Restart the host.`,
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
      if (stdout.isTooLong()) throw new AppError('GPU_LOST', `nvidia-smi printed more than ${MAX_OUTPUT_BYTES} bytes.`);
      return { exitCode: end.exitCode, stdout: stdout.text(), stderr: stderr.text() };
    } catch (cause) {
      if (!deadline.isExpired) throw cause;
      child.kill('SIGKILL');
      const isGone = await settlesWithin(ended, EXIT_AFTER_KILL_MS);
      if (!isGone && child.pid !== undefined) this.countStuck(stuckName(child.pid), ended);
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

export function stuckName(pid: number): string {
  return `nvidia-smi (process ${pid})`;
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

function collect(stream: NodeJS.ReadableStream): {
  text: () => string;
  isTooLong: () => boolean;
  ended: Promise<unknown>;
} {
  const chunks: Buffer[] = [];
  let bytes = 0;
  stream.on('data', (chunk: Buffer) => {
    bytes += chunk.length;
    if (bytes <= MAX_OUTPUT_BYTES) chunks.push(chunk);
  });
  const ended = once(stream, 'close').catch(() => undefined); // an error of the pipe ends it just the same
  return {
    text: () => Buffer.concat(chunks).toString('utf8'),
    isTooLong: () => bytes > MAX_OUTPUT_BYTES,
    ended,
  };
}
