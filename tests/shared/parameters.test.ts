import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { AppError } from '../../shared/errors.ts';
import { EditRequest, GenerateRequest } from '../../shared/job.ts';
import type { EditCall, FreezeOptions, GenerateCall } from '../../shared/parameters.ts';
import { freezeEdit, freezeGenerate } from '../../shared/parameters.ts';
import { PROFILES, profileFor } from '../../shared/profiles.ts';

const KLEIN = 'black-forest-labs/FLUX.2-klein-4B';
const TURBO = 'Tongyi-MAI/Z-Image-Turbo';
const QWEN = 'Qwen/Qwen-Image-2512';
const QWEN_EDIT = 'Qwen/Qwen-Image-Edit-2511';
const STEP1X = 'stepfun-ai/Step1X-Edit';
const INPUT = 'ab'.repeat(32);

const optionsFor = (model: string): FreezeOptions => ({ model, seed: 42, profileFrom: profileFor(model).from });
const generate = (model: string, call: Partial<GenerateCall> = {}) =>
  freezeGenerate({ prompt: 'a red fox', ...call }, profileFor(model).profile, optionsFor(model));
const edit = (model: string, call: Partial<EditCall> = {}, inputs = [INPUT]) =>
  freezeEdit({ prompt: 'add a hat', ...call }, profileFor(model).profile, { ...optionsFor(model), inputs });

describe('freezeGenerate takes', () => {
  test.each([
    [
      'every value from the profile',
      KLEIN,
      {},
      { steps: 4, guidance: { field: 'guidance_scale', value: 1 }, width: 1024 },
    ],
    ['the native square of the model', QWEN, {}, { width: 1328, height: 1328 }],
    ['width from the call, height from the profile', QWEN, { width: 640 }, { width: 640, height: 1328 }],
    ['the size of an aspect ratio', QWEN, { aspect_ratio: '3:2' }, { width: 1584, height: 1056 }],
    ['steps from the call', QWEN, { num_inference_steps: 30 }, { steps: 30 }],
    [
      "guidance under the engine's name",
      QWEN,
      { guidance_scale: 2.5 },
      { guidance: { field: 'true_cfg_scale', value: 2.5 } },
    ],
    ['a negative prompt', QWEN, { negative_prompt: 'blur' }, { negativePrompt: 'blur' }],
    ['a blank negative prompt, without which true_cfg_scale may do nothing', QWEN, {}, { negativePrompt: ' ' }],
    ['format from the call', KLEIN, { format: 'webp' as const }, { format: 'webp' }],
    ['png and the drawn seed', KLEIN, {}, { format: 'png', seed: 42 }],
    ['guidance 0 where 0 is off', TURBO, { guidance_scale: 0 }, { guidance: { field: 'guidance_scale', value: 0 } }],
  ])('%s', (_, model, call, expected) => {
    const frozen = generate(model, call);
    expect(frozen.request).toMatchObject(expected);
    expect(frozen.notes).toEqual([]);
  });
});

describe('freezeGenerate notes', () => {
  test.each([
    [
      'a model nobody described',
      'X',
      {},
      { steps: 28, guidance: { field: 'guidance_scale', value: 5 }, width: 1024, height: 1024 },
      "Model 'X' is not in the known profiles. Using fallback defaults (steps=28, guidance=5.0). " +
        'Generation may produce unexpected results.',
    ],
    [
      'a negative prompt without support',
      KLEIN,
      { negative_prompt: 'blur' },
      { negativePrompt: undefined },
      `negative_prompt was ignored: '${KLEIN}' does not support negative prompts.`,
    ],
    [
      'an aspect ratio over a size',
      KLEIN,
      { aspect_ratio: '16:9', width: 1000 },
      { width: 1024, height: 576 },
      'aspect_ratio 16:9 overrides width and height: 1024x576.',
    ],
    [
      'guidance of a distilled model',
      TURBO,
      { guidance_scale: 5 },
      { guidance: { field: 'guidance_scale', value: 0 } },
      `guidance_scale 5 was ignored: '${TURBO}' is distilled and always runs with 0.`,
    ],
    [
      'guidance 0 where 0 is not off',
      QWEN,
      { guidance_scale: 0 },
      { guidance: { field: 'true_cfg_scale', value: 1 }, negativePrompt: undefined },
      `guidance_scale 0 switches guidance off, which '${QWEN}' calls true_cfg_scale 1.`,
    ],
  ])('%s', (_, model, call, expected, note) => {
    const { request, notes } = generate(model, call);
    expect({ negativePrompt: undefined, ...request }).toMatchObject(expected);
    expect(notes).toEqual([note]);
  });
});

