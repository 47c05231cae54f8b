import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { nearest } from '../../shared/nearest.ts';

const NAMES = [
  'prompt',
  'guidance',
  'negative_prompt',
  'num_inference_steps',
  'guidance_scale',
  'seed',
  'seeds',
  'width',
  'output_dir',
];

describe('nearest', () => {
  test.each([
    ['a missing letter', 'promt', 'prompt'],
    ['two letters changed places', 'widht', 'width'],
    ['camel case', 'numInferenceSteps', 'num_inference_steps'],
    ['hyphens', 'guidance-scale', 'guidance_scale'],
    ['one word of a longer name', 'steps', 'num_inference_steps'],
    ['the closer one of two', 'seed_', 'seed'],
    ['a missing letter, not one word of it', 'guidance_scal', 'guidance_scale'],
    ['another ending', 'output_directory', 'output_dir'],
    ['nothing in common', 'sampler', undefined],
    ['an empty name', '', undefined],
  ])('%s: %s', (_, name, expected) => {
    expect(nearest(name, NAMES)).toBe(expected);
  });

  test('a valid name is nearest to itself, and the answer is always a candidate', () => {
    fc.assert(
      fc.property(fc.uniqueArray(fc.string({ minLength: 1 })), fc.string(), (names, other) => {
        for (const name of names) expect(nearest(name, [name])).toBe(name);
        const found = nearest(other, names);
        if (found !== undefined) expect(names).toContain(found);
      }),
    );
  });

  test('a megabyte of name is answered at once', () => {
    expect(nearest('x'.repeat(1e6), NAMES)).toBeUndefined();
  });
});
