import { randomInt } from 'node:crypto';
import { z } from 'zod';
import { ImageFormat } from '../../shared/job.ts';
import { MAX_WAIT_SECONDS } from './patience.ts';

/**
 * Arguments that several tools share, with the words they are published under. A `note` is for docs/tools.md only: every
 * conversation pays for each word of the list of tools, and these names say enough to a model.
 */
export const prompt = z.string().min(1).max(8_000);
export const negativePrompt = z
  .string()
  .max(8_000)
  .optional()
  .meta({ note: 'What to avoid; ignored with a note where the model does not support it' });
export const seed = z
  .int()
  .min(0)
  .max(2 ** 32 - 1)
  .optional()
  .meta({ note: 'For reproducible results; drawn and told if omitted' });
export const format = ImageFormat.optional().meta({ note: 'File format; else that of the name, else png' });
export const model = z
  .string()
  .min(1)
  .max(200)
  .optional()
  .meta({ note: 'Model id or alias (see list_models); the default model if omitted' });
export const host = z.string().min(1).max(100).optional().meta({ note: 'Only this host (see list_hosts)' });
export const preview = z
  .enum(['inline', 'none'])
  .optional()
  .meta({ note: 'none saves tokens; the default is that of bridge.yaml' });
export const outputDir = z.string().min(1).max(4_096).optional().meta({ note: 'Directory for the files' });
export const aspectRatio = z.string().min(3).max(10).optional().describe('e.g. 16:9; overrides width and height');
export const side = z.int().min(1).max(100_000).optional();
export const steps = z.int().min(1).max(200).optional();
export const guidance = z.number().min(0).max(20).optional();

/** A picture to edit: a file, or an image made before. */
export const picture = z.string().min(1).max(4_096);
export const sizeLevel = z.int().min(512).max(1024).optional().describe('512, 768 or 1024, where the model has it');
export const order = z
  .enum(['longest-first', 'fifo'])
  .optional()
  .meta({ note: 'fifo where the first results matter most; longest-first ends soonest' });

export const waitSeconds = z.number().min(0).max(MAX_WAIT_SECONDS).optional().meta({
  note: 'After this long the answer is `status: running` with an id; by default as long as the client is known to wait',
});

export const common = { seed, format, model, host, preview, wait_seconds: waitSeconds };

/** A seed for a call that names none. */
export function drawSeed(): number {
  return randomInt(2 ** 32);
}
