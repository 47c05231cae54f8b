import { z } from 'zod';
import type { ModelProfile } from '../../../shared/model-profile.ts';
import { profileNotes } from '../../../shared/parameters.ts';
import { model } from '../arguments.ts';
import { connectedHosts } from '../hosts.ts';
import { modelToShow } from '../model-choice.ts';
import { presetsOf } from '../model-json.ts';
import { defineTool, READS } from '../tool.ts';

const output = z.object({
  status: z.string(),
  model: z.string(),
  resolution_multiple: z.int(),
  max_megapixels: z.number(),
  default_resolution: z.string(),
  presets: z.record(z.string(), z.string()),
  notes: z.array(z.string()),
});

export const listPresets = defineTool({
  name: 'list_presets',
  title: 'List sizes',
  description: 'Aspect ratios of a model with their sizes, and which other sizes it takes.',
  annotations: READS,
  input: z.strictObject({ model }),
  output,
  run: async (args, context) => {
    const fleet = await context.fleet();
    const chosen = modelToShow(connectedHosts(fleet.hosts(), undefined), {
      asked: args.model,
      settings: context.settings,
    });
    const { profile } = chosen.status;
    return {
      status: 'success',
      model: chosen.id,
      resolution_multiple: profile.multiple,
      max_megapixels: profile.maxMegapixels,
      default_resolution: `${profile.width}x${profile.height}`,
      presets: presetsOf(profile),
      notes: [
        ...(chosen.note === undefined ? [] : [chosen.note]),
        ...profileNotes(profile, { model: chosen.id, profileFrom: chosen.status.profileFrom }),
        ...sizeNotes(profile),
      ],
    };
  },
});

function sizeNotes({ capabilities, hasSizeLevel, multiple, maxMegapixels }: ModelProfile): string[] {
  if (hasSizeLevel) return ['It works at size_level 512, 768 or 1024; the result has the shape of its input.'];
  if (!capabilities.includes('generate')) return ['It only edits; the result has the shape of its input.'];
  return [
    `Any width and height that are multiples of ${multiple} will do, up to ${maxMegapixels} megapixels together; ` +
      'other sizes are refused, never changed.',
  ];
}
