import { pause } from '../../shared/abort.ts';
import type { ComputeApp } from '../gpu/smi-rows.ts';
import type { ProcessId } from './process-table.ts';
import { isAlive, startTimeOf, titleOf } from './process-table.ts';
import type { NamedProcess } from './process-tree.ts';

/** What engines call the processes that do the work: vLLM-Omni::DiffusionWorker, VLLM::EngineCore, VLLM::Worker_TP0. */
const WORKER_TITLE = /^v?llm(-omni)?::(diffusion|enginecor|worker)/i;
/** A helper that measures kernels, or compiles, may hold a context of its own for a while: it is small beside a worker. */
const WORKER_SHARE = 0.1;

/**
 * The members of a server that it cannot do without, as they were when it became ready. A worker may die while its leader
 * lives on and says that it is healthy: then no job ends any more.
 *
 * A worker is who has the title of one, or holds at least a tenth of the server's VRAM at the end of the load, when the
 * compilation is over. Nobody else is missed: resource trackers, compilers and download threads come and go.
 */
export class WorkerWatch {
  readonly #workers: readonly (ProcessId & NamedProcess)[];

  constructor(o: { leader: number; tree: readonly number[]; apps: readonly ComputeApp[] }) {
    const held = new Map<number, number>();
    for (const { pid, usedMiB } of o.apps) {
      if (o.tree.includes(pid)) held.set(pid, (held.get(pid) ?? 0) + (usedMiB ?? 0));
    }
    const totalMiB = [...held.values()].reduce((sum, mib) => sum + mib, 0);
    this.#workers = o.tree.flatMap((pid) => {
      const startTime = startTimeOf(pid);
      if (pid === o.leader || startTime === undefined) return []; // the leader has an exit event
      const name = titleOf(pid);
      const heldMiB = held.get(pid) ?? 0;
      const isWorker = WORKER_TITLE.test(name) || (heldMiB > 0 && heldMiB >= WORKER_SHARE * totalMiB);
      return isWorker ? { pid, startTime, name } : [];
    });
  }

  get hasWorkers(): boolean {
    return this.#workers.length > 0;
  }

  /** One that has ended. Reads a file for each worker, and nothing else. */
  lost(): NamedProcess | undefined {
    return this.#workers.find((worker) => !isAlive(worker));
  }
}

/** Settles with the first one that is lost; with nothing when the signal aborts, or when there are none to lose. */
export async function untilWorkerLost(
  watch: WorkerWatch,
  { everyMs, signal }: { everyMs: number; signal: AbortSignal },
): Promise<NamedProcess | undefined> {
  while (watch.hasWorkers && !signal.aborted) {
    await pause(everyMs, signal);
    const lost = signal.aborted ? undefined : watch.lost();
    if (lost !== undefined) return lost;
  }
  return undefined;
}
