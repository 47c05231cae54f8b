import type { HostSnapshot, ModelStatus, SlotStatus, VramCapacity } from '../../shared/host-snapshot.ts';
import type { JobClass, JobRequest } from '../../shared/job.ts';
import { megapixelsOf } from '../../shared/job.ts';
import type { ServiceTime } from '../../shared/service-time.ts';
import type { HostView } from './host-view.ts';

/**
 * Why a host cannot take a job. `isForever` means that waiting will not help: its configuration or hardware must change. `mend` is what
 * anybody can do at once, as a sentence.
 */
export type Refusal = { host: string; reason: string; isForever: boolean; mend?: string };

export type Capable = { host: HostView; snapshot: HostSnapshot; model: ModelStatus; slots: readonly SlotStatus[] };

/** Pixels are most of what a job needs beside the model itself. */
export type JobSize = { megapixels: number; text: string };

export function sizeOf(request: JobRequest): JobSize {
  const megapixels = megapixelsOf(request);
  const { width, height } = request;
  const isExact = width !== undefined && height !== undefined;
  return { megapixels, text: isExact ? `${width}x${height}` : `${megapixels.toFixed(1)} megapixels` };
}

/** The host's model and usable slots, or why it cannot take a job of this model now. */
export function capableHost(
  host: HostView,
  want: { model: string; class: JobClass; kind: JobRequest['kind'] | undefined; size?: JobSize },
): Capable | Refusal {
  const refuse = (reason: string, isForever = false): Refusal => ({ host: host.name, reason, isForever });
  const { snapshot } = host;
  if (host.link.kind === 'down') return refuse(`not connected: ${host.link.error.message}`);
  if (host.link.kind === 'connecting') return refuse('is being connected');
  if (snapshot === undefined) return refuse('has not reported its state yet');
  const model = snapshot.models.find((one) => one.model === want.model);
  if (model === undefined) return refuse(`${want.model} is not configured there`, true);
  if (want.kind !== undefined && !model.profile.capabilities.includes(want.kind)) {
    return refuse(`${want.model} cannot ${want.kind} images`, true);
  }
  if (isUnnamed(model) && model.state !== 'ready')
    return refuse(model.detail ?? 'its server has not answered yet', true);
  const blind = blindness(snapshot, model);
  if (blind !== undefined) return refuse(blind, snapshot.problems.length > 0);
  const short = vramRefusal(snapshot, { model, size: want.size });
  if (short !== undefined) return refuse(short, true);
  if (snapshot.isDraining) {
    const mend = `Type \`gantry resume ${host.name}\` to let ${host.name} work again.`;
    return { ...refuse('is draining: it finishes its jobs and takes no new ones'), mend };
  }
  if (model.state === 'failed') return refuse(`${model.alias} failed${because(model.detail)}`);
  if (model.heldAwayMs > 0 && want.class === 'batch' && !isUp(model)) {
    const left = seconds(model.heldAwayMs);
    return {
      ...refuse(`a person moved ${model.alias} off its GPU; batch work leaves it away for another ${left}`),
      mend: `Load ${model.alias} to end this wait.`,
    };
  }
  const gpu = brokenGpu(snapshot, model);
  if (gpu !== undefined) return refuse(gpu);
  // A download ends by itself: its slots are free once it has.
  const isComing = model.download !== undefined;
  const slots = model.slots.filter(({ phase }) => phase !== 'cannot' && (phase !== 'closed' || isComing));
  if (slots.length === 0) {
    const reason = model.slots.find((slot) => slot.reason !== undefined)?.reason;
    return refuse(`gives no slot of ${model.alias} now${because(reason)}`);
  }
  return { host, snapshot, model, slots };
}

/**
 * A server of somebody else that has not said yet what it serves. A job for it would carry the parameters of no known model,
 * and a name that nobody has any more when it does.
 */
export function isUnnamed({ isAttached, model, alias }: ModelStatus): boolean {
  return isAttached && model === alias;
}

/** A host without a GPU to see. Without a problem that says why, its agent has only just started. */
function blindness(snapshot: HostSnapshot, model: ModelStatus): string | undefined {
  if (model.isAttached || snapshot.gpus.length > 0) return undefined;
  return `has no GPU that gantry can see${because(snapshot.problems.join(' '))}`;
}

export type Swap = { kind: 'none' | 'load' | 'wake'; swapMs: number; evictMs: number };

