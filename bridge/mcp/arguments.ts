import { randomInt } from 'node:crypto';
import { z } from 'zod';
import { ImageFormat } from '../../shared/job.ts';
import { MAX_WAIT_SECONDS } from './patience.ts';

/** Arguments that several tools share, with the words they are published under. */
export const prompt = z.string().min(1).max(8_000);
export const negativePrompt = z
  .string()
  .max(8_000)
  .optional()
  .describe('What to avoid; ignored with a note where unsupported');
export const seed = z
  .int()
  .min(0)
  .max(2 ** 32 - 1)
  .optional()
  .describe('For reproducible results; drawn if omitted');
export const format = ImageFormat.optional().describe('File format, default png');
export const model = z.string().min(1).max(200).optional().describe('Model id or alias (see list_models)');
export const host = z.string().min(1).max(100).optional().describe('Only this host (see list_hosts)');
export const preview = z.enum(['inline', 'none']).optional().describe('none saves tokens');
export const outputDir = z.string().min(1).max(4_096).optional().describe('Directory for the files');
export const aspectRatio = z.string().min(3).max(10).optional().describe('e.g. 16:9; overrides width and height');
export const side = z.int().min(1).max(100_000).optional();
export const steps = z.int().min(1).max(200).optional();
export const guidance = z.number().min(0).max(20).optional();

export const waitSeconds = z
  .number()
  .min(0)
  .max(MAX_WAIT_SECONDS)
  .optional()
  .describe('Answer "running" with an id after this long');

export const common = { seed, format, model, host, preview, wait_seconds: waitSeconds };

/** A seed for a call that names none. */
export function drawSeed(): number {
  return randomInt(2 ** 32);
}
