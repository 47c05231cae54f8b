import type { Log } from '../../shared/log.ts';
import type { VramMeasure } from '../gpu/vram-measure.ts';
import type { TreeEnd } from './process-tree.ts';
import type { ServerRecords } from './server-records.ts';
import type { StartedServer } from './server-start.ts';
import type { Look, VramClaim } from '../gpu/vram-verifier.ts';
import { pollMsFor, untilBack } from '../gpu/vram-verifier.ts';

type Whose = { slotId: string; records: ServerRecords; log: Log };

export type EndOptions = Whose & {
  gpus: readonly string[];
  /** The last look at it, and what it held by that. */
  before: VramMeasure | undefined;
  heldMiB: number;
  /** What it had in pinned host RAM. */
  hostRamMiB: number;
  look: Look;
  times: { stopGraceMs: number; vramBackMs: number; vramBackOffloadedMs: number; healthPollMs: number };
  onVramMissing: (claim: VramClaim) => void;
  signal: AbortSignal;
};

/** Pinned host memory is returned slowly: a server that had more of it than this gets longer. */
const SLOW_RELEASE_MIB = 16 * 1024;

/** Ends a whole tree and waits until its VRAM is back, or missing. Answers nvidia-smi after that. */
export async function endServer({ process, port }: StartedServer, o: EndOptions): Promise<VramMeasure | undefined> {
  const { before, heldMiB, gpus, look, times, signal } = o;
  const pids = process.tree();
  const end = await process.stop({ graceMs: times.stopGraceMs });
  await settle(end, o);
  if (end.survivors.length === 0) port[Symbol.dispose]();
  if (before === undefined) return undefined;
  const deadlineMs = o.hostRamMiB > SLOW_RELEASE_MIB ? times.vramBackOffloadedMs : times.vramBackMs;
  const claim = { gpus, pids: [...pids, process.pid], before, heldMiB };
  const verdict = await untilBack(claim, { look, deadlineMs, pollMs: pollMsFor(times), signal });
  if (!verdict.isBack && !signal.aborted) o.onVramMissing(claim);
  return verdict.after;
}

/** Says what the end took, and takes it off the record where nobody is left. */
export async function settle({ killed, survivors }: TreeEnd, { slotId, records, log }: Whose): Promise<void> {
  if (killed.length > 0) log.warn({ event: 'server-forced', slotId, processes: killed });
  if (survivors.length > 0) {
    log.error({ event: 'server-not-killed', slotId, pids: survivors });
    return;
  }
  await records.remove(slotId).catch((error: unknown) => {
    log.warn({ event: 'server-record-not-removed', slotId, error: String(error) });
  });
}
