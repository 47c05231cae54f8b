import { pause } from '../../shared/abort.ts';
import type { Log } from '../../shared/log.ts';
import type { GpuSampler } from '../gpu/gpu-sampler.ts';
import { ProcessTree } from './process-tree.ts';
import type { ServerRecord } from './server-records.ts';

const POLL_MS = 250;

/** Ends the servers that a crashed agent left running, all at the same time, and waits until their VRAM is not listed. */
export async function endLeftOver(
  records: readonly ServerRecord[],
  o: { sampler: GpuSampler; times: { stopGraceMs: number; vramBackMs: number }; signal: AbortSignal; log: Log },
): Promise<void> {
  await Promise.all(records.map((record) => end(record, o)));
  o.signal.throwIfAborted();
}

async function end(
  record: ServerRecord,
  { sampler, times, signal, log }: Parameters<typeof endLeftOver>[1],
): Promise<void> {
  const tree = new ProcessTree(record);
  const pids = tree.scan();
  if (pids.length === 0) return;
  log.warn({ event: 'server-left-over', slotId: record.slotId, pids });
  const survivors = await tree.stop({ graceMs: times.stopGraceMs });
  if (survivors.length > 0) log.error({ event: 'server-not-killed', slotId: record.slotId, pids: survivors });
  // What it held before is unknown; that nvidia-smi does not list it any more is what can be waited for.
  const endMs = performance.now() + times.vramBackMs;
  while (performance.now() < endMs && !signal.aborted) {
    const apps = await sampler.computeApps(signal).catch(() => []); // without a driver there is nothing to wait for
    if (!apps.some(({ pid }) => pids.includes(pid))) return;
    await pause(Math.min(POLL_MS, times.vramBackMs), signal);
  }
}