describe('freezeGenerate refuses', () => {
  test.each([
    [
      'a width between two multiples',
      KLEIN,
      { width: 1000 },
      'Width 1000 is not a multiple of 16. Nearest valid width is 1008.',
    ],
    [
      'a height between two multiples',
      KLEIN,
      { height: 1001 },
      'Height 1001 is not a multiple of 16. Nearest valid height is 1008.',
    ],
    [
      'a multiple of 16 where 32 is needed',
      'zai-org/GLM-Image',
      { width: 1040 },
      'Width 1040 is not a multiple of 32. Nearest valid width is 1056.',
    ],
    ['a side of 1 pixel', KLEIN, { width: 1 }, 'Width 1 is not a multiple of 16. Nearest valid width is 16.'],
    ['a side of no pixels', KLEIN, { width: 0 }, 'Width 0 is not between 16 and 8192. Nearest valid width is 16.'],
    ['a negative side', KLEIN, { height: -16 }, 'Height -16 is not between 16 and 8192. Nearest valid height is 16.'],
    ['a side that is no number', KLEIN, { height: NaN }, 'Height NaN is not a number of pixels.'],
    [
      'too many pixels',
      KLEIN,
      { width: 2048, height: 2048 },
      `2048x2048 is 4.19 megapixels; '${KLEIN}' allows at most 4.`,
    ],
    [
      'an unknown aspect ratio',
      KLEIN,
      { aspect_ratio: '5:4' },
      `Aspect ratio '5:4' is not supported by '${KLEIN}'. Supported: 1:1, 16:9, 9:16, 4:3, 3:4.`,
    ],
    ['a name every object has', KLEIN, { aspect_ratio: 'constructor' }, "Aspect ratio 'constructor' is not supported"],
    [
      'more steps than a distilled model can use',
      TURBO,
      { num_inference_steps: 17 },
      `num_inference_steps 17 is more than the 16 that '${TURBO}' allows.`,
    ],
    [
      'more steps than any engine takes',
      QWEN,
      { num_inference_steps: 201 },
      `num_inference_steps 201 is more than the 200 that '${QWEN}' allows.`,
    ],
    ['no steps', QWEN, { num_inference_steps: 0 }, 'num_inference_steps 0 is not a whole number of at least 1.'],
    ['half a step', QWEN, { num_inference_steps: 2.5 }, 'num_inference_steps 2.5 is not a whole number of at least 1.'],
    ['guidance over 20', QWEN, { guidance_scale: 21 }, 'guidance_scale 21 is not between 0 and 20.'],
    ['guidance that is no number', QWEN, { guidance_scale: NaN }, 'guidance_scale NaN is not between 0 and 20.'],
    ['an empty prompt', KLEIN, { prompt: '' }, 'prompt is empty.'],
    ['a prompt of spaces', KLEIN, { prompt: ' \n\t\u3000' }, 'prompt is empty.'],
    ['a NUL in the prompt', KLEIN, { prompt: 'a\0b' }, 'prompt contains a NUL character.'],
    ['a lone surrogate', KLEIN, { prompt: 'a \ud83e fox' }, 'prompt contains half a surrogate pair'],
    [
      'a lone surrogate in the negative prompt',
      QWEN,
      { negative_prompt: '\udd8a' },
      'negative_prompt contains half a surrogate pair',
    ],
    [
      'a prompt of 8001 characters',
      KLEIN,
      { prompt: 'x'.repeat(8001) },
      'prompt has 8001 characters; at most 8000 are possible.',
    ],
    ['a model that only edits', QWEN_EDIT, {}, `'${QWEN_EDIT}' cannot generate images, only edit them.`],
  ])('%s', (_, model, call, message) => {
    const refusal = refusalOf(() => generate(model, call));
    expect(refusal.code).toBe('INVALID_ARGUMENT');
    expect(refusal.message).toContain(message);
  });

  test('a seed outside 0 to 4294967295', () => {
    const freeze = (seed: number) =>
      freezeGenerate({ prompt: 'x' }, profileFor(KLEIN).profile, { ...optionsFor(KLEIN), seed });
    for (const seed of [-1, 0.5, 2 ** 32, NaN]) expect(refusalOf(() => freeze(seed)).message).toContain(`seed ${seed}`);
    expect(freeze(2 ** 32 - 1).request.seed).toBe(4_294_967_295);
  });
});

