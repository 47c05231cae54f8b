import { z } from 'zod';
import { Guidance, ModelId } from './job.ts';

export const Capability = z.enum(['generate', 'edit']);
export type Capability = z.infer<typeof Capability>;

const side = z.int().min(16).max(8_192);

/** Static facts about a model: what to send when the caller does not say, and what the caller may say. */
export const ModelProfile = z.object({
  /** Repository, without a revision. */
  model: ModelId,
  type: z.enum(['distilled', 'standard']),
  capabilities: z.array(Capability).min(1),
  steps: z.int().min(1).max(200),
  maxSteps: z.int().min(1).max(200),
  guidance: Guidance,
  /** What to send as `guidance.value` to switch guidance off: 0 is not always off. */
  guidanceOff: z.number(),
  supportsNegativePrompt: z.boolean(),
  width: side,
  height: side,
  /** Width and height must be multiples of this many pixels. */
  multiple: z.int().min(1).max(64),
  maxMegapixels: z.number().positive(),
  /** Aspect ratio, as in '16:9', to [width, height] in pixels. */
  aspectRatios: z.record(z.string(), z.tuple([side, side])),
  /** How many reference images an edit takes at most; 0 where the model cannot edit. */
  maxInputs: z.int().min(0).max(3),
  /** True where edits take a working resolution of 512, 768 or 1024 instead of a size. */
  hasSizeLevel: z.boolean(),
  /** VRAM in MiB, weights and peak at 1 megapixel, before anything is measured; null where nobody published it. */
  weightsMiB: z.int().positive().nullable(),
  peakMiB: z.int().positive().nullable(),
  /** First guess of the time of one step at 1 megapixel in ms, until the host has measured it. */
  stepMs: z.number().positive(),
  /** Where each value comes from, by field name. */
  sources: z.record(z.string(), z.string()),
});
export type ModelProfile = z.infer<typeof ModelProfile>;
