import { expect, test } from 'vitest';
import { PROFILES } from '../../shared/profiles.ts';
import { promptGuidanceFor } from '../../shared/prompt-guidance.ts';

test.each(PROFILES.map(({ model }) => model))('%s has advice with its source', (model) => {
  const guidance = promptGuidanceFor(`${model}@0123456`);
  expect(guidance?.source).toMatch(/\w/);
  for (const advice of guidance?.advice ?? []) expect(advice).toMatch(/^[A-Za-z].*\.$/);
});

test.each([
  ['black-forest-labs/FLUX.2-klein-9B', 'FLUX.2 klein'],
  ['black-forest-labs/FLUX.2-dev', 'FLUX.2'],
  ['black-forest-labs/FLUX.1-Kontext-dev', 'FLUX.1 Kontext'],
  ['black-forest-labs/FLUX.1-schnell', 'FLUX.1'],
  ['Qwen/Qwen-Image-Edit-2511', 'Qwen-Image-Edit'],
  ['lightx2v/Qwen-Image-Lightning', 'Qwen-Image'],
])('%s is of the family %s', (model, family) => {
  expect(promptGuidanceFor(model)?.family).toBe(family);
});

test('no advice for negative prompts where the profile says that they do nothing', () => {
  for (const { model, supportsNegativePrompt } of PROFILES) {
    const promises = promptGuidanceFor(model)?.advice.some((text) => /A negative prompt works\./.test(text)) ?? false;
    if (promises) expect(supportsNegativePrompt, model).toBe(true);
  }
});

test('none for a model nobody described', () => {
  expect(promptGuidanceFor('acme/painter')).toBeUndefined();
});