/** What it takes to have the model ready, from its present state, with room on the GPU made first. */
export function swapOf(snapshot: HostSnapshot, model: ModelStatus): Swap {
  switch (model.state) {
    case 'ready':
    case 'unknown':
      return { kind: 'none', swapMs: 0, evictMs: 0 };
    case 'offloaded':
    case 'offloading':
      return { kind: 'wake', swapMs: model.wakeMs, evictMs: evictMs(snapshot, model) };
    case 'released':
    case 'releasing':
    case 'failed':
      return { kind: 'load', swapMs: model.loadMs, evictMs: evictMs(snapshot, model) };
    case 'loading': // what was evicted for it is gone already
      return { kind: 'load', swapMs: model.loadMs, evictMs: 0 };
  }
}

/** Expected time until the slot's present work is done, the status' age taken into account. */
export function slotFreeMs(slot: SlotStatus, { model, snapshot, host }: Capable): number {
  const others = snapshot.models
    .filter((one) => one !== model && one.gpus.some((gpu) => model.gpus.includes(gpu)))
    .flatMap((one) => one.slots.filter(({ phase }) => phase === 'running').map(({ freeInMs }) => freeInMs));
  return Math.max(0, Math.max(slot.freeInMs, ...others) - host.statusAgeMs);
}

/**
 * The service time to reckon with: what the host's agent learned; for a host that has run nothing yet, the median of the
 * hosts with the same GPU, else of the fleet; else the first guess it publishes.
 */
export function serviceOn(host: HostView, o: { model: string; hosts: readonly HostView[] }): ServiceTime | undefined {
  const own = serviceIn(host, o.model);
  if (own === undefined || own.samples > 0) return own;
  const gpu = host.snapshot?.gpus[0]?.name;
  const measured = o.hosts.flatMap((one) => {
    const service = serviceIn(one, o.model);
    return service !== undefined && service.samples > 0 ? [{ gpu: one.snapshot?.gpus[0]?.name, service }] : [];
  });
  const alike = measured.filter((one) => one.gpu === gpu);
  const middle = median(alike.length > 0 ? alike : measured);
  return middle === undefined ? own : { ...middle, samples: 0 };
}

export function freeVramMiB(snapshot: HostSnapshot): number {
  return snapshot.gpus.reduce((most, gpu) => Math.max(most, gpu.freeMiB ?? 0), 0);
}

/** The most that can be free on one GPU there: ours may go. */
export function roomMiB(snapshot: HostSnapshot): number {
  return snapshot.gpus.reduce((most, { freeMiB, oursMiB }) => Math.max(most, (freeMiB ?? 0) + oursMiB), 0);
}

/** The most that is free on one GPU of any connected host now, for a sentence. */
export function largestFree(hosts: readonly HostView[]): string | undefined {
  const free = hosts.flatMap(({ name, link, snapshot }) =>
    link.kind === 'up' && snapshot !== undefined && snapshot.gpus.length > 0
      ? [{ name, freeMiB: freeVramMiB(snapshot) }]
      : [],
  );
  const [most] = free.sort((a, b) => b.freeMiB - a.freeMiB);
  return most && `${gbText(most.freeMiB)} on ${most.name}`;
}

/** For sentences: people read seconds, and minutes above two. */
export function seconds(ms: number): string {
  if (ms < 100) return '0.1 s';
  if (ms < 9_950) return `${(ms / 1_000).toFixed(1)} s`;
  return ms < 120_000 ? `${Math.round(ms / 1_000)} s` : `${Math.round(ms / 60_000)} min`;
}

function serviceIn(host: HostView, model: string): ServiceTime | undefined {
  return host.snapshot?.models.find((one) => one.model === model)?.service;
}

function median(measured: readonly { service: ServiceTime }[]): ServiceTime | undefined {
  const sorted = measured.map(({ service }) => service).sort((a, b) => typicalMs(a) - typicalMs(b));
  return sorted[Math.floor((sorted.length - 1) / 2)];
}

/** Orders service times by a usual request: 28 steps at 1 megapixel. */
function typicalMs(service: ServiceTime): number {
  return service.fixedMs + 28 * service.unitMs;
}

function isUp(model: ModelStatus): boolean {
  return model.state === 'ready' || model.state === 'loading';
}

