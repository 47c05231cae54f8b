import { z } from 'zod';
import type { ModelProfile } from '../../../shared/model-profile.ts';
import { profileNotes } from '../../../shared/parameters.ts';
import { promptGuidanceFor } from '../../../shared/prompt-guidance.ts';
import { model } from '../arguments.ts';
import { connectedHosts, estimateNotes } from '../hosts.ts';
import { modelToShow, placesOf } from '../model-choice.ts';
import { presetsOf } from '../model-json.ts';
import { modelLocation } from '../status-json.ts';
import { defineTool, READS } from '../tool.ts';
import { gb, seconds } from '../units.ts';

const output = z.object({
  status: z.string(),
  model_name: z.string(),
  model_type: z.string(),
  capabilities: z.array(z.string()),
  recommended_parameters: z.object({
    num_inference_steps: z.int(),
    guidance_scale: z.number(),
    default_resolution: z.string().optional(),
    size_level: z.int().optional(),
  }),
  max_steps: z.int(),
  max_reference_images: z.int(),
  supports_negative_prompt: z.boolean(),
  supported_aspect_ratios: z.record(z.string(), z.string()),
  estimated_vram_gb: z.number(),
  measured_vram_gb: z.number().optional(),
  in_registry: z.boolean(),
  prompt_guidance: z.object({ family: z.string(), advice: z.array(z.string()), source: z.string() }).optional(),
  hosts: z.array(
    z.object({
      host: z.string(),
      alias: z.string(),
      state: z.string(),
      model_location: z.string(),
      loaded_vram_gb: z.number(),
      peak_vram_gb: z.number(),
      is_measured: z.boolean(),
      usual_load_seconds: z.number(),
      images_made: z.int(),
    }),
  ),
  notes: z.array(z.string()),
});

export const getModelInfo = defineTool({
  name: 'get_model_info',
  title: 'Look at a model',
  description:
    'What a model takes and needs: steps, guidance, sizes, VRAM as measured, its hosts, and how to write prompts for it.',
  annotations: READS,
  input: z.strictObject({ model }),
  output,
  run: async (args, context) => {
    const fleet = await context.fleet();
    const hosts = connectedHosts(fleet.hosts(), undefined);
    const chosen = modelToShow(hosts, { asked: args.model, settings: context.settings });
    const { profile, profileFrom, peakMiB } = chosen.status;
    const places = placesOf(chosen.id, hosts);
    const measuredMiB = Math.max(0, ...places.flatMap(({ status }) => (status.isMeasured ? status.peakMiB : [])));
    return {
      status: 'success',
      model_name: chosen.id,
      model_type: profile.type,
      capabilities: [...profile.capabilities],
      recommended_parameters: recommended(profile),
      max_steps: profile.maxSteps,
      max_reference_images: profile.maxInputs,
      supports_negative_prompt: profile.supportsNegativePrompt,
      supported_aspect_ratios: presetsOf(profile),
      estimated_vram_gb: gb(profile.peakMiB ?? profile.weightsMiB ?? peakMiB),
      ...(measuredMiB > 0 && { measured_vram_gb: gb(measuredMiB) }),
      in_registry: profileFrom !== 'fallback',
      ...guidanceJson(chosen.id),
      hosts: places.map(({ host, status }) => ({
        host: host.name,
        alias: status.alias,
        state: status.state,
        model_location: modelLocation(status),
        loaded_vram_gb: gb(status.loadedMiB),
        peak_vram_gb: gb(status.peakMiB),
        is_measured: status.isMeasured,
        usual_load_seconds: seconds(status.loadMs),
        images_made: status.jobsDone,
      })),
      notes: [
        ...(chosen.note === undefined ? [] : [chosen.note]),
        ...profileNotes(profile, { model: chosen.id, profileFrom }),
        ...estimateNotes(places.map(({ host }) => host)),
      ],
    };
  },
});

function recommended(profile: ModelProfile) {
  return {
    num_inference_steps: profile.steps,
    guidance_scale: profile.guidance.value,
    ...(profile.hasSizeLevel ? { size_level: 1024 } : { default_resolution: `${profile.width}x${profile.height}` }),
  };
}

function guidanceJson(id: string) {
  const guidance = promptGuidanceFor(id);
  return guidance === undefined ? {} : { prompt_guidance: { ...guidance, advice: [...guidance.advice] } };
}
