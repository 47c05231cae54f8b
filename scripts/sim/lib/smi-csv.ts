import type { Ledger, LedgerGpu, LedgerInstance } from './ledger.ts';
import { availableMiB, reservedMiB } from './ledger.ts';

export const DRIVER_VERSION = '580.95.05';

/** One GPU at one moment. */
export type GpuRow = { gpu: LedgerGpu; reservedMiB: number; usedMiB: number; freeMiB: number; isBusy: boolean };
/** One process on one GPU. */
export type AppRow = {
  gpu: LedgerGpu;
  instance: LedgerInstance | undefined;
  pid: number;
  name: string;
  usedMiB: number | '[N/A]';
};

const RENUMBERED_BY = 1_000_000;

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
  ['memory.total', { unit: 'MiB', value: (row: GpuRow) => shown(row, row.gpu.totalMiB) }],
  ['memory.used', { unit: 'MiB', value: (row: GpuRow) => shown(row, row.usedMiB) }],
  ['memory.free', { unit: 'MiB', value: (row: GpuRow) => shown(row, row.freeMiB) }],
  ['memory.reserved', { unit: 'MiB', value: (row: GpuRow) => shown(row, row.reservedMiB) }],
  ['mig.mode.current', { value: ({ gpu }: GpuRow) => (gpu.mig === undefined ? '[N/A]' : 'Enabled') }],
  ['utilization.gpu', { unit: '%', value: (row: GpuRow) => utilisation(row) }],
  ['temperature.gpu', { value: (row: GpuRow) => temperature(row) }],
  ['power.draw', { unit: 'W', value: (row: GpuRow) => power(row) }],
  ['pstate', { value: (row: GpuRow) => pstate(row) }],
]);

export const APP_FIELDS: Fields<AppRow> = new Map([
  ['timestamp', { value: () => timestamp(new Date()) }],
  ['gpu_name', { value: ({ gpu }: AppRow) => gpu.name }],
  ['gpu_uuid', { value: ({ gpu }: AppRow) => gpu.uuid }],
  ['pid', { value: ({ pid }: AppRow) => pid }],
  ['process_name', { value: ({ name }: AppRow) => name }],
  ['name', { value: ({ name }: AppRow) => name }],
  ['used_gpu_memory', { unit: 'MiB', value: ({ usedMiB }: AppRow) => usedMiB }],
  ['used_memory', { unit: 'MiB', value: ({ usedMiB }: AppRow) => usedMiB }],
]);

export function gpuRows(ledger: Ledger, gpus: LedgerGpu[]): GpuRow[] {
  return gpus.map((gpu) => gpuRow(ledger, gpu));
}

/** Also of an instance, which holds what is noted under its own UUID. */
export function gpuRow(ledger: Ledger, gpu: LedgerGpu): GpuRow {
  const held = ledger.entries().filter((entry) => entry.gpuUuid === gpu.uuid);
  // total = used + free + reserved always holds, also while two engines find out that they do not both fit.
  const available = availableMiB(gpu);
  const usedMiB = Math.min(available, Math.round(held.reduce((sum, entry) => sum + entry.usedMiB, 0)));
  const isBusy = held.some((entry) => entry.isAlive && entry.isBusy === true);
  return { gpu, reservedMiB: reservedMiB(gpu), usedMiB, freeMiB: available - usedMiB, isBusy };
}

/** Living processes only, unless told otherwise: memory that lingers after a death has no process any more. */
export function appRows(ledger: Ledger, gpus: LedgerGpu[]): AppRow[] {
  if (ledger.has('hides-processes')) return [];
  const listsDead = ledger.has('lists-lingering');
  const hidesMemory = ledger.has('hides-memory-of-processes');
  const addMore = ledger.has('renumbers-pids') ? RENUMBERED_BY : 0;
  const entries = ledger.entries().filter((entry) => (listsDead || entry.isAlive) && entry.usedMiB > 0);
  return gpus.flatMap((gpu) =>
    entries.flatMap(({ gpuUuid, pid, name, usedMiB }): AppRow[] => {
      const instance = gpu.mig?.find(({ uuid }) => uuid === gpuUuid);
      if (gpuUuid !== gpu.uuid && instance === undefined) return [];
      return [{ gpu, instance, pid: pid + addMore, name, usedMiB: hidesMemory ? '[N/A]' : Math.round(usedMiB) }];
    }),
  );
}

/** `style` holds the words of --format: csv, noheader, nounits. */
export function csv<Row>(rows: Row[], fields: Fields<Row>, style: string[]): string {
  const isBare = style.includes('nounits');
  const header = [...fields].map(([name, { unit }]) => (unit === undefined || isBare ? name : `${name} [${unit}]`));
  const lines = rows.map((row) =>
    [...fields.values()].map(({ unit, value }) => {
      const cell = String(value(row));
      return unit === undefined || isBare || cell.startsWith('[') ? cell : `${cell} ${unit}`;
    }),
  );
  return [...(style.includes('noheader') ? [] : [header]), ...lines].map((cells) => `${cells.join(', ')}\n`).join('');
}

/** Of an integrated device the driver knows no memory; of a GPU that is cut, only its instances'. */
function shown({ gpu }: GpuRow, mib: number): number | string {
  if (gpu.isUnified === true) return '[N/A]';
  return gpu.mig === undefined ? mib : '[Insufficient Permissions]';
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
