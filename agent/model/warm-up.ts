import type { JobRequest } from '../../shared/job.ts';
import type { ConfiguredModel } from '../configured-model.ts';
import { SMALL_PICTURE } from '../engine/small-picture.ts';

/** Engines take 16 pixels a side, but kernels for so small a picture are not those for a real one. */
const SIDE = 256;

/**
 * The image that a model makes before it counts as ready: small, and with one step. It makes the engine compile and
 * allocate what it needs, so that the first job need not wait for that. After a wake there is nothing to compile.
 */
export function warmUpJob({ id, profile, capabilities }: ConfiguredModel): { request: JobRequest; inputs: Buffer[] } {
  const side = Math.ceil(SIDE / profile.multiple) * profile.multiple;
  const common = {
    ...{ model: id, prompt: 'a grey square', steps: 1, guidance: profile.guidance, seed: 0 },
    ...{ format: 'png' as const, width: side, height: side },
  };
  if (capabilities.includes('generate')) return { request: { kind: 'generate', ...common }, inputs: [] };
  return { request: { kind: 'edit', ...common, inputs: ['0'.repeat(64)] }, inputs: [SMALL_PICTURE] };
}
