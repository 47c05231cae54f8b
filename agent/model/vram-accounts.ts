import type { ForeignProcess } from '../../shared/host-snapshot.ts';
import type { Log } from '../../shared/log.ts';
import type { GpuSampler } from '../gpu/gpu-sampler.ts';
import type { ComputeApp } from '../gpu/nvidia-smi.ts';
import { measureVram } from '../gpu/vram-measure.ts';
import type { ModelServer } from './model-server.ts';
import { processName } from './process-tree.ts';
import type { VramClaim } from './vram-verifier.ts';
import { isBack } from './vram-verifier.ts';

type Account = { oursMiB: number; foreign: ForeignProcess[] };

/** Whose VRAM is whose: ours by the process tree of each server, all else foreign. And what dead servers still owe. */
export class VramAccounts {
  readonly #sampler: GpuSampler;
  readonly #log: Log;
  readonly #byGpu = new Map<string, Account>();
  #debts: VramClaim[] = [];

  constructor({ sampler, log }: { sampler: GpuSampler; log: Log }) {
    this.#sampler = sampler;
    this.#log = log;
  }

  of(uuid: string): Account {
    return this.#byGpu.get(uuid) ?? { oursMiB: 0, foreign: [] };
  }

  hasDebts(): boolean {
    return this.#debts.length > 0;
  }

  /** Memory of a dead server did not come back here: no grants until it does. */
  isDegraded(uuid: string): boolean {
    return this.#debts.some(({ gpus }) => gpus.includes(uuid));
  }

  owe(claim: VramClaim): void {
    this.#debts.push(claim);
    this.#log.error({ event: 'gpu-degraded', gpus: claim.gpus, missingMiB: claim.heldMiB, pids: claim.pids });
  }

  /** Reads who holds what. Where the driver does not answer, the last look stays. */
  async look(servers: readonly ModelServer[], signal: AbortSignal): Promise<void> {
    if (this.#sampler.readings().length === 0) return;
    let apps: ComputeApp[];
    try {
      apps = await this.#sampler.computeApps(signal);
    } catch (error) {
      if (!signal.aborted) this.#log.warn({ event: 'compute-apps-unreadable', error: String(error) });
      return;
    }
    const readings = this.#sampler.readings();
    const ours = new Set<number>();
    for (const server of servers) {
      const pids = server.pids();
      for (const pid of pids) ours.add(pid);
      const measure = measureVram(readings, apps, { gpus: server.gpus, pids });
      // Without a live process it is on its way through its death, which needs the look from before.
      if (measure !== undefined && pids.length > 0) server.note(measure);
    }
    for (const { uuid } of readings) {
      const here = apps.filter(({ gpuUuid }) => gpuUuid === uuid);
      const foreign = here
        .filter(({ pid }) => !ours.has(pid))
        .map(({ pid, usedMiB }) => ({ pid, name: processName(pid), usedMiB: usedMiB ?? 0 }));
      const oursMiB = here.filter(({ pid }) => ours.has(pid)).reduce((sum, { usedMiB }) => sum + (usedMiB ?? 0), 0);
      this.#byGpu.set(uuid, { oursMiB, foreign });
    }
    this.#settleDebts(apps);
  }

  #settleDebts(apps: readonly ComputeApp[]): void {
    const readings = this.#sampler.readings();
    this.#debts = this.#debts.filter((claim) => {
      const now = measureVram(readings, apps, claim);
      if (now === undefined || !isBack(claim, now)) return true;
      this.#log.info({ event: 'gpu-recovered', gpus: claim.gpus, freeMiB: now.freeMiB });
      return false;
    });
  }
}