describe('freezeEdit', () => {
  test.each([
    [
      'defaults of Step1X-Edit',
      STEP1X,
      {},
      { steps: 28, guidance: { field: 'guidance_scale', value: 6 }, sizeLevel: 1024 },
    ],
    ['a size level', STEP1X, { size_level: 512 }, { sizeLevel: 512 }],
    [
      'steps and guidance',
      STEP1X,
      { num_steps: 10, guidance_scale: 3 },
      { steps: 10, guidance: { field: 'guidance_scale', value: 3 } },
    ],
    [
      'defaults of a Qwen edit model',
      QWEN_EDIT,
      {},
      { steps: 40, guidance: { field: 'true_cfg_scale', value: 4 }, inputs: [INPUT] },
    ],
  ])('takes %s', (_, model, call, expected) => {
    const { request, notes } = edit(model, call);
    expect(request).toMatchObject(expected);
    expect(notes).toEqual([]);
    expect('sizeLevel' in request).toBe(model === STEP1X);
  });

  test.each([
    ['another size level', STEP1X, { size_level: 640 }, [INPUT], 'size_level 640 is not 512, 768 or 1024.'],
    [
      'a size level where there is none',
      QWEN_EDIT,
      { size_level: 512 },
      [INPUT],
      `size_level is not supported by '${QWEN_EDIT}'`,
    ],
    ['too many steps', STEP1X, { num_steps: 51 }, [INPUT], `num_steps 51 is more than the 50 that '${STEP1X}' allows.`],
    [
      'a second picture where one is possible',
      STEP1X,
      {},
      [INPUT, INPUT],
      `'${STEP1X}' takes 1 input image(s) at most, but 2 were given.`,
    ],
    ['no picture', STEP1X, {}, [], 'No input image was given.'],
    ['a model that cannot edit', TURBO, {}, [INPUT], `'${TURBO}' cannot edit images.`],
  ])('refuses %s', (_, model, call, inputs, message) => {
    const refusal = refusalOf(() => edit(model, call, inputs));
    expect(refusal.code).toBe('INVALID_ARGUMENT');
    expect(refusal.message).toContain(message);
  });
});

describe('for any call', () => {
  const text = fc.string({ unit: 'binary', maxLength: 40 });
  const number = fc.oneof(fc.integer({ min: -10, max: 4_000 }), fc.double(), fc.constantFrom(512, 1024, 0, -0));
  const model = fc.constantFrom(...PROFILES.map((profile) => profile.model), 'someone/else');
  const call = fc.record(
    {
      prompt: text,
      negative_prompt: text,
      width: number,
      height: number,
      aspect_ratio: fc.oneof(text, fc.constantFrom('1:1', '16:9', '3:2')),
      num_inference_steps: number,
      num_steps: number,
      guidance_scale: number,
      size_level: number,
    },
    { requiredKeys: ['prompt'] },
  );

  test('what is frozen is a valid request within the profile, and what is not is INVALID_ARGUMENT', () => {
    fc.assert(
      fc.property(model, call, fc.integer({ min: 0, max: 2 ** 32 - 1 }), (name, wanted, seed) => {
        const { profile, from } = profileFor(name);
        const options = { model: name, seed, profileFrom: from, inputs: [INPUT] };
        const generated = outcomeOf(() => freezeGenerate(wanted, profile, options).request);
        if (generated !== undefined) {
          expect(GenerateRequest.parse(generated)).toEqual(generated);
          expect([generated.width % profile.multiple, generated.height % profile.multiple]).toEqual([0, 0]);
          expect((generated.width * generated.height) / 1e6).toBeLessThanOrEqual(profile.maxMegapixels);
          expect(generated.steps).toBeLessThanOrEqual(profile.maxSteps);
        }
        const edited = outcomeOf(() => freezeEdit(wanted, profile, options).request);
        if (edited !== undefined) expect(EditRequest.parse(edited)).toEqual(edited);
      }),
    );
  });

  test('the width a refusal names is accepted', () => {
    fc.assert(
      fc.property(model, fc.integer({ min: -100, max: 3_000 }), (name, width) => {
        const { profile } = profileFor(name);
        fc.pre(profile.capabilities.includes('generate'));
        const freeze = (pixels: number) =>
          freezeGenerate({ prompt: 'x', width: pixels, height: 256 }, profile, optionsFor(name)).request.width;
        const refusal = outcomeOf(() => freeze(width)) === undefined ? refusalOf(() => freeze(width)).message : '';
        const named = / width is (\d+)\.$/.exec(refusal)?.[1];
        if (named !== undefined) expect(freeze(Number(named))).toBe(Number(named));
      }),
    );
  });
});

function refusalOf(freeze: () => unknown): AppError {
  try {
    freeze();
  } catch (error) {
    if (error instanceof AppError) return error;
    throw error;
  }
  throw new Error('was not refused');
}

function outcomeOf<T>(freeze: () => T): T | undefined {
  try {
    return freeze();
  } catch (error) {
    if (error instanceof AppError && error.code === 'INVALID_ARGUMENT') return undefined;
    throw error;
  }
}
