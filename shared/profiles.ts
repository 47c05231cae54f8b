import type { ModelProfile } from './model-profile.ts';

const MIB_PER_GIB = 1024;

/** Sizes at or below 1 megapixel that suit every model with free sizes: all are multiples of 32. */
const FREE_RATIOS = {
  '1:1': [1024, 1024],
  '16:9': [1024, 576],
  '9:16': [576, 1024],
  '4:3': [1024, 768],
  '3:4': [768, 1024],
} satisfies ModelProfile['aspectRatios'];

/** The sizes Qwen-Image was trained on. */
const QWEN_RATIOS = {
  '1:1': [1328, 1328],
  '16:9': [1664, 928],
  '9:16': [928, 1664],
  '4:3': [1472, 1104],
  '3:4': [1104, 1472],
  '3:2': [1584, 1056],
  '2:3': [1056, 1584],
} satisfies ModelProfile['aspectRatios'];

const MEMORY_TABLE = 'vLLM-Omni documentation, memory table of text_to_image, 1024x1024 without offload';
const EDIT_MEMORY_TABLE = 'vLLM-Omni documentation, memory table of image_to_image, 1024x1024 without offload';
const CARD = 'model card';
const UNVERIFIED = 'common use, not verified against a primary source';
const NO_LIMIT = 'no published limit; the engine itself refuses above 33 megapixels';
const GUESS = 'first guess from 5 to 30 s an image for standard and 1 to 2 s for distilled models';
const ENGINE_LIMIT = 'vLLM-Omni API, largest accepted value';

/** What most models have in common; each profile states what differs and where that comes from. */
const STANDARD = {
  type: 'standard',
  capabilities: ['generate'],
  maxSteps: 200,
  guidanceOff: 1,
  supportsNegativePrompt: true,
  width: 1024,
  height: 1024,
  multiple: 16,
  maxMegapixels: 4,
  aspectRatios: FREE_RATIOS,
  maxInputs: 0,
  hasSizeLevel: false,
  peakMiB: null,
  stepMs: 400,
} satisfies Partial<ModelProfile>;

const STANDARD_SOURCES = {
  maxSteps: ENGINE_LIMIT,
  maxMegapixels: NO_LIMIT,
  aspectRatios: 'the five sizes of the FLUX.2-klein profile, which suit any model with free sizes',
  multiple: 'vLLM-Omni pipelines',
  stepMs: GUESS,
};

const DISTILLED = {
  ...STANDARD,
  type: 'distilled',
  supportsNegativePrompt: false,
  stepMs: 375,
} satisfies Partial<ModelProfile>;

const KLEIN = {
  ...DISTILLED,
  capabilities: ['generate', 'edit'],
  steps: 4,
  guidance: { field: 'guidance_scale', value: 1 },
  maxInputs: 3,
} satisfies Partial<ModelProfile>;

const KLEIN_SOURCES = {
  ...STANDARD_SOURCES,
  steps: `${CARD}; the pipeline's own default of 50 is wrong for it`,
  guidance: `${CARD}; distilled, so the engine ignores it`,
  maxMegapixels: CARD,
  aspectRatios: CARD,
  maxInputs: `${CARD}: several references`,
};

const KLEIN_BASE = {
  ...STANDARD,
  steps: 50,
  guidance: { field: 'guidance_scale', value: 4 },
  supportsNegativePrompt: false,
} satisfies Partial<ModelProfile>;

const KLEIN_BASE_SOURCES = {
  ...STANDARD_SOURCES,
  steps: UNVERIFIED,
  guidance: UNVERIFIED,
  supportsNegativePrompt: 'not documented, so off',
  weightsMiB: 'as the distilled model of the same size',
};

const QWEN = {
  ...STANDARD,
  steps: 50,
  guidance: { field: 'true_cfg_scale', value: 4 },
  weightsMiB: gib(53.7),
  peakMiB: gib(60),
  width: 1328,
  height: 1328,
  aspectRatios: QWEN_RATIOS,
  stepMs: 356,
} satisfies Partial<ModelProfile>;

const QWEN_SOURCES = {
  ...STANDARD_SOURCES,
  steps: 'vLLM-Omni recipe',
  guidance: `${CARD}; guidance_scale has no effect on it`,
  guidanceOff: 'source of its pipeline: 0 counts as not given and becomes 4, 1 switches it off',
  width: `${CARD}, native square`,
  height: `${CARD}, native square`,
  aspectRatios: `${CARD}; 1472x1104, because the 1472x1140 in circulation is no multiple of 16`,
  weightsMiB: MEMORY_TABLE,
  peakMiB: MEMORY_TABLE,
  stepMs: 'vLLM-Omni recipe of Qwen-Image-Edit, H200: 50 steps in 17.8 s without guidance',
};

