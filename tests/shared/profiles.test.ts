import { describe, expect, test } from 'vitest';
import { ModelProfile } from '../../shared/model-profile.ts';
import { PROFILES, profileFor } from '../../shared/profiles.ts';

describe('PROFILES', () => {
  test.each(PROFILES.map((profile) => [profile.model, profile] as const))('%s is consistent', (_, profile) => {
    expect(ModelProfile.parse(profile)).toEqual(profile);
    expect(profile.steps).toBeLessThanOrEqual(profile.maxSteps);
    const sizes = [[profile.width, profile.height], ...Object.values(profile.aspectRatios)];
    for (const [width = 0, height = 0] of sizes) {
      expect([width % profile.multiple, height % profile.multiple]).toEqual([0, 0]);
      expect((width * height) / 1e6).toBeLessThanOrEqual(profile.maxMegapixels);
    }
    expect(profile.maxInputs > 0).toBe(profile.capabilities.includes('edit'));
    if (profile.peakMiB !== null) expect(profile.peakMiB).toBeGreaterThanOrEqual(profile.weightsMiB ?? Infinity);
    if (profile.guidance.field === 'true_cfg_scale') expect(profile.guidanceOff).toBe(1);
  });

  test.each(PROFILES.map((profile) => [profile.model, profile] as const))('%s names its sources', (_, profile) => {
    for (const field of ['steps', 'guidance', 'multiple', 'maxMegapixels', 'stepMs', 'aspectRatios'])
      expect(profile.sources[field], field).toBeTruthy();
    if (profile.weightsMiB !== null) expect(profile.sources['weightsMiB']).toBeTruthy();
    if (profile.peakMiB !== null) expect(profile.sources['peakMiB']).toBeTruthy();
    for (const field of Object.keys(profile.sources)) expect(Object.keys(profile)).toContain(field);
  });

  test.each([
    ['Tongyi-MAI/Z-Image-Turbo', 9, 'guidance_scale', 0, 19_661, 25_395],
    ['black-forest-labs/FLUX.2-klein-4B', 4, 'guidance_scale', 1, 15_258, 22_528],
    ['black-forest-labs/FLUX.2-klein-9B', 4, 'guidance_scale', 1, 33_075, 37_990],
    ['Qwen/Qwen-Image', 50, 'true_cfg_scale', 4, 54_989, 61_440],
    ['Qwen/Qwen-Image-2512', 50, 'true_cfg_scale', 4, 54_989, 61_440],
    ['Qwen/Qwen-Image-Edit-2511', 40, 'true_cfg_scale', 4, 54_989, 59_904],
    ['zai-org/GLM-Image', 50, 'guidance_scale', 1.5, 59_392, 81_920],
    ['stepfun-ai/Step1X-Edit', 28, 'guidance_scale', 6, 40_960, 50_995],
  ])('%s has the corrected values', (model, steps, field, value, weightsMiB, peakMiB) => {
    expect(profileFor(model).profile).toMatchObject({ steps, guidance: { field, value }, weightsMiB, peakMiB });
  });
});

describe('profileFor', () => {
  test.each([
    ['a repository', 'Qwen/Qwen-Image', 'Qwen/Qwen-Image', 'shipped'],
    ['a pinned revision', 'Qwen/Qwen-Image@0123456789abcdef', 'Qwen/Qwen-Image', 'shipped'],
    ['other letter case', 'qwen/qwen-image', 'Qwen/Qwen-Image', 'shipped'],
    ['an unknown one', 'someone/else@main', 'someone/else', 'fallback'],
    ['a path', '/srv/models/a@b/c', '/srv/models/a@b/c', 'fallback'],
  ])('%s', (_, model, repository, from) => {
    expect(profileFor(model)).toMatchObject({ profile: { model: repository }, from });
  });

  test('the fall-back is 28 steps, guidance 5.0 and 1024x1024', () => {
    const { profile } = profileFor('someone/else');
    expect(ModelProfile.parse(profile)).toEqual(profile);
    expect(profile).toMatchObject({
      steps: 28,
      guidance: { field: 'guidance_scale', value: 5 },
      width: 1024,
      height: 1024,
    });
  });
});
