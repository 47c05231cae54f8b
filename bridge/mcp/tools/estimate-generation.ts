import { z } from 'zod';
import { AppError } from '../../../shared/errors.ts';
import type { JobRequest } from '../../../shared/job.ts';
import { megapixelsOf } from '../../../shared/job.ts';
import { freezeEdit, freezeGenerate } from '../../../shared/parameters.ts';
import type { Frozen } from '../../../shared/parameters.ts';
import type { Forecast } from '../../fleet/forecast.ts';
import { peakMiBAt, seconds as secondsText } from '../../fleet/host-forecast.ts';
import type { HostView } from '../../fleet/host-view.ts';
import type { Finish } from '../../fleet/placement.ts';
import { refusalText } from '../../fleet/placement.ts';
import { model, side, steps } from '../arguments.ts';
import { concurrentOn } from '../concurrency.ts';
import type { ConnectedHost } from '../hosts.ts';
import { connectedHosts, estimateNotes } from '../hosts.ts';
import type { ChosenModel } from '../model-choice.ts';
import { modelToShow, placesOf } from '../model-choice.ts';
import { defineTool, READS } from '../tool.ts';
import { gb, seconds } from '../units.ts';

const input = z.strictObject({
  num_images: z.int().min(1).max(10_000).optional().describe('Default 1'),
  width: side,
  height: side,
  num_inference_steps: steps,
  model,
});

type Args = z.output<typeof input>;

const Place = z.object({
  host: z.string(),
  images: z.int(),
  seconds_per_image: z.number(),
  first_image_in_seconds: z.number(),
  loading_seconds: z.number(),
  peak_vram_gb: z.number(),
  basis: z.string(),
  reason: z.string(),
});

const output = z.object({
  status: z.string(),
  model: z.string(),
  num_images: z.int(),
  estimated_time_per_image_seconds: z.number(),
  estimated_total_time_seconds: z.number(),
  estimated_peak_vram_gb: z.number(),
  recommended_concurrent: z.int(),
  resolution: z.string(),
  total_megapixels_per_image: z.number(),
  placement: z.array(Place),
  refused: z.array(z.object({ host: z.string(), reason: z.string() })),
  basis: z.enum(['measured', 'estimated']),
  notes: z.array(z.string()),
});

export const estimateGeneration = defineTool({
  name: 'estimate_generation',
  title: 'Estimate time and memory',
  description:
    'Time, VRAM and hosts that images would take as things are now, without making any; says whether measured or guessed.',
  annotations: READS,
  input,
  output,
  run: async (args, context) => {
    const fleet = await context.fleet();
    const hosts = connectedHosts(fleet.hosts(), undefined);
    const chosen = modelToShow(hosts, { asked: args.model, settings: context.settings });
    const { request, notes } = frozen(args, chosen);
    const count = args.num_images ?? 1;
    const requests = Array.from({ length: count }, () => request);
    const jobClass = count === 1 ? 'interactive' : 'batch';
    const now = fleet.forecast(requests, jobClass);
    const held = now.placement.ranked.length > 0 ? [] : heldNotes(placesOf(chosen.id, hosts));
    const forecast = held.length === 0 ? now : fleet.forecast(requests, jobClass, fleet.hosts().map(withoutHolds));
    if (forecast.placement.ranked.length === 0) {
      throw new AppError('NO_HOST', refusalText(request.model, now.placement.refused));
    }
    const { maxConcurrent } = context.settings;
    return estimate(forecast, { request, chosen, hosts, count, maxConcurrent, notes: [...notes, ...held] });
  },
});

/** What a batch would wait for first, where a person has moved the model off its GPU. */
function heldNotes(places: ReturnType<typeof placesOf>): string[] {
  return places
    .filter(({ status: { heldAwayMs, state } }) => heldAwayMs > 0 && state !== 'ready')
    .map(
      ({ host, status: { alias, heldAwayMs } }) =>
        `A person moved ${alias} off its GPU on ${host.name}: a batch leaves it away for another ${secondsText(heldAwayMs)}, ` +
        'which the total does not have in it. load_model ends that wait.',
    );
}

function withoutHolds(host: HostView): HostView {
  if (host.snapshot === undefined) return host;
  const models = host.snapshot.models.map((status) => ({ ...status, heldAwayMs: 0 }));
  return { ...host, snapshot: { ...host.snapshot, models } };
}

/** As a call for such an image would be frozen. A model that only edits is asked for an edit of some picture. */
function frozen(args: Args, { id, status, note }: ChosenModel): Frozen<JobRequest> {
  const options = { model: id, seed: 0, profileFrom: status.profileFrom };
  const said = note === undefined ? [] : [note];
  const call = { ...args, prompt: 'an estimate' };
  if (status.profile.capabilities.includes('generate')) {
    const { request, notes } = freezeGenerate(call, status.profile, options);
    return { request, notes: [...said, ...notes] };
  }
  const { request, notes } = freezeEdit({ ...call, num_steps: args.num_inference_steps }, status.profile, {
    ...options,
    inputs: ['0'.repeat(64)],
  });
  const ignored = args.width !== undefined || args.height !== undefined;
  const size = ignored ? [`width and height were ignored: '${id}' only edits, at its own resolution.`] : [];
  return { request, notes: [...said, ...notes, ...size] };
}