const QWEN_EDIT = {
  ...QWEN,
  capabilities: ['edit'],
  width: 1024,
  height: 1024,
  maxInputs: 1,
} satisfies Partial<ModelProfile>;

const QWEN_EDIT_SOURCES = {
  ...QWEN_SOURCES,
  weightsMiB: EDIT_MEMORY_TABLE,
  peakMiB: EDIT_MEMORY_TABLE,
  width: 'an edit without a size is about 1 megapixel with the ratio of its input',
  height: 'as width',
};

const FLUX1 = {
  ...STANDARD,
  supportsNegativePrompt: false,
  weightsMiB: gib(31.4),
  peakMiB: gib(33.9),
} satisfies Partial<ModelProfile>;

const FLUX1_SOURCES = {
  ...STANDARD_SOURCES,
  steps: UNVERIFIED,
  guidance: `${UNVERIFIED}; embedded, not classifier-free`,
  supportsNegativePrompt: 'embedded guidance has no negative prompt',
  weightsMiB: MEMORY_TABLE,
  peakMiB: MEMORY_TABLE,
};

const SD35_SOURCES = { ...STANDARD_SOURCES, steps: UNVERIFIED, guidance: UNVERIFIED };

const OVIS = {
  ...STANDARD,
  steps: 50,
  guidance: { field: 'guidance_scale', value: 5 },
  weightsMiB: gib(17.1),
  peakMiB: gib(20),
  sources: {
    ...STANDARD_SOURCES,
    steps: 'vLLM-Omni recipe',
    guidance: 'vLLM-Omni recipe',
    weightsMiB: MEMORY_TABLE,
    peakMiB:
      'vLLM-Omni recipe: 18.0 GiB at 768x512 on an L20, carried on to 1024x1024; the 71.8 GiB of the memory table are what ' +
      'an 80 GB card lets the allocator keep',
  },
} satisfies Partial<ModelProfile>;

