import { z } from 'zod';
import type { ComputeApp, ListedDevice } from './smi-rows.ts';
import { numberOrNull, processNameIn } from './smi-rows.ts';

const Text = z.string().optional();

/** What xml2js makes of elements of one name: an object of one, an array of several, text such as "None" of none. */
function elements<T>(schema: z.ZodType<T>): z.ZodType<T[]> {
  return z.unknown().optional().transform(objectsIn).pipe(z.array(schema));
}

/** Those inside an element that has nothing else. */
function section<T>(name: string, schema: z.ZodType<T>): z.ZodType<T[]> {
  const inside = z.record(z.string(), z.unknown()).transform((element) => objectsIn(element[name]));
  return z
    .union([inside, z.string().transform(() => [])])
    .default([])
    .pipe(z.array(schema));
}

function objectsIn(value: unknown): unknown[] {
  const all: unknown[] = Array.isArray(value) ? value : [value];
  return all.filter((one) => typeof one === 'object');
}

const Memory = z.object({ total: Text, used: Text, free: Text }).optional();

const MigDevice = z.object({
  index: z.string(),
  gpu_instance_id: z.string(),
  compute_instance_id: z.string().default('0'),
  /** Most drivers leave it out: then `nvidia-smi -L` has it. */
  uuid: Text,
  fb_memory_usage: Memory,
});

const ProcessEntry = z.object({
  pid: z.string(),
  process_name: z.string().default(''),
  used_memory: z.string().default(''),
  gpu_instance_id: z.string().default('N/A'),
  compute_instance_id: z.string().default('N/A'),
});

const Gpu = z.object({
  uuid: z.string().default(''),
  mig_devices: section('mig_device', MigDevice),
  processes: section('process_info', ProcessEntry),
});

/** Only what is used of `nvidia-smi -q -x`; its other names change with every driver. */
export const SmiLog = z.object({
  nvidia_smi_log: z.object({ driver_version: z.string(), gpu: elements(Gpu) }),
});
export type SmiLog = z.infer<typeof SmiLog>;

/** One instance of a MIG GPU; its memory is shown in the XML only. */
export type MigInstance = {
  uuid: string;
  gpuUuid: string;
  device: number;
  profile: string | undefined;
  totalMiB: number | null;
  usedMiB: number | null;
  freeMiB: number | null;
};

/** Undefined for text that is no whole answer to `nvidia-smi -q -x`. */
export function parseSmiXml(text: string): SmiLog | undefined {
  return SmiLog.safeParse(parseXml(text)).data;
}

export function hasNamelessInstances(log: SmiLog): boolean {
  return log.nvidia_smi_log.gpu.some(({ mig_devices }) => mig_devices.some(({ uuid }) => uuid === undefined));
}

/** Instances of whatever GPU has some. `listed` is what `nvidia-smi -L` says; one without a UUID there is left out. */
export function migInstances(log: SmiLog, listed: readonly ListedDevice[]): MigInstance[] {
  return log.nvidia_smi_log.gpu.flatMap((gpu) =>
    gpu.mig_devices.flatMap((device): MigInstance[] => {
      const known = listed.find(
        ({ gpuUuid, mig }) => gpuUuid === gpu.uuid && mig?.device === Number(device.index),
      )?.mig;
      const uuid = device.uuid ?? known?.uuid;
      if (uuid === undefined) return [];
      const { total, used, free } = device.fb_memory_usage ?? {};
      return [
        {
          ...{ uuid, gpuUuid: gpu.uuid, device: Number(device.index), profile: known?.profile },
          ...{ totalMiB: mib(total), usedMiB: mib(used), freeMiB: mib(free) },
        },
      ];
    }),
  );
}

/** Compute processes of all GPUs; those of an instance carry its UUID. */
export function xmlApps(log: SmiLog, listed: readonly ListedDevice[]): ComputeApp[] {
  return log.nvidia_smi_log.gpu.flatMap((gpu) =>
    gpu.processes.map((entry): ComputeApp => {
      const device = gpu.mig_devices.find(
        ({ gpu_instance_id, compute_instance_id }) =>
          gpu_instance_id === entry.gpu_instance_id && compute_instance_id === entry.compute_instance_id,
      );
      const named = listed.find(({ gpuUuid, mig }) => gpuUuid === gpu.uuid && String(mig?.device) === device?.index);
      return {
        pid: Number(entry.pid),
        gpuUuid: device?.uuid ?? (device && named?.mig?.uuid) ?? gpu.uuid,
        usedMiB: mib(entry.used_memory),
        name: processNameIn(entry.process_name),
      };
    }),
  );
}

function mib(text: string | undefined): number | null {
  return numberOrNull(text?.replace(/ MiB$/, '') ?? '');
}

type Element = { [name: string]: Element | string | (Element | string)[] };

/**
 * The elements of a document in the shape of node-nvidia-smi's. That package cannot be used while servers move: it has no
 * time limit, and nothing can end its child. Attributes are skipped; undefined where an element is left open.
 */
function parseXml(text: string): Element | undefined {
  const root: Element = {};
  const open: { name: string; element: Element; text: string }[] = [{ name: '', element: root, text: '' }];
  for (const [, closing, name = '', empty, words = ''] of text.matchAll(
    /<(?:[?!][^>]*|(\/)?([A-Za-z_][\w.-]*)[^>]*?(\/)?)>([^<]*)/g,
  )) {
    const top = open.at(-1);
    if (top === undefined) return undefined;
    if (closing !== undefined) {
      const parent = open.at(-2);
      if (top.name !== name || parent === undefined) return undefined;
      open.pop();
      add(parent.element, {
        name,
        value: Object.keys(top.element).length > 0 ? top.element : unescaped(top.text.trim()),
      });
      parent.text += words;
    } else if (empty !== undefined) add(top.element, { name, value: '' });
    else if (name !== '') open.push({ name, element: {}, text: words });
  }
  return open.length === 1 ? root : undefined;
}

function add(element: Element, { name, value }: { name: string; value: Element | string }): void {
  const before = Object.hasOwn(element, name) ? element[name] : undefined;
  if (before === undefined) element[name] = value;
  else if (Array.isArray(before)) before.push(value);
  else element[name] = [before, value];
}

function unescaped(text: string): string {
  return text
    .replaceAll('&lt;', '<')
    .replaceAll('&gt;', '>')
    .replaceAll('&quot;', '"')
    .replaceAll('&apos;', "'")
    .replaceAll('&amp;', '&');
}
