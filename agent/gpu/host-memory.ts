import { readFileSync } from 'node:fs';
import { freemem, totalmem } from 'node:os';

export type HostMemory = { totalMiB: number; availableMiB: number };

/** Host RAM now. Available is what can be had without swapping: free alone leaves out the page cache. */
export function readHostMemory(): HostMemory {
  return readProcMemory() ?? { totalMiB: totalmem() / 1024 ** 2, availableMiB: freemem() / 1024 ** 2 };
}

/** The same from /proc; undefined on a system without it. */
export function readProcMemory(): HostMemory | undefined {
  try {
    const text = readFileSync('/proc/meminfo', 'utf8');
    const kib = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(text)?.[1]);
    const [total, available] = [kib('MemTotal'), kib('MemAvailable')];
    if (total > 0 && available >= 0) return { totalMiB: total / 1024, availableMiB: available / 1024 };
  } catch {
    // No /proc on this system.
  }
  return undefined;
}
