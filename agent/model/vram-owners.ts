import type { ForeignProcess } from '../../shared/host-snapshot.ts';
import type { GpuReading } from '../gpu/gpu-sampler.ts';
import type { ComputeApp } from '../gpu/smi-rows.ts';
import type { VramLook } from '../gpu/vram-measure.ts';

/** Whose VRAM is whose, by one look. PURE. */

/** VRAM of one GPU: ours, of others by name, and, as a sentence, what nobody is listed for. */
export type Owners = { oursMiB: number; foreign: ForeignProcess[]; unlisted?: string };

export type Holder = { gpus: readonly string[]; pids: readonly number[]; heldMiB: number };

/** What is known of a listed pid here. `title` is undefined where it cannot be read. */
export type Person = { lives: boolean; title: string | undefined };

type PersonOf = (pid: number) => Person | undefined;

/** A display, the driver itself and contexts take some memory and are listed by nobody. */
const USUAL_MIB = 1_024;
const NOISE_MIB = 64;

export function ownersOf(
  { uuid, usedMiB, isUnified }: GpuReading,
  { look, holders, personOf }: { look: VramLook; holders: readonly Holder[]; personOf: PersonOf },
): Owners {
  const oursMiB = holders.reduce((sum, holder) => sum + heldOn(uuid, holder, look), 0);
  const ours = new Set(holders.flatMap(({ pids }) => pids));
  const foreign = rowsOn(uuid, look)
    .filter(({ pid }) => !ours.has(pid))
    .map((app): ForeignProcess => ({ pid: app.pid, name: nameOf(app, personOf(app.pid)), usedMiB: app.usedMiB ?? 0 }));
  const foreignMiB = foreign.reduce((sum, app) => sum + app.usedMiB, 0);
  // Host RAM is used by all that runs there, and most of that has nothing to do with the GPU.
  const restMiB = usedMiB === null || isUnified === true ? 0 : Math.round(usedMiB - oursMiB - foreignMiB);
  if (restMiB < (look.isNumberedHere ? USUAL_MIB : NOISE_MIB)) return { oursMiB, foreign };
  const unlisted = look.isNumberedHere
    ? `${restMiB} MiB are in use by nothing that nvidia-smi lists here: a display, a container, or a program that ended without giving it back`
    : `${restMiB} MiB are in use by others; who they are cannot be told, because nvidia-smi lists processes by numbers of another machine or container`;
  return { oursMiB, foreign, unlisted };
}

/** By its rows, and where the driver lists no memory for it, what it took by the readings of free memory. */
function heldOn(uuid: string, { gpus, pids, heldMiB }: Holder, look: VramLook): number {
  const rows = look.isNumberedHere ? look.apps.filter(({ pid }) => pids.includes(pid)) : [];
  const listed = rows.filter(({ usedMiB }) => usedMiB !== null);
  if (listed.length > 0) {
    return listed.reduce((sum, { gpuUuid, usedMiB }) => sum + (gpuUuid === uuid ? (usedMiB ?? 0) : 0), 0);
  }
  return gpus.includes(uuid) ? heldMiB / gpus.length : 0;
}

function rowsOn(uuid: string, { apps, isNumberedHere }: VramLook): readonly ComputeApp[] {
  return isNumberedHere ? apps.filter(({ gpuUuid }) => gpuUuid === uuid) : [];
}

/** What it calls itself, else what nvidia-smi calls it. One that ended is a context that the driver did not clean up. */
function nameOf({ name }: ComputeApp, person: Person | undefined): string {
  if (person?.lives !== false) return person?.title ?? name ?? 'unknown';
  return name === undefined ? 'unowned VRAM' : `unowned VRAM, was ${name}`;
}