/** The shipped profiles. A host's configuration may override or extend them. */
export const PROFILES: readonly ModelProfile[] = [
  {
    ...DISTILLED,
    model: 'Tongyi-MAI/Z-Image-Turbo',
    steps: 9,
    maxSteps: 16,
    guidance: { field: 'guidance_scale', value: 0 },
    guidanceOff: 0,
    weightsMiB: gib(19.2),
    peakMiB: gib(24.8),
    stepMs: 167,
    sources: {
      ...STANDARD_SOURCES,
      steps: 'vLLM-Omni image_model_profiles and model card: 9 steps are 8 passes; 50 is only the signature default',
      maxSteps: 'vLLM-Omni image_model_profiles',
      guidance: 'vLLM-Omni image_model_profiles, forced to 0',
      supportsNegativePrompt: 'without guidance it has no effect',
      multiple: 'the pipeline refuses other heights and widths',
      maxMegapixels: `${CARD}, up to about 2048x2048`,
      weightsMiB: MEMORY_TABLE,
      peakMiB: MEMORY_TABLE,
    },
  },
  {
    ...KLEIN,
    model: 'black-forest-labs/FLUX.2-klein-4B',
    weightsMiB: gib(14.9),
    peakMiB: gib(22),
    sources: {
      ...KLEIN_SOURCES,
      weightsMiB: MEMORY_TABLE,
      peakMiB:
        'about 20 to 22 GiB with tiled VAE decoding; the 72.7 GiB of the memory table are what an 80 GB card lets the ' +
        'allocator keep',
    },
  },
  {
    ...KLEIN,
    model: 'black-forest-labs/FLUX.2-klein-9B',
    weightsMiB: gib(32.3),
    peakMiB: gib(37.1),
    sources: { ...KLEIN_SOURCES, weightsMiB: MEMORY_TABLE, peakMiB: MEMORY_TABLE },
  },
  {
    ...KLEIN_BASE,
    model: 'black-forest-labs/FLUX.2-klein-base-4B',
    weightsMiB: gib(14.9),
    sources: KLEIN_BASE_SOURCES,
  },
  {
    ...KLEIN_BASE,
    model: 'black-forest-labs/FLUX.2-klein-base-9B',
    weightsMiB: gib(32.3),
    sources: KLEIN_BASE_SOURCES,
  },
  {
    ...STANDARD,
    model: 'black-forest-labs/FLUX.2-dev',
    steps: 50,
    guidance: { field: 'guidance_scale', value: 4 },
    supportsNegativePrompt: false,
    weightsMiB: gib(80),
    sources: {
      ...STANDARD_SOURCES,
      steps: `${UNVERIFIED}; 28 are often enough`,
      guidance: `${UNVERIFIED}; embedded, not classifier-free`,
      supportsNegativePrompt: 'embedded guidance has no negative prompt',
      weightsMiB: 'a lower bound: it does not fit 80 GB without CPU offload, with which its peak is 65.7 GiB',
    },
  },
  {
    ...FLUX1,
    model: 'black-forest-labs/FLUX.1-dev',
    steps: 50,
    guidance: { field: 'guidance_scale', value: 3.5 },
    sources: FLUX1_SOURCES,
  },
  {
    ...FLUX1,
    model: 'black-forest-labs/FLUX.1-schnell',
    type: 'distilled',
    steps: 4,
    guidance: { field: 'guidance_scale', value: 0 },
    guidanceOff: 0,
    stepMs: 375,
    sources: { ...FLUX1_SOURCES, guidance: `${UNVERIFIED}; distilled, so none` },
  },
  {
    ...FLUX1,
    model: 'black-forest-labs/FLUX.1-Kontext-dev',
    capabilities: ['edit'],
    steps: 28,
    guidance: { field: 'guidance_scale', value: 2.5 },
    peakMiB: gib(77.6),
    maxInputs: 1,
    sources: { ...FLUX1_SOURCES, weightsMiB: EDIT_MEMORY_TABLE, peakMiB: EDIT_MEMORY_TABLE },
  },
  { ...QWEN, model: 'Qwen/Qwen-Image', sources: { ...QWEN_SOURCES, steps: CARD } },
  { ...QWEN, model: 'Qwen/Qwen-Image-2512', sources: QWEN_SOURCES },
  {
    ...QWEN,
    model: 'lightx2v/Qwen-Image-Lightning',
    type: 'distilled',
    steps: 8,
    maxSteps: 8,
    guidance: { field: 'true_cfg_scale', value: 1 },
    supportsNegativePrompt: false,
    sources: {
      ...QWEN_SOURCES,
      steps: 'variants for 4 and for 8 steps are published; 8 is the safer one',
      maxSteps: 'as steps',
      guidance: 'distilled: 1 switches it off',
      weightsMiB: 'Qwen-Image, whose weights it changes only slightly',
      peakMiB: 'as weightsMiB',
    },
  },
  {
    ...QWEN_EDIT,
    model: 'Qwen/Qwen-Image-Edit',
    peakMiB: gib(58.9),
    sources: { ...QWEN_EDIT_SOURCES, maxInputs: 'its pipeline takes one image' },
  },
  ...[
    { model: 'Qwen/Qwen-Image-Edit-2509', peakMiB: gib(58.6) },
    { model: 'Qwen/Qwen-Image-Edit-2511', peakMiB: gib(58.5) },
  ].map((version) => ({
    ...QWEN_EDIT,
    ...version,
    steps: 40,
    maxInputs: 3,
    sources: { ...QWEN_EDIT_SOURCES, steps: UNVERIFIED, maxInputs: CARD },
  })),
  {
    ...STANDARD,
    model: 'stabilityai/stable-diffusion-3.5-medium',
    steps: 40,
    guidance: { field: 'guidance_scale', value: 4.5 },
    weightsMiB: gib(15.6),
    peakMiB: gib(20.1),
    sources: { ...SD35_SOURCES, weightsMiB: MEMORY_TABLE, peakMiB: MEMORY_TABLE },
  },
  {
    ...STANDARD,
    model: 'stabilityai/stable-diffusion-3.5-large',
    steps: 28,
    guidance: { field: 'guidance_scale', value: 3.5 },
    weightsMiB: gib(27),
    sources: { ...SD35_SOURCES, weightsMiB: UNVERIFIED },
  },
  {
    ...STANDARD,
    model: 'meituan-longcat/LongCat-Image',
    steps: 50,
    guidance: { field: 'guidance_scale', value: 4.5 },
    weightsMiB: gib(27.3),
    peakMiB: gib(32.5),
    sources: {
      ...STANDARD_SOURCES,
      steps: 'vLLM-Omni documentation',
      guidance: 'vLLM-Omni documentation',
      weightsMiB: MEMORY_TABLE,
      peakMiB:
        'LongCat-Image-Edit, which has the same weights; the 71.2 GiB of the memory table are what an 80 GB card lets the ' +
        'allocator keep',
    },
  },
  {
    ...STANDARD,
    model: 'meituan-longcat/LongCat-Image-Edit',
    capabilities: ['edit'],
    steps: 50,
    guidance: { field: 'guidance_scale', value: 4.5 },
    weightsMiB: gib(27.3),
    peakMiB: gib(32.5),
    maxInputs: 1,
    sources: {
      ...STANDARD_SOURCES,
      steps: 'vLLM-Omni documentation',
      guidance: "vLLM-Omni documentation; the pipeline's own default is 3.5",
      weightsMiB: EDIT_MEMORY_TABLE,
      peakMiB: EDIT_MEMORY_TABLE,
    },
  },
  { ...OVIS, model: 'AIDC-AI/Ovis-Image-7B' },
  { ...OVIS, model: 'ATH-MaaS/Ovis-Image-7B' },
  {
    ...STANDARD,
    model: 'zai-org/GLM-Image',
    steps: 50,
    guidance: { field: 'guidance_scale', value: 1.5 },
    supportsNegativePrompt: false,
    multiple: 32,
    weightsMiB: gib(58),
    peakMiB: gib(80),
    stepMs: 1220,
    sources: {
      ...STANDARD_SOURCES,
      steps: 'vLLM-Omni recipe',
      guidance: 'vLLM-Omni recipe',
      supportsNegativePrompt: 'not documented, so off',
      multiple: 'the pipeline refuses anything that is no multiple of 32',
      weightsMiB: 'vLLM-Omni recipe: about 38 GiB for the first stage and 20 GiB for the second',
      peakMiB: 'vLLM-Omni recipe: more than 80 GB on one card',
      stepMs: 'vLLM-Omni recipe: 61 s an image on two A800',
    },
  },
  {
    ...STANDARD,
    model: 'stepfun-ai/Step1X-Edit',
    capabilities: ['edit'],
    steps: 28,
    maxSteps: 50,
    guidance: { field: 'guidance_scale', value: 6 },
    supportsNegativePrompt: false,
    maxMegapixels: 1.05,
    aspectRatios: {},
    maxInputs: 1,
    hasSizeLevel: true,
    weightsMiB: gib(40),
    peakMiB: gib(49.8),
    stepMs: 786,
    sources: {
      steps: 'Step1X-Edit server, default',
      maxSteps: 'Step1X-Edit server, documented range 10 to 50',
      guidance: 'Step1X-Edit server, default',
      supportsNegativePrompt: 'its HTTP interface has no such field',
      multiple: 'it works on an area of size_level squared, rounded to 16',
      maxMegapixels: 'size_level 1024',
      aspectRatios: 'the result has the size of the input',
      weightsMiB: 'Step1X-Edit server documentation: about 40 GB after the first load, read as GiB',
      peakMiB: 'Step1X-Edit model card: 49.8 GB at 1024 in bf16, read as GiB',
      stepMs: 'Step1X-Edit model card, H800: 22 s for 28 steps at 1024',
    },
  },
];

/** For a model nobody described: a warning goes with every picture it makes. */
const FALLBACK: Omit<ModelProfile, 'model'> = {
  ...STANDARD,
  steps: 28,
  guidance: { field: 'guidance_scale', value: 5 },
  weightsMiB: null,
  // Nothing is known: where a configuration says that it edits, one picture is what every editing model takes.
  maxInputs: 1,
  sources: { ...STANDARD_SOURCES, steps: 'fall-back', guidance: 'fall-back', width: 'fall-back', height: 'fall-back' },
};

const BY_MODEL = new Map(PROFILES.map((profile) => [profile.model.toLowerCase(), profile]));

/** The shipped profile of a model, whatever its revision; the fall-back where there is none. */
export function profileFor(model: string): { profile: ModelProfile; from: 'shipped' | 'fallback' } {
  const repository = model.replace(/@[^@/]*$/, '');
  const profile = BY_MODEL.get(repository.toLowerCase());
  if (profile !== undefined) return { profile, from: 'shipped' };
  return { profile: { model: repository, ...FALLBACK }, from: 'fallback' };
}

function gib(value: number): number {
  return Math.round(value * MIB_PER_GIB);
}
