import { readFileSync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { freemem, hostname, totalmem } from 'node:os';
import { z } from 'zod';
import { toAppError } from '../shared/errors.ts';
import type { HostSnapshot, SlotStatus } from '../shared/host-snapshot.ts';
import type { Log } from '../shared/log.ts';
import type { GpuSampler } from './gpu/gpu-sampler.ts';
import { readProcMemory } from './gpu/host-memory.ts';
import type { Exchange } from './job/exchange.ts';
import type { Residency } from './model/residency.ts';

export type HostStatusOptions = {
  agentId: string;
  stateDir: string;
  sampler: GpuSampler;
  residency: Residency;
  exchange: Exchange;
  /** What is in the way of work, in sentences: the same that /readyz says. */
  problems: () => string[];
  log: Log;
  onChange: () => void;
};

/** Of the release this program is from; the manifest lies one folder up from the source and from the bundle. */
export const AGENT_VERSION = z
  .object({ version: z.string() })
  .parse(JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'))).version;

const MEMORY_EVERY_MS = 30_000;
const MIB = 1024 ** 2;

/** What this host is and does right now. Asks only what is known already: it never waits for a GPU or a disk. */
export class HostStatus {
  readonly #options: HostStatusOptions;
  readonly #hostname = hostname();
  #memory = { totalMiB: mib(totalmem()), freeMiB: mib(freemem()) };
  #diskFreeMiB: number | null = null;
  #refreshedAtMs = -Infinity;

  constructor(options: HostStatusOptions) {
    this.#options = options;
    // Slow and rarely of interest; until it is there the driver is null.
    void options.sampler.inventory().catch(this.#unknown('driver'));
  }

  snapshot(): HostSnapshot {
    this.#refreshRarely();
    const { agentId, residency, exchange, sampler, problems } = this.#options;
    const slots = exchange.slots();
    const vramEstimate = whyEstimated(this.#options);
    return {
      agentId,
      hostname: this.#hostname,
      agentVersion: AGENT_VERSION,
      isSimulated: isSimulated(sampler),
      isDraining: exchange.isDraining,
      driver: sampler.driver,
      problems: problems(),
      gpus: residency.gpuStatus(),
      ...(vramEstimate !== undefined && { vramEstimate }),
      memory: this.#memory,
      disk: { freeMiB: this.#diskFreeMiB },
      models: residency.modelStatus().map((status) => ({ ...status, slots: slotsOf(residency, status.alias, slots) })),
      offered: exchange.offered(),
    };
  }

  /** RAM and disk change slowly and cost a read of several files: only while somebody looks, and rarely. */
  #refreshRarely(): void {
    const nowMs = performance.now();
    if (nowMs - this.#refreshedAtMs < MEMORY_EVERY_MS) return;
    this.#refreshedAtMs = nowMs;
    void this.#refresh().catch(this.#unknown('memory and disk')); // the last known values stay
  }

  async #refresh(): Promise<void> {
    // Not by systeminformation: it asks every mounted disk, and one dead network share would hold up the answer for all.
    const { bavail, bsize } = await statfs(this.#options.stateDir);
    this.#diskFreeMiB = mib(bavail * bsize);
    this.#memory = await hostMemory();
    this.#options.onChange();
  }

  #unknown(what: string): (error: unknown) => void {
    return (error) => this.#options.log.warn({ event: 'host-fact-unknown', what, reason: toAppError(error).message });
  }
}

/** Simulated hosts must never be taken for real ones: the simulated nvidia-smi names its GPUs so. */
export function isSimulated(sampler: GpuSampler): boolean {
  return sampler.readings().some(({ name }) => name.startsWith('Simulated '));
}

/** Where every server is somebody else's, and may be on another machine, nothing here shows what they hold. */
function whyEstimated({ residency, sampler }: HostStatusOptions): string | undefined {
  const servers = residency.slots.flatMap(({ model: { launch } }) => (launch.kind === 'attached' ? [launch.url] : []));
  const isRead = sampler.readings().some(({ totalMiB }) => totalMiB !== null);
  if (isRead || sampler.problem === undefined || servers.length === 0) return undefined;
  if (servers.length < residency.slots.length) return undefined;
  const where = [...new Set(servers)].join(', ');
  const [why = ''] = sampler.problem.reason.split(';'); // what follows helps whoever sets up the host
  return `The GPUs behind ${where} cannot be read from here (${why}), so VRAM is estimated from the models' profiles.`;
}

function slotsOf(residency: Residency, alias: string, slots: ReadonlyMap<string, SlotStatus>): SlotStatus[] {
  return residency.slots.filter(({ model }) => model.alias === alias).flatMap(({ slotId }) => slots.get(slotId) ?? []);
}

/** The package only where this system has no /proc: it is larger than the rest of the agent, and stays in memory. */
async function hostMemory(): Promise<HostSnapshot['memory']> {
  const own = readProcMemory();
  if (own !== undefined) return { totalMiB: Math.floor(own.totalMiB), freeMiB: Math.floor(own.availableMiB) };
  const { mem } = await import('systeminformation');
  const { total, available } = await mem();
  return { totalMiB: mib(total), freeMiB: mib(available) };
}

function mib(bytes: number): number {
  return Math.floor(bytes / MIB);
}