/** Only what no waiting will change: what other programs or models hold now is not in it. */
function vramRefusal(
  snapshot: HostSnapshot,
  { model, size }: { model: ModelStatus; size: JobSize | undefined },
): string | undefined {
  if (model.isAttached) return undefined; // its VRAM may be another machine's
  const { capacity } = model;
  if (capacity !== undefined) return tooLarge(model.alias, { capacity, size });
  // An agent that does not tell: more than all the VRAM of the GPUs it may use.
  const gpus = snapshot.gpus.filter(({ uuid }) => model.gpus.length === 0 || model.gpus.includes(uuid));
  const totals = gpus.map(({ totalMiB }) => totalMiB);
  if (gpus.length === 0 || totals.includes(null)) return undefined;
  const totalMiB = totals.reduce<number>((sum, total) => sum + (total ?? 0), 0);
  const needMiB = Math.max(model.loadedMiB, model.peakMiB);
  if (needMiB <= totalMiB) return undefined;
  return `${model.alias} needs ${gbText(needMiB)} of VRAM and its GPUs have ${gbText(totalMiB)}`;
}

function tooLarge(alias: string, o: { capacity: VramCapacity; size: JobSize | undefined }): string | undefined {
  const { fitsMegapixels, mostMiB, peaks } = o.capacity;
  const fits = o.size === undefined ? fitsMegapixels > 0 : o.size.megapixels <= fitsMegapixels;
  if (fits) return undefined;
  const { megapixels, text } = o.size ?? { megapixels: 0, text: 'any size' };
  // More than there is, although what is known of a few sizes may come out just below.
  const needMiB = Math.max(mostMiB + 1, needAt(megapixels, peaks));
  const smaller = fitsMegapixels > 0 ? `; try ${fitsMegapixels.toFixed(2)} megapixels or less` : '';
  return `${alias} needs about ${gbText(needMiB)} of VRAM at ${text} and can have ${gbText(mostMiB)} at most${smaller}`;
}

/**
 * What a job of this size needs at its peak: by what its host tells of some sizes, else by growth with the size over the
 * model itself, of which some does not shrink below one megapixel.
 */
export function peakMiBAt(megapixels: number, { capacity, loadedMiB, peakMiB }: ModelStatus): number {
  if (capacity !== undefined && capacity.peaks.length > 0) return needAt(megapixels, capacity.peaks);
  return loadedMiB + Math.max(0, peakMiB - loadedMiB) * Math.max(1, megapixels);
}

/** On the straight line through the two sizes around it, or nearest to it. */
function needAt(megapixels: number, peaks: VramCapacity['peaks']): number {
  const above = Math.max(
    1,
    peaks.findIndex((peak) => peak.megapixels >= megapixels),
  );
  const to = peaks[peaks.some((peak) => peak.megapixels >= megapixels) ? above : peaks.length - 1];
  const from = peaks[(to === undefined ? 0 : peaks.indexOf(to)) - 1];
  if (from === undefined || to === undefined) return peaks.at(-1)?.peakMiB ?? 0;
  const slope = (to.peakMiB - from.peakMiB) / (to.megapixels - from.megapixels);
  return Math.max(from.peakMiB, from.peakMiB + slope * (megapixels - from.megapixels));
}

function gbText(mib: number): string {
  return `${(mib / 1024).toFixed(1)} GB`;
}

function brokenGpu(snapshot: HostSnapshot, model: ModelStatus): string | undefined {
  if (model.isAttached) return undefined;
  const gpus = snapshot.gpus.filter(({ uuid }) => model.gpus.length === 0 || model.gpus.includes(uuid));
  if (gpus.length === 0 || gpus.some((gpu) => isUsable(gpu) === undefined)) return undefined;
  const [first] = gpus;
  return first && `GPU ${first.index} (${first.name}) ${isUsable(first) ?? ''}`;
}

/** A stale reading does not make a GPU unusable; the agent admits jobs on fresh ones only. */
function isUsable(gpu: HostSnapshot['gpus'][number]): string | undefined {
  if (gpu.isDegraded) return 'is degraded: memory of a dead server did not come back yet';
  if (gpu.health === 'lost') return 'is lost: the driver does not answer';
  if (gpu.health === 'unreadable' || gpu.health === 'absent') return `is ${gpu.health} for nvidia-smi`;
  return undefined;
}

/** Moving a model off takes about as long as bringing it back from host RAM. Only where the free VRAM is not enough. */
function evictMs(snapshot: HostSnapshot, model: ModelStatus): number {
  const needMiB = Math.max(model.loadedMiB, model.peakMiB) - model.heldMiB;
  if (needMiB <= freeVramMiB(snapshot)) return 0;
  const residents = snapshot.models.filter((one) => one !== model && one.heldMiB > 0 && !one.isPinned);
  return residents.length === 0 ? 0 : Math.min(...residents.map(({ wakeMs }) => wakeMs));
}

function because(reason: string | undefined): string {
  return reason === undefined || reason === '' ? '' : `: ${reason}`;
}
