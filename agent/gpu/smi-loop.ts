import { execa } from 'execa';
import { once } from 'node:events';
import { Deadline, pause, untilAborted } from '../../shared/abort.ts';
import { exitOf, settlesWithin } from './nvidia-smi.ts';
import type { SmiOutput } from './smi-health.ts';
import type { Fields, GpuRow } from './smi-rows.ts';
import { loopArgs, parseGpuLine } from './smi-rows.ts';

export type SmiLoopOptions = {
  nvidiaSmi: string;
  fields: Fields;
  intervalMs: number;
  /** Without these GPUs being named, it asks for all. */
  only: readonly string[] | undefined;
  /** Ended when it prints no row for so long. */
  silenceMs: number;
  signal: AbortSignal;
  onRows: (rows: GpuRow[]) => void;
  /** Lines that are no rows. */
  onWords: (text: string) => void;
};

export type SmiLoopEnd = {
  /** Rows it printed in all. */
  rows: number;
  /** Its last words and its exit; without an exit code where it was ended. */
  output: SmiOutput;
  how: 'exited' | 'silent' | 'stopped';
  /** It outlived SIGKILL: settles when it is gone. */
  stuck: { pid: number; gone: Promise<unknown> } | undefined;
};

/** SIGTERM first, because SIGKILL of a GPU client has frozen GPUs. */
const TERM_MS = 2_000;
const EXIT_MS = 3_000;
const LAST_WORDS_MS = 100;
const KEPT_CHARS = 4_096;

/** One `nvidia-smi -lms` child, from its start to its end. Ends it when it is silent, or when the signal aborts. */
export async function runSmiLoop(options: SmiLoopOptions): Promise<SmiLoopEnd> {
  const { nvidiaSmi, fields, silenceMs, signal, onRows, onWords } = options;
  using silence = new Deadline({ ms: silenceMs, signal });
  const child = execa(nvidiaSmi, loopArgs(fields, options), {
    reject: false,
    buffer: false,
    stdin: 'ignore',
    forceKillAfterDelay: TERM_MS,
  });
  let rows = 0;
  let words = '';
  let rest = '';
  child.stdout.on('data', (chunk: Buffer) => {
    const lines = (rest + chunk.toString('latin1')).split('\n');
    // Without end of line for so long it is no row, and never becomes one.
    rest = (lines.pop() ?? '').slice(-KEPT_CHARS);
    const found = lines.flatMap((line) => parseGpuLine(line, fields) ?? []);
    const others = lines.filter((line) => line !== '' && parseGpuLine(line, fields) === undefined).join('\n');
    if (others !== '') {
      words = `${words}${others.slice(-KEPT_CHARS)}\n`.slice(-KEPT_CHARS);
      onWords(others);
    }
    if (found.length === 0) return;
    silence.restart();
    rows += found.length;
    onRows(found);
  });
  child.stderr.on('data', (chunk: Buffer) => (words = (words + chunk.toString('latin1')).slice(-KEPT_CHARS)));
  const ended = exitOf(child);
  try {
    const { exitCode, error } = await untilAborted(ended, silence.signal);
    // Its last words may still be in the pipe, which a grandchild may keep open.
    if (error === undefined) await Promise.race([once(child.stdout, 'close'), pause(LAST_WORDS_MS, signal)]);
    const output = { exitCode, stdout: words + rest, stderr: error ?? '' };
    return { rows, output, how: 'exited', stuck: undefined };
  } catch {
    child.kill('SIGTERM');
    // Not bound to our own stop: the child must be gone when we are.
    const isGone = await settlesWithin(ended, TERM_MS + EXIT_MS);
    const stuck = isGone || child.pid === undefined ? undefined : { pid: child.pid, gone: ended };
    const output = { exitCode: undefined, stdout: words + rest, stderr: '' };
    return { rows, output, how: silence.isExpired ? 'silent' : 'stopped', stuck };
  } finally {
    child.stdout.destroy();
    child.stderr.destroy();
    child.unref();
  }
}
