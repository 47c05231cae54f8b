import type { ModelProfile } from '../../shared/model-profile.ts';

/** PURE. The aspect ratios of a model as the predecessors told them: ratio to "1024x576". */
export function presetsOf({ aspectRatios }: ModelProfile): Record<string, string> {
  return Object.fromEntries(
    Object.entries(aspectRatios).map(([ratio, [width, height]]) => [ratio, `${width}x${height}`]),
  );
}
