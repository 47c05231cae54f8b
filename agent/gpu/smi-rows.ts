import type { GpuHealth } from '../../shared/host-snapshot.ts';

/** What nvidia-smi says in its CSV form, as values. PURE. */

/** What drivers report that are older than MIG, too. */
const USUAL_FIELDS = [
  'timestamp',
  'index',
  'uuid',
  'name',
  'pci.bus_id',
  'memory.total',
  'memory.used',
  'memory.free',
  'utilization.gpu',
  'temperature.gpu',
  'power.draw',
] as const;

/** Tried once at start, top to bottom: one unknown field fails the whole query, and older drivers lack some. */
export const FIELD_LADDER = [
  [...USUAL_FIELDS, 'mig.mode.current'],
  USUAL_FIELDS,
  ['index', 'uuid', 'name', 'memory.total', 'memory.used', 'memory.free'],
] as const satisfies readonly (readonly string[])[];

export type Fields = readonly string[];

/** Why a GPU gives no values that can be used, for a person. */
export type Trouble = { health: Exclude<GpuHealth, 'ok' | 'stale' | 'unknown'>; reason: string };

/** One line of `--query-gpu`. A cell that is not a number is null. */
export type GpuRow = {
  index: number;
  uuid: string;
  name: string;
  /** As nvidia-smi's own messages name it; undefined where the driver was not asked. */
  busId: string | undefined;
  totalMiB: number | null;
  usedMiB: number | null;
  freeMiB: number | null;
  utilisationPercent: number | null;
  temperatureC: number | null;
  powerW: number | null;
  /** Cut into instances, of which this row tells nothing. */
  isMig: boolean;
  /** The driver says that this device does not report memory of its own: unified with the host's, or unreadable. */
  isMemoryUnsupported: boolean;
  /** What its cells say instead of a value, where the GPU cannot be used. */
  trouble: Trouble | undefined;
};

export type ComputeApp = { pid: number; gpuUuid: string; usedMiB: number | null; name: string | undefined };

/** The name stands last because it may hold commas. */
export const COMPUTE_APPS_ARGS = [
  '--query-compute-apps=pid,gpu_uuid,used_gpu_memory,process_name',
  '--format=csv,noheader,nounits',
] as const;

export function queryArgs(fields: Fields, only?: readonly string[]): string[] {
  const base = [`--query-gpu=${fields.join(',')}`, '--format=csv,noheader,nounits'];
  return only === undefined ? base : [...base, '-i', only.join(',')];
}

export function loopArgs(
  fields: Fields,
  { intervalMs, only }: { intervalMs: number; only?: readonly string[] | undefined },
): string[] {
  return [...queryArgs(fields, only), '-lms', String(intervalMs)];
}

/** Without the last one where it has no end: half a number is a number too. */
export function wholeLines(text: string): string[] {
  return text.split('\n').slice(0, -1);
}

/** Undefined for anything that is not a whole row: error text, half a line, another number of cells. */
export function parseGpuLine(line: string, fields: Fields): GpuRow | undefined {
  const cells = line.split(',').map((cell) => cell.trim());
  if (cells.length !== fields.length) return undefined;
  const cell = (field: string): string => cells[fields.indexOf(field)] ?? '';
  const index = numberOrNull(cell('index'));
  const uuid = cell('uuid');
  if (index === null || !/^(GPU|MIG)-/.test(uuid)) return undefined;
  const isMig = cell('mig.mode.current') === 'Enabled';
  return {
    index,
    uuid,
    name: cell('name'),
    busId: normalBusId(cell('pci.bus_id')),
    totalMiB: numberOrNull(cell('memory.total')),
    usedMiB: numberOrNull(cell('memory.used')),
    freeMiB: numberOrNull(cell('memory.free')),
    utilisationPercent: numberOrNull(cell('utilization.gpu')),
    temperatureC: numberOrNull(cell('temperature.gpu')),
    powerW: numberOrNull(cell('power.draw')),
    isMig,
    isMemoryUnsupported: /^\[?(N\/A|Not Supported)\]?$/.test(cell('memory.total')),
    trouble: isMig ? lossIn(cells) : (lossIn(cells) ?? troubleWith(cell('memory.free'))),
  };
}

/** Rows without a pid or a GPU are left out; one whose memory is hidden stays. */
export function parseComputeApps(text: string): ComputeApp[] {
  return wholeLines(text).flatMap((line) => {
    const [pid = '', gpuUuid = '', used = '', ...name] = line.split(',').map((cell) => cell.trim());
    if (!/^\d+$/.test(pid) || !/^(GPU|MIG)-/.test(gpuUuid)) return [];
    return [{ pid: Number(pid), gpuUuid, usedMiB: numberOrNull(used), name: processNameIn(name.join(', ')) }];
  });
}

/** The last part of a path; undefined for `[Not Found]`, `[Insufficient Permissions]`, `-` and an empty cell. */
export function processNameIn(cell: string): string | undefined {
  if (/^\[.*\]$|^-?$|^N\/A$/.test(cell)) return undefined;
  return cell.split('/').at(-1) ?? cell;
}

/** One line of `nvidia-smi -L` that names a GPU or an instance. `device` counts the instances of the GPU above it. */
export type ListedDevice = { gpuUuid: string; index: number; mig?: { uuid: string; device: number; profile: string } };

/** Sentences about a lost GPU, which stand between the lines, are left out. */
export function parseDeviceList(text: string): ListedDevice[] {
  const devices: ListedDevice[] = [];
  let parent: ListedDevice | undefined;
  for (const line of wholeLines(text)) {
    const gpu = /^GPU (\d+): .*\(UUID: (GPU-[^)\s]+)\)/.exec(line);
    if (gpu !== null) {
      parent = { gpuUuid: gpu[2] ?? '', index: Number(gpu[1]) };
      devices.push(parent);
    }
    const mig = /^\s+MIG (\S+)\s+Device\s+(\d+): \(UUID: (MIG-[^)\s]+)\)/.exec(line);
    if (mig !== null && parent !== undefined) {
      devices.push({ ...parent, mig: { uuid: mig[3] ?? '', device: Number(mig[2]), profile: mig[1] ?? '' } });
    }
  }
  return devices;
}

/** A number or null: `[N/A]`, `[Not Supported]`, `ERR!`, an empty cell and all other words are no number. */
export function numberOrNull(cell: string): number | null {
  return /^-?\d+(\.\d+)?$/.test(cell) ? Number(cell) : null;
}

/** Queries say 00000000:02:00.0 where messages say 0000:02:00.0. */
export function normalBusId(text: string): string | undefined {
  const id = /^(?:0{4})?([0-9A-F]{4}:[0-9A-F]{2}:[0-9A-F]{2}\.\d)$/i.exec(text)?.[1];
  return id?.toUpperCase();
}

/** A GPU that fell off the bus says so in every cell that the driver would have to ask it for. */
function lossIn(cells: readonly string[]): Trouble | undefined {
  return cells.includes('[GPU is lost]') ? { health: 'lost', reason: 'it fell off the bus' } : undefined;
}

/** Without its free memory a GPU cannot be planned for, whatever the other cells say. */
function troubleWith(free: string): Trouble | undefined {
  if (numberOrNull(free) !== null) return undefined;
  if (/requires reset/i.test(free)) return { health: 'lost', reason: 'it requires a reset' };
  return { health: 'unreadable', reason: `nvidia-smi says "${free.replace(/^\[|\]$/g, '')}" for its memory` };
}
