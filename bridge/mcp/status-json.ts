import { z } from 'zod';
import type { GpuStatus, HostSnapshot, ModelStatus } from '../../shared/host-snapshot.ts';
import type { HostView } from '../fleet/host-view.ts';
import { concurrentAtMost } from './concurrency.ts';
import { gb, knownGb, seconds } from './units.ts';

/** PURE. One GPU in the words of the tools; a value that it does not report is left out. */
export const GpuJson = z.object({
  gpu_name: z.string(),
  index: z.int(),
  total_vram_gb: z.number().optional(),
  used_vram_gb: z.number().optional(),
  free_vram_gb: z.number().optional(),
  ours_vram_gb: z.number(),
  foreign: z.array(z.object({ pid: z.int(), name: z.string(), used_gb: z.number() })),
  utilisation_percent: z.number().optional(),
  temperature_c: z.number().optional(),
  power_w: z.number().optional(),
  health: z.string(),
  age_seconds: z.number(),
  is_stale: z.boolean(),
  is_degraded: z.boolean(),
  /** True where its memory is the host's RAM. */
  is_unified: z.boolean().optional(),
  /** Why it cannot be used, whose memory is missing, what is in use by nobody known. */
  notes: z.array(z.string()).optional(),
});

/** Weights on their way to the host's disk; a value nobody knows yet is left out. */
export const DownloadJson = z.object({
  done_gb: z.number(),
  total_gb: z.number().optional(),
  mb_per_second: z.number().optional(),
  left_seconds: z.number().optional(),
});

export const ModelJson = z.object({
  model: z.string(),
  alias: z.string(),
  state: z.string(),
  model_location: z.string(),
  detail: z.string().optional(),
  download: DownloadJson.optional(),
  vram_gb: z.number(),
  /** Instead of a reading, where its GPU cannot be read: by the model's profile. */
  estimated_vram_gb: z.number().optional(),
  idle_time: z.number(),
  /** Idle this long it is offloaded, and released; null means never. */
  idle_timeout: z.number().nullable().optional(),
  release_timeout: z.number().nullable().optional(),
  stays_away_seconds: z.number().optional(),
  statistics: z.object({
    jobs_done: z.int(),
    total_loads: z.int(),
    gpu_to_cpu: z.int(),
    cpu_to_gpu: z.int().optional(),
    full_releases: z.int(),
  }),
});

export const HostGpuJson = z.object({
  host: z.string(),
  status: z.string(),
  problem: z.string().optional(),
  is_simulated: z.boolean().optional(),
  status_age_seconds: z.number().optional(),
  host_ram_free_gb: z.number().optional(),
  /** Why the VRAM there can only be estimated; absent where it is read. */
  estimated: z.string().optional(),
  gpus: z.array(GpuJson),
  models: z.array(ModelJson),
  recommended_max_concurrent: z.int(),
});

export function hostGpuJson(host: HostView, problem: string | undefined): z.input<typeof HostGpuJson> {
  const { snapshot } = host;
  const head = { host: host.name, status: host.link.kind, ...(problem !== undefined && { problem }) };
  if (snapshot === undefined) return { ...head, gpus: [], models: [], recommended_max_concurrent: 0 };
  return {
    ...head,
    is_simulated: snapshot.isSimulated,
    status_age_seconds: seconds(host.statusAgeMs),
    host_ram_free_gb: gb(snapshot.memory.freeMiB),
    ...(snapshot.vramEstimate !== undefined && { estimated: snapshot.vramEstimate }),
    gpus: snapshot.gpus.map((gpu) => gpuJson(gpu, host.statusAgeMs)),
    models: snapshot.models.map((model) => modelJson(model, snapshot)),
    recommended_max_concurrent: concurrentAtMost(snapshot),
  };
}

export function downloadJson({ download }: ModelStatus): { download?: z.input<typeof DownloadJson> } {
  if (download === undefined) return {};
  const { doneMiB, totalMiB, mibPerSecond, leftMs } = download;
  return {
    download: {
      done_gb: gb(doneMiB),
      total_gb: knownGb(totalMiB),
      mb_per_second: mibPerSecond === null ? undefined : Math.round(mibPerSecond * 10) / 10,
      left_seconds: leftMs === null ? undefined : seconds(leftMs),
    },
  };
}

/** Where a model's weights are, in the words of the predecessors. On the host's disk they are nowhere yet. */
export function modelLocation({
  state,
  download,
}: Pick<ModelStatus, 'state' | 'download'>): 'GPU' | 'CPU' | 'Unloaded' {
  if (download !== undefined) return 'Unloaded';
  switch (state) {
    case 'ready':
    case 'loading':
    case 'offloading':
    case 'unknown':
      return 'GPU';
    case 'offloaded':
      return 'CPU';
    case 'released':
    case 'releasing':
    case 'failed':
      return 'Unloaded';
  }
}

function gpuJson(gpu: GpuStatus, statusAgeMs: number): z.input<typeof GpuJson> {
  return {
    gpu_name: gpu.name,
    index: gpu.index,
    total_vram_gb: knownGb(gpu.totalMiB),
    used_vram_gb: knownGb(gpu.usedMiB),
    free_vram_gb: knownGb(gpu.freeMiB),
    ours_vram_gb: gb(gpu.oursMiB),
    foreign: gpu.foreign.map(({ pid, name, usedMiB }) => ({ pid, name, used_gb: gb(usedMiB) })),
    utilisation_percent: gpu.utilisationPercent ?? undefined,
    temperature_c: gpu.temperatureC ?? undefined,
    power_w: gpu.powerW ?? undefined,
    health: gpu.health,
    age_seconds: seconds(gpu.ageMs + statusAgeMs),
    is_stale: gpu.health === 'stale',
    is_degraded: gpu.isDegraded,
    is_unified: gpu.isUnified,
    notes: notesOf(gpu),
  };
}

/** Undefined where there is nothing to say. */
function notesOf({ note, degraded, unlisted }: GpuStatus): string[] | undefined {
  const notes = [note, degraded, unlisted].flatMap((text) => text ?? []);
  return notes.length === 0 ? undefined : notes;
}

function modelJson(model: ModelStatus, { vramEstimate }: HostSnapshot): z.input<typeof ModelJson> {
  return {
    model: model.model,
    alias: model.alias,
    state: model.state,
    model_location: modelLocation(model),
    ...(model.detail !== undefined && { detail: model.detail }),
    ...downloadJson(model),
    vram_gb: gb(model.heldMiB),
    ...(vramEstimate !== undefined && model.state === 'ready' && { estimated_vram_gb: gb(model.loadedMiB) }),
    idle_time: seconds(model.idleMs),
    idle_timeout: knownSeconds(model.offloadAfterMs),
    release_timeout: knownSeconds(model.releaseAfterMs),
    ...(model.heldAwayMs > 0 && { stays_away_seconds: seconds(model.heldAwayMs) }),
    statistics: {
      jobs_done: model.jobsDone,
      total_loads: model.loads,
      gpu_to_cpu: model.offloads,
      cpu_to_gpu: model.wakes,
      full_releases: model.releases,
    },
  };
}

/** Null is said, as "never"; what an older agent does not tell is left out. */
function knownSeconds(ms: number | null | undefined): number | null | undefined {
  return typeof ms === 'number' ? seconds(ms) : ms;
}
