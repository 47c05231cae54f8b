import { z } from 'zod';
import { JobClass, ModelId } from './job.ts';
import { ModelProfile } from './model-profile.ts';
import { ServiceTime } from './service-time.ts';

export const GpuHealth = z.enum(['ok', 'stale', 'lost', 'unreadable', 'absent', 'unknown']).catch('unknown');
export type GpuHealth = z.infer<typeof GpuHealth>;

const MiB = z.number().nonnegative();

/** A process on a GPU that is not ours. It is shown, never touched. */
export const ForeignProcess = z.object({ pid: z.int(), name: z.string(), usedMiB: MiB });
export type ForeignProcess = z.infer<typeof ForeignProcess>;

/** One GPU as nvidia-smi shows it; a value it does not report is null, never 0. */
export const GpuStatus = z.object({
  uuid: z.string(),
  index: z.int(),
  name: z.string(),
  totalMiB: MiB.nullable(),
  usedMiB: MiB.nullable(),
  freeMiB: MiB.nullable(),
  utilisationPercent: z.number().nullable(),
  temperatureC: z.number().nullable(),
  powerW: z.number().nullable(),
  health: GpuHealth,
  /** Time since nvidia-smi printed these values. */
  ageMs: z.number().nonnegative(),
  /** Memory of a dead server did not come back: no grants here until it does. */
  isDegraded: z.boolean(),
  /** Whose memory is missing there: MiB and pids, for a person. */
  degraded: z.string().optional(),
  /** Its memory is the host's RAM, shared with everything that runs there. */
  isUnified: z.boolean().optional(),
  /** Why it cannot be used, for a person. */
  note: z.string().optional(),
  /** VRAM of our servers by their process trees. */
  oursMiB: MiB,
  foreign: z.array(ForeignProcess),
  /** How much is in use by nobody who can be named, and why, for a person. */
  unlisted: z.string().optional(),
});
export type GpuStatus = z.infer<typeof GpuStatus>;

export const ModelStateKind = z
  .enum(['released', 'loading', 'ready', 'offloading', 'offloaded', 'releasing', 'failed', 'unknown'])
  .catch('unknown');
export type ModelStateKind = z.infer<typeof ModelStateKind>;

export const SlotPhase = z
  .enum(['idle', 'granted', 'accepted', 'running', 'closed', 'cannot', 'unknown'])
  .catch('unknown');
export type SlotPhase = z.infer<typeof SlotPhase>;

/** The right to run one job on one configured server, up or not. */
export const SlotStatus = z.object({
  slotId: z.string(),
  phase: SlotPhase,
  /** Expected time until the slot is idle; 0 when it is. */
  freeInMs: z.number().nonnegative(),
  /** Why the slot gives no grants, for `closed` and `cannot`. */
  reason: z.string().optional(),
  /** The job it runs was cancelled; the engine cannot be interrupted, so the slot stays busy until it ends. */
  isCancelled: z.boolean(),
});
export type SlotStatus = z.infer<typeof SlotStatus>;

/** What jobs of one model can have on a host at the very most, however long they wait, and what they need. */
export const VramCapacity = z.object({
  /** Once everything that may go has gone, other programs included. */
  mostMiB: MiB,
  /** A larger job never fits there; 0 where none does. */
  fitsMegapixels: z.number().nonnegative(),
  /** What some sizes need, smallest first. */
  peaks: z.array(z.object({ megapixels: z.number().positive(), peakMiB: MiB })),
});
export type VramCapacity = z.infer<typeof VramCapacity>;

/** One configured model with its server (or the busiest of its replicas). Times and MiB are learned where `isMeasured`. */
export const ModelStatus = z.object({
  model: ModelId,
  alias: z.string(),
  engine: z.enum(['vllm-omni', 'step1x-edit', 'unknown']).catch('unknown'),
  isAttached: z.boolean(),
  profile: ModelProfile,
  /** 'fallback' means that nothing is known about the model and defaults are used. */
  profileFrom: z.enum(['shipped', 'configured', 'fallback', 'unknown']).catch('unknown'),
  state: ModelStateKind,
  /** Why it failed, or what it is doing, for a person. */
  detail: z.string().optional(),
  gpus: z.array(z.string()),
  /** Its weights on their way to the disk of the host; absent when they are there. `totalMiB` is null where unknown. */
  download: z
    .object({ doneMiB: MiB, totalMiB: MiB.nullable(), mibPerSecond: MiB.nullable(), leftMs: MiB.nullable() })
    .optional(),
  /** VRAM its process tree holds now, by nvidia-smi. */
  heldMiB: MiB,
  isPinned: z.boolean(),
  /** Idle time after which it is offloaded, and released; null where it is not. Absent from older agents. */
  offloadAfterMs: z.number().nonnegative().nullable().optional(),
  releaseAfterMs: z.number().nonnegative().nullable().optional(),
  loadedMiB: MiB,
  peakMiB: MiB,
  /** Absent where it cannot be told, for attached models, and from older agents. */
  capacity: VramCapacity.optional(),
  isMeasured: z.boolean(),
  loadMs: z.number().nonnegative(),
  wakeMs: z.number().nonnegative(),
  service: ServiceTime,
  /** Time since its last job ended, or since it became ready. */
  idleMs: z.number().nonnegative(),
  /** After a person's offload or release: how long batch work will not bring the model back. */
  heldAwayMs: z.number().nonnegative(),
  jobsDone: z.int().nonnegative(),
  loads: z.int().nonnegative(),
  /** Times it came back from offloaded. Absent from older agents. */
  wakes: z.int().nonnegative().optional(),
  offloads: z.int().nonnegative(),
  releases: z.int().nonnegative(),
  version: z.string().optional(),
  slots: z.array(SlotStatus),
});
export type ModelStatus = z.infer<typeof ModelStatus>;

/** Work offered by all bridges, as counts only. */
export const OfferedWork = z.object({
  model: ModelId,
  class: JobClass,
  count: z.int().nonnegative(),
  workMs: z.number().nonnegative(),
  /** How many bridges offer it. Absent from older agents. */
  sessions: z.int().nonnegative().optional(),
});
export type OfferedWork = z.infer<typeof OfferedWork>;

/** What an agent reports about its host. It carries counts, never job ids, prompts or paths. */
export const HostSnapshot = z.object({
  agentId: z.string(),
  hostname: z.string(),
  agentVersion: z.string(),
  /** True where the GPUs and engines are simulators. */
  isSimulated: z.boolean(),
  isDraining: z.boolean(),
  driver: z.string().nullable(),
  /** Why the host cannot do all of its work, in sentences; empty when it can. */
  problems: z.array(z.string()),
  gpus: z.array(GpuStatus),
  /** Why what its models hold can only be estimated, in a sentence: no GPU is read, and all servers are somebody else's. */
  vramEstimate: z.string().optional(),
  memory: z.object({ totalMiB: MiB, freeMiB: MiB }),
  disk: z.object({ freeMiB: MiB.nullable() }),
  models: z.array(ModelStatus),
  offered: z.array(OfferedWork),
});
export type HostSnapshot = z.infer<typeof HostSnapshot>;
