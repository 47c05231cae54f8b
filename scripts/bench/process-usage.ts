import { readdir, readFile } from 'node:fs/promises';
import { pause } from '../../shared/abort.ts';

type MemoryField = 'VmRSS' | 'VmHWM';

export type Usage = {
  /** CPU time of the process itself, without its children, in percent of one core over the window. */
  cpuPercent: number;
  /** VmRSS at the end of the window, in MB of 10^6 bytes. */
  rssMb: number;
};

/** What processes use during one window, all at the same time, so that a busy machine treats them alike. */
export async function usageOf<K extends string>(
  pids: Readonly<Record<K, number>>,
  { windowMs, signal }: { windowMs: number; signal: AbortSignal },
): Promise<Record<K, Usage>> {
  const entries = Object.entries<number>(pids);
  const look = async () =>
    await Promise.all(entries.map(async ([, pid]) => ({ cpuMs: await cpuMsOf(pid), atMs: performance.now() })));
  const before = await look();
  await pause(windowMs, signal);
  signal.throwIfAborted();
  const after = await look();
  const used = await Promise.all(
    entries.map(async ([key, pid], index): Promise<[string, Usage]> => {
      const [from, to] = [before[index], after[index]];
      if (from === undefined || to === undefined) throw new Error('a look at every process has one entry for each');
      const cpuPercent = (100 * (to.cpuMs - from.cpuMs)) / (to.atMs - from.atMs);
      return [key, { cpuPercent, rssMb: await memoryMb(pid) }];
    }),
  );
  return Object.fromEntries(used) as Record<K, Usage>; // the keys are those of `pids`
}

/**
 * CPU time of every thread of a process since its start. /proc/PID/stat has it too, but in ticks of 10 ms, which is more
 * than some of these processes use in the whole window.
 */
export async function cpuMsOf(pid: number): Promise<number> {
  const threads = await readdir(`/proc/${pid}/task`);
  const texts = await Promise.all(
    threads.map((thread) => readFile(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').catch(() => '0 0 0')), // just ended
  );
  return texts.reduce((sum, text) => sum + runMsIn(text), 0);
}

/** From a schedstat file: nanoseconds on a CPU, nanoseconds waiting for one, times it ran. */
export function runMsIn(schedstat: string): number {
  const [, nanoseconds] = /^(\d+) \d+ \d+\s*$/.exec(schedstat) ?? [];
  if (nanoseconds === undefined) throw new Error(`not a schedstat: ${JSON.stringify(schedstat.slice(0, 80))}`);
  return Number(nanoseconds) / 1e6;
}

/** What of a process is in memory, now or at its peak, in MB (10^6 bytes), the shared pages of the program included. */
export async function memoryMb(pid: number, field: MemoryField = 'VmRSS'): Promise<number> {
  return memoryMbIn(await readFile(`/proc/${pid}/status`, 'utf8'), field);
}

/** From a status file of /proc, which counts in KiB. */
export function memoryMbIn(status: string, field: MemoryField): number {
  const [, kib] = new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(status) ?? [];
  if (kib === undefined) throw new Error(`no ${field} in the status of the process: it has ended`);
  return (Number(kib) * 1_024) / 1e6;
}
