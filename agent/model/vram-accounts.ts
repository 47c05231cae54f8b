import type { ForeignProcess } from '../../shared/host-snapshot.ts';
import type { Log } from '../../shared/log.ts';
import type { GpuSampler } from '../gpu/gpu-sampler.ts';
import type { VramLook, VramMeasure } from '../gpu/vram-measure.ts';
import { measureVram } from '../gpu/vram-measure.ts';
import type { ModelServer } from './model-server.ts';
import { processName } from './process-tree.ts';
import type { VramClaim } from './vram-verifier.ts';
import { isBack } from './vram-verifier.ts';

type Account = { oursMiB: number; foreign: ForeignProcess[] };

/** Whose VRAM is whose: ours by the process tree of each server, all else foreign. And what dead servers still owe. */
export class VramAccounts {
  readonly #sampler: GpuSampler;
  readonly #servers: () => readonly ModelServer[];
  readonly #log: Log;
  readonly #byGpu = new Map<string, Account>();
  #debts: VramClaim[] = [];
  /** Undefined where the driver did not answer the last time. */
  #last: VramLook | undefined;

  constructor({ sampler, servers, log }: { sampler: GpuSampler; servers: () => readonly ModelServer[]; log: Log }) {
    this.#sampler = sampler;
    this.#servers = servers;
    this.#log = log;
  }

  of(uuid: string): Account {
    return this.#byGpu.get(uuid) ?? { oursMiB: 0, foreign: [] };
  }

  /** These GPUs as the last look showed them: what is there before a server starts. */
  measure(gpus: readonly string[]): VramMeasure | undefined {
    return this.#last && measureVram(this.#last, { gpus, pids: [] });
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

  /**
   * Reads who holds what, now, and tells every server. Whoever looks, looks for all. Undefined where the driver does not
   * answer: then what was seen before stays.
   */
  async look(signal: AbortSignal): Promise<VramLook | undefined> {
    if (this.#sampler.readings().length === 0 && this.#sampler.problem !== undefined) return undefined;
    try {
      const apps = await this.#sampler.computeApps(signal);
      // Free memory after the list, so that no process can be in one of them only for longer than this takes.
      const look = { apps, readings: await this.#sampler.sampleNow(signal) };
      this.#last = look;
      this.#keep(look);
      return look;
    } catch (error) {
      if (!signal.aborted) this.#log.warn({ event: 'vram-unreadable', error: String(error) });
      this.#last = undefined;
      return undefined;
    }
  }

  #keep(look: VramLook): void {
    const ours = new Set<number>();
    for (const server of this.#servers()) {
      const pids = server.pids();
      for (const pid of pids) ours.add(pid);
      const measure = measureVram(look, { gpus: server.gpus, pids });
      // Without a live process it is on its way through its death, which needs the look from before.
      if (measure !== undefined && pids.length > 0) server.note(measure);
    }
    for (const { uuid } of look.readings) {
      const here = look.apps.filter(({ gpuUuid }) => gpuUuid === uuid);
      const foreign = here
        .filter(({ pid }) => !ours.has(pid))
        .map(({ pid, usedMiB }) => ({ pid, name: processName(pid), usedMiB: usedMiB ?? 0 }));
      const oursMiB = here.filter(({ pid }) => ours.has(pid)).reduce((sum, { usedMiB }) => sum + (usedMiB ?? 0), 0);
      this.#byGpu.set(uuid, { oursMiB, foreign });
    }
    this.#debts = this.#debts.filter((claim) => {
      const now = measureVram(look, claim);
      if (now === undefined || !isBack(claim, now)) return true;
      this.#log.info({ event: 'gpu-recovered', gpus: claim.gpus, freeMiB: now.freeMiB });
      return false;
    });
  }
}
