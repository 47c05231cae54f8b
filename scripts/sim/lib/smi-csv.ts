import type { HeldMemory, Ledger, LedgerGpu } from './ledger.ts';
import { availableMiB, reservedMiB } from './ledger.ts';

export const DRIVER_VERSION = '580.95.05';

/** One GPU at one moment. */
export type GpuRow = { gpu: LedgerGpu; reservedMiB: number; usedMiB: number; freeMiB: number; isBusy: boolean };
/** One process on one GPU. */
export type AppRow = { gpu: LedgerGpu; entry: HeldMemory };

/** A field's value and, for those that have one, its unit. */
export type Fields<Row> = ReadonlyMap<string, { unit?: string; value: (row: Row) => string | number }>;

export const GPU_FIELDS: Fields<GpuRow> = new Map([
  ['timestamp', { value: () => timestamp(new Date()) }],
  ['index', { value: ({ gpu }: GpuRow) => gpu.index }],
  ['uuid', { value: ({ gpu }: GpuRow) => gpu.uuid }],
  ['gpu_uuid', { value: ({ gpu }: GpuRow) => gpu.uuid }],
  ['name', { value: ({ gpu }: GpuRow) => gpu.name }],
  ['gpu_name', { value: ({ gpu }: GpuRow) => gpu.name }],
  ['driver_version', { value: () => DRIVER_VERSION }],
  ['count', { value: () => 1 }],
  ['pci.bus_id', { value: ({ gpu }: GpuRow) => busId(gpu) }],
  ['persistence_mode', { value: () => 'Enabled' }],
  ['memory.total', { unit: 'MiB', value: ({ gpu }: GpuRow) => gpu.totalMiB }],
  ['memory.used', { unit: 'MiB', value: (row: GpuRow) => row.usedMiB }],
  ['memory.free', { unit: 'MiB', value: (row: GpuRow) => row.freeMiB }],
  ['memory.reserved', { unit: 'MiB', value: (row: GpuRow) => row.reservedMiB }],
  ['utilization.gpu', { unit: '%', value: (row: GpuRow) => utilisation(row) }],
  ['temperature.gpu', { value: (row: GpuRow) => temperature(row) }],
  ['power.draw', { unit: 'W', value: (row: GpuRow) => power(row) }],
  ['pstate', { value: (row: GpuRow) => pstate(row) }],
]);

export const APP_FIELDS: Fields<AppRow> = new Map([
  ['timestamp', { value: () => timestamp(new Date()) }],
  ['gpu_name', { value: ({ gpu }: AppRow) => gpu.name }],
  ['gpu_uuid', { value: ({ gpu }: AppRow) => gpu.uuid }],
  ['pid', { value: ({ entry }: AppRow) => entry.pid }],
  ['process_name', { value: ({ entry }: AppRow) => entry.name }],
  ['name', { value: ({ entry }: AppRow) => entry.name }],
  ['used_gpu_memory', { unit: 'MiB', value: ({ entry }: AppRow) => entry.usedMiB }],
  ['used_memory', { unit: 'MiB', value: ({ entry }: AppRow) => entry.usedMiB }],
]);

export function gpuRows(ledger: Ledger, gpus: LedgerGpu[]): GpuRow[] {
  const entries = ledger.entries();
  return gpus.map((gpu) => {
    const held = entries.filter((entry) => entry.gpuUuid === gpu.uuid);
    // total = used + free + reserved always holds, also while two engines find out that they do not both fit.
    const available = availableMiB(gpu);
    const usedMiB = Math.min(available, Math.round(held.reduce((sum, entry) => sum + entry.usedMiB, 0)));
    const isBusy = held.some((entry) => entry.isAlive && entry.isBusy === true);
    return { gpu, reservedMiB: reservedMiB(gpu), usedMiB, freeMiB: available - usedMiB, isBusy };
  });
}

/** Living processes only: memory that lingers after a death has no process any more, as with the real driver. */
export function appRows(ledger: Ledger, gpus: LedgerGpu[]): AppRow[] {
  const entries = ledger.entries().filter((entry) => entry.isAlive && entry.usedMiB > 0);
  return gpus.flatMap((gpu) =>
    entries
      .filter((entry) => entry.gpuUuid === gpu.uuid)
      .map((entry) => ({ gpu, entry: { ...entry, usedMiB: Math.round(entry.usedMiB) } })),
  );
}

/** `style` holds the words of --format: csv, noheader, nounits. */
export function csv<Row>(rows: Row[], fields: Fields<Row>, style: string[]): string {
  const isBare = style.includes('nounits');
  const header = [...fields].map(([name, { unit }]) => (unit === undefined || isBare ? name : `${name} [${unit}]`));
  const lines = rows.map((row) =>
    [...fields.values()].map(({ unit, value }) =>
      unit === undefined || isBare ? String(value(row)) : `${value(row)} ${unit}`,
    ),
  );
  return [...(style.includes('noheader') ? [] : [header]), ...lines].map((cells) => `${cells.join(', ')}\n`).join('');
}

export function utilisation({ isBusy }: GpuRow): number {
  return isBusy ? 100 : 0;
}

export function temperature({ isBusy }: GpuRow): number {
  return isBusy ? 67 : 34;
}

export function power({ isBusy }: GpuRow): string {
  return isBusy ? '412.37' : '61.52';
}

export function pstate({ isBusy, usedMiB }: GpuRow): string {
  return isBusy || usedMiB > 0 ? 'P0' : 'P8';
}

export function busId(gpu: LedgerGpu): string {
  return `00000000:${(gpu.index + 1).toString(16).toUpperCase().padStart(2, '0')}:00.0`;
}

/** As in the real output: 2026/09/30 12:00:00.123, local time. */
function timestamp(at: Date): string {
  const two = (part: number): string => String(part).padStart(2, '0');
  const day = `${at.getFullYear()}/${two(at.getMonth() + 1)}/${two(at.getDate())}`;
  const time = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  return `${day} ${time}.${String(at.getMilliseconds()).padStart(3, '0')}`;
}
