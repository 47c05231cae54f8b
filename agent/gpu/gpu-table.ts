import type { GpuHealth } from '../../shared/host-snapshot.ts';
import { readHostMemory } from './host-memory.ts';
import type { NamedLoss } from './smi-health.ts';
import type { GpuRow, Trouble } from './smi-rows.ts';
import type { MigInstance } from './smi-xml.ts';

/** One GPU, or one instance of a MIG GPU, as last seen. `ageMs` is part of the state: an old value is never shown as a new one. */
export type GpuReading = Omit<GpuRow, 'isMemoryUnsupported' | 'isMig' | 'busId' | 'trouble'> & {
  health: GpuHealth;
  ageMs: number;
  /** Its memory is the host's RAM. */
  isUnified?: boolean;
  /** Why it cannot be used, for a person. */
  note?: string;
};

export type GpuTableOptions = {
  /** Values older than this are stale. */
  staleMs: number;
  /** A GPU that its neighbours have outlived by so long is not listed any more. */
  absentMs: number;
  migStaleMs: number;
  /** One that was lost must answer for so long before it is used again. */
  quarantineMs: number;
};

type Seen = { row: GpuRow; atMs: number; trouble: Trouble | undefined };
type Lost = { reason: string; answersSinceMs: number | undefined };

/** Integrated devices share the host's memory. A lost GPU must never turn into "128 GB free", hence the list. */
const UNIFIED = /\b(GB10|Thor|Orin|Xavier|Tegra|N1X)\b/i;

/** What is known of each GPU of the host, by UUID, and what may be believed of it now. Starts and asks nothing. */
export class GpuTable {
  readonly #options: GpuTableOptions;
  readonly #seen = new Map<string, Seen>();
  readonly #lost = new Map<string, Lost>();
  /** Lost before they ever told their UUID. */
  readonly #nameless = new Map<string, NamedLoss>();
  #mig: { instances: readonly MigInstance[]; atMs: number } | undefined;

  constructor(options: GpuTableOptions) {
    this.#options = options;
  }

  get isEmpty(): boolean {
    return this.#seen.size === 0 && this.#nameless.size === 0;
  }