type Asked = {
  request: JobRequest;
  chosen: ChosenModel;
  hosts: readonly ConnectedHost[];
  count: number;
  maxConcurrent: number | undefined;
  notes: readonly string[];
};

function estimate({ ends, placement }: Forecast, o: Asked): z.input<typeof output> {
  const { request, chosen, hosts, count, maxConcurrent = Infinity } = o;
  const planned = ends.flatMap((end) => end ?? []);
  const [best] = placement.ranked;
  const megapixels = megapixelsOf(request);
  const places = placesOf(chosen.id, hosts);
  const peaks = new Map(places.map(({ host, status }) => [host.name, peakMiBAt(megapixels, status)]));
  const images = new Map<string, number>();
  for (const { host } of planned) images.set(host, (images.get(host) ?? 0) + 1);
  const used = placement.ranked.filter(({ host }) => images.has(host));
  const working = used.length > 0 ? used : placement.ranked.slice(0, 1);
  const isMeasured = working.every(
    ({ host, isMeasured: isTimed }) =>
      isTimed && places.some(({ host: { name }, status }) => name === host && status.isMeasured),
  );
  const able = new Set(placement.ranked.map(({ host }) => host));
  return {
    status: 'success',
    model: chosen.id,
    num_images: count,
    estimated_time_per_image_seconds: seconds(mean(planned.map(({ runMs }) => runMs)) ?? best?.runMs ?? 0),
    estimated_total_time_seconds: seconds(Math.max(0, ...planned.map(({ endMs }) => endMs))),
    estimated_peak_vram_gb: gb(Math.max(0, ...working.map(({ host }) => peaks.get(host) ?? 0))),
    recommended_concurrent: Math.min(
      maxConcurrent,
      places
        .filter(({ host }) => able.has(host.name))
        .reduce((sum, { host, status }) => sum + concurrentOn(host.snapshot, status), 0),
    ),
    resolution: resolutionOf(request),
    total_megapixels_per_image: Math.round(megapixels * 100) / 100,
    placement: placement.ranked.map((finish) => ({
      host: finish.host,
      images: images.get(finish.host) ?? 0,
      seconds_per_image: seconds(finish.runMs),
      first_image_in_seconds: seconds(finish.finishMs),
      loading_seconds: seconds(finish.swap.swapMs + finish.swap.evictMs),
      peak_vram_gb: gb(peaks.get(finish.host) ?? 0),
      basis: finish.isMeasured ? 'measured' : 'estimated',
      reason: reasonOf(finish),
    })),
    refused: placement.refused.map(({ host, reason }) => ({ host, reason })),
    basis: isMeasured ? 'measured' : 'estimated',
    notes: [
      ...o.notes,
      ...notesOf(working, { chosen, request, isMeasured }),
      ...estimateNotes(places.flatMap(({ host }) => (able.has(host.name) ? host : []))),
    ],
  };
}

function resolutionOf(request: JobRequest): string {
  if (request.width !== undefined && request.height !== undefined) return `${request.width}x${request.height}`;
  return request.kind === 'edit' && request.sizeLevel !== undefined
    ? `size_level ${request.sizeLevel}`
    : 'the shape of the input at about 1 megapixel';
}

/** What its first image would wait for there. */
function reasonOf({ swap, freeMs, ownMs, runMs, transferMs }: Finish): string {
  const waits = [
    ...(freeMs + ownMs > 0 ? [`busy for another ${secondsText(freeMs + ownMs)}`] : []),
    ...(swap.evictMs > 0 ? [`makes room in ${secondsText(swap.evictMs)}`] : []),
    ...(swap.kind === 'none' ? [] : [`${swap.kind}s the model in ${secondsText(swap.swapMs)}`]),
  ];
  const first = waits.length === 0 ? 'Free, with the model on the GPU' : capital(waits.join(', '));
  return `${first}; an image takes ${secondsText(runMs)}, its way here ${secondsText(transferMs)}.`;
}

function notesOf(
  working: readonly Finish[],
  { chosen, request, isMeasured }: { chosen: ChosenModel; request: JobRequest; isMeasured: boolean },
): string[] {
  const { type } = chosen.status.profile;
  const loading = working.filter(({ swap }) => swap.kind !== 'none');
  return [
    `${capital(type)} model, ${request.steps} steps.`,
    ...(loading.length === 0
      ? []
      : [
          `Loading usually takes ${loading.map(({ host, swap }) => `${secondsText(swap.swapMs)} on ${host}`).join(', ')}, ` +
            'and the first image after it is slower than the next ones. The total has the loading in it.',
        ]),
    ...(isMeasured
      ? []
      : ['A part of this is a guess from published figures; after the first image of this model it is measured.']),
  ];
}

function mean(values: readonly number[]): number | undefined {
  return values.length === 0 ? undefined : values.reduce((sum, value) => sum + value, 0) / values.length;
}

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