  get hasMig(): boolean {
    return [...this.#seen.values()].some(({ row }) => row.isMig);
  }

  get migAtMs(): number {
    return this.#mig?.atMs ?? -Infinity;
  }

  /** UUIDs of all that ever answered. */
  uuids(): string[] {
    return [...this.#seen.keys()];
  }

  /** The GPUs to ask for, once one of them is known to spoil the answer for all; undefined where all can be asked. */
  living(): string[] | undefined {
    if (this.#lost.size === 0 && this.#nameless.size === 0) return undefined;
    const living = this.uuids().filter((uuid) => !this.#lost.has(uuid));
    return living.length === 0 ? undefined : living;
  }

  /** What nvidia-smi takes after -i for those that do not answer. */
  lost(): string[] {
    return [...this.#lost.keys(), ...[...this.#nameless.values()].map(({ busId, index }) => busId ?? String(index))];
  }

  note(rows: readonly GpuRow[], nowMs: number): void {
    for (const row of rows) {
      const trouble = row.trouble?.health === 'unreadable' && isUnified(row) ? undefined : row.trouble;
      for (const [key, loss] of this.#nameless) {
        if (!isNamed(row, loss)) continue;
        this.#nameless.delete(key);
        this.#lost.set(row.uuid, { reason: loss.said, answersSinceMs: undefined });
      }
      this.#seen.set(row.uuid, { row, atMs: nowMs, trouble });
      if (trouble?.health === 'lost') this.markLost(row.uuid, trouble.reason);
      else this.#probation(row.uuid, nowMs);
    }
  }

  noteMig(instances: readonly MigInstance[], nowMs: number): void {
    this.#mig = { instances, atMs: nowMs };
  }

  /** Until it has answered for a while, or for ever. True where this is news. */
  markLost(uuid: string, reason: string): boolean {
    const isNews = !this.#lost.has(uuid);
    this.#lost.set(uuid, { reason, answersSinceMs: undefined });
    return isNews;
  }

  /** As `markLost`, for the GPU that a message names. True where this is news. */
  markNamed(loss: NamedLoss): boolean {
    const known = [...this.#seen.values()].find(({ row }) => isNamed(row, loss));
    if (known !== undefined) return this.markLost(known.row.uuid, loss.said);
    const key = loss.busId ?? `index ${loss.index}`;
    const isNews = !this.#nameless.has(key);
    this.#nameless.set(key, loss);
    return isNews;
  }

  /** The same holds for every GPU, until its next row. */
  markAll(trouble: Trouble): void {
    for (const seen of this.#seen.values()) seen.trouble = trouble;
  }

  readings(nowMs: number): GpuReading[] {
    const newestMs = Math.max(...[...this.#seen.values()].map(({ atMs }) => atMs));
    const seen = [...this.#seen.values()].flatMap((one) => {
      const trouble = this.#troubleOf(one, { nowMs, newestMs });
      if (one.row.isMig && trouble === undefined) return this.#instancesOf(one, nowMs);
      return [this.#reading(one, { nowMs, trouble })];
    });
    return [...seen, ...this.#namelessReadings()].sort(byIndexThenName);
  }

  #probation(uuid: string, nowMs: number): void {
    const lost = this.#lost.get(uuid);
    if (lost === undefined) return;
    lost.answersSinceMs ??= nowMs;
    if (nowMs - lost.answersSinceMs >= this.#options.quarantineMs) this.#lost.delete(uuid);
  }

  #troubleOf(
    { row, atMs, trouble }: Seen,
    { nowMs, newestMs }: { nowMs: number; newestMs: number },
  ): Trouble | undefined {
    const lost = this.#lost.get(row.uuid);
    if (lost !== undefined) {
      const again = lost.answersSinceMs === undefined ? '' : ' It answers again, and is watched before it is used.';
      return { health: 'lost', reason: `${lostText(row.index, lost.reason)}${again}` };
    }
    if (trouble !== undefined) return trouble;
    const isLeftOut = nowMs - atMs > this.#options.absentMs && newestMs - atMs > this.#options.absentMs;
    return isLeftOut
      ? { health: 'absent', reason: 'the driver does not list it any more; restart the host' }
      : undefined;
  }

  #reading({ row, atMs }: Seen, { nowMs, trouble }: { nowMs: number; trouble: Trouble | undefined }): GpuReading {
    const ageMs = nowMs - atMs;
    const health = trouble?.health ?? (ageMs > this.#options.staleMs ? 'stale' : 'ok');
    const values = isUnified(row) ? withHostMemory(row) : row;
    return {
      ...{ index: row.index, uuid: row.uuid, name: row.name },
      totalMiB: values.totalMiB,
      // What a lost GPU had free is not free.
      usedMiB: health === 'lost' ? null : values.usedMiB,
      freeMiB: health === 'lost' ? null : values.freeMiB,
      ...{ utilisationPercent: row.utilisationPercent, temperatureC: row.temperatureC, powerW: row.powerW },
      ...{ health, ageMs },
      ...(isUnified(row) && { isUnified: true }),
      ...(trouble !== undefined && { note: trouble.reason }),
    };
  }

  /** The parent of instances can run nothing itself. Without instances it is shown, so that somebody wonders. */
  #instancesOf(parent: Seen, nowMs: number): GpuReading[] {
    const instances = this.#mig?.instances.filter(({ gpuUuid }) => gpuUuid === parent.row.uuid) ?? [];
    if (instances.length === 0) {
      const reason =
        this.#mig === undefined
          ? 'MIG is on, and its instances have not been read yet'
          : 'MIG is on and has no instance with compute units; make one with `nvidia-smi mig -cgi ... -C`';
      return [this.#reading(parent, { nowMs, trouble: { health: 'unreadable', reason } })];
    }
    const { index, name, temperatureC, powerW } = parent.row;
    const ageMs = nowMs - this.migAtMs;
    return instances.map(({ uuid, device, profile, totalMiB, usedMiB, freeMiB }): GpuReading => {
      const isStale = ageMs > this.#options.migStaleMs;
      const values = { index, uuid, totalMiB, usedMiB, freeMiB, utilisationPercent: null, temperatureC, powerW, ageMs };
      const shown = { ...values, name: `${name} MIG ${profile ?? 'instance'} #${device}` };
      if (freeMiB !== null) return { ...shown, health: isStale ? 'stale' : 'ok' };
      return { ...shown, health: 'unreadable', note: 'nvidia-smi does not show the memory of this instance' };
    });
  }

  /** Where the message did not tell their index, they fill the gaps. */
  #namelessReadings(): GpuReading[] {
    const taken = new Set([...this.#seen.values()].map(({ row }) => row.index));
    return [...this.#nameless].map(([key, loss]) => {
      let index = loss.index ?? 0;
      while (loss.index === undefined && taken.has(index)) index += 1;
      taken.add(index);
      return namelessReading({ key, index, said: loss.said });
    });
  }
}

function isNamed(row: GpuRow, { busId, index }: NamedLoss): boolean {
  return busId === undefined || row.busId === undefined ? row.index === index : row.busId === busId;
}

function isUnified({ name, isMemoryUnsupported, totalMiB }: GpuRow): boolean {
  // One of them (N1X) reports a number, which is far too small. One that reports an error may be lost.
  return UNIFIED.test(name) && (isMemoryUnsupported || totalMiB !== null);
}

function withHostMemory(row: GpuRow): GpuRow {
  const { totalMiB, availableMiB } = readHostMemory();
  return { ...row, totalMiB, freeMiB: availableMiB, usedMiB: totalMiB - availableMiB };
}

function namelessReading({ key, index, said }: { key: string; index: number; said: string }): GpuReading {
  return {
    ...{ index, uuid: `lost-${key}`, name: 'GPU that does not answer', totalMiB: null, usedMiB: null, freeMiB: null },
    ...{ utilisationPercent: null, temperatureC: null, powerW: null, health: 'lost', ageMs: 0 },
    note: lostText(index, said),
  };
}

function lostText(index: number, said: string): string {
  const text = `GPU ${index} is lost: ${said.replace(/\.$/, '')}.`;
  return /reboot/i.test(text) ? text : `${text} Reboot the host to get it back.`;
}

function byIndexThenName(a: GpuReading, b: GpuReading): number {
  return a.index - b.index || a.name.localeCompare(b.name, 'en', { numeric: true });
}
