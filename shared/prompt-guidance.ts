/** How to write prompts for a family of models, in our words, with where each family's advice comes from. */
export type PromptGuidance = { family: string; advice: readonly string[]; source: string };

type Family = PromptGuidance & { models: RegExp };

const BFL = 'Black Forest Labs';

/** The first that matches counts, so a special one stands before the family it belongs to. */
const FAMILIES: readonly Family[] = [
  {
    family: 'FLUX.2 klein',
    models: /flux\.2-klein/i,
    advice: [
      'Write flowing sentences rather than key words, the subject first: nothing expands a short prompt for it.',
      'Say where the light comes from, of what kind it is and how it falls.',
      'There is no negative prompt: say what shall be there instead.',
      'For an edit say what becomes what, and for several references which picture each thing is from.',
    ],
    source: `${BFL}: skills/flux-best-practices on GitHub, FLUX.2 family and multi-reference editing`,
  },
  {
    family: 'FLUX.2',
    models: /flux\.2/i,
    advice: [
      'Order counts: subject, what it does, style, surroundings.',
      'Colours may be given as hex codes beside the thing they are for, and text to be shown in quotation marks.',
      'There is no negative prompt: say what shall be there instead.',
    ],
    source: `${BFL}: docs.bfl.ai, prompting guide of FLUX.2 and its page on hex colours`,
  },
  {
    family: 'FLUX.1 Kontext',
    models: /flux\.1-kontext/i,
    advice: [
      'Name what changes and what must stay as it is, for instance the face, the pose or the background.',
      'Call people and things by what they look like instead of "it" or "her".',
      'To change lettering, put the old and the new words in quotation marks.',
      'Do a large change in several small edits.',
    ],
    source: `${BFL}: image-to-image prompting guide of FLUX.1 Kontext`,
  },
  {
    family: 'FLUX.1',
    models: /flux\.1/i,
    advice: [
      'Whole sentences work; the subject first, then surroundings, light and style.',
      'There is no negative prompt: say what shall be there instead.',
      'dev reads about 512 tokens of a prompt, schnell about 256.',
    ],
    source: `${BFL}: skills/flux-best-practices on GitHub; lengths: Diffusers, FLUX pipeline`,
  },
  {
    family: 'Qwen-Image-Edit',
    models: /qwen-image-edit/i,
    advice: [
      'Say in one instruction what changes; English and Chinese are both understood.',
      'Lettering in the picture can be added, changed or removed: put the words in quotation marks.',
      'With several references (2509 and later, up to 3) say which picture each person or thing is from.',
    ],
    source: 'model cards of Qwen-Image-Edit and Qwen-Image-Edit-2509; quotation marks: prompt rewriter of Qwen-Image',
  },
  {
    family: 'Qwen-Image',
    models: /qwen-image/i,
    advice: [
      'It draws lettering well, in English and Chinese, over several lines too: put the words in quotation marks.',
      'Its makers end prompts with a few words on quality, such as "Ultra HD, 4K, cinematic composition".',
      'A negative prompt works where guidance is above 1.',
    ],
    source: 'model card of Qwen-Image; quotation marks: its prompt rewriter',
  },
  {
    family: 'Z-Image Turbo',
    models: /z-image-turbo/i,
    advice: [
      'English and Chinese are both understood and drawn as lettering: put the words in quotation marks.',
      'It runs without guidance, so a negative prompt has no effect: say what shall be there instead.',
    ],
    source: 'model card of Z-Image-Turbo',
  },
  {
    family: 'Stable Diffusion 3.5',
    models: /stable-diffusion-3\.5/i,
    advice: [
      'The first 77 tokens count most, because two of its three text encoders read no more; the third reads up to 256.',
      'A negative prompt works.',
    ],
    source: 'Diffusers, Stable Diffusion 3 pipeline',
  },
  {
    family: 'LongCat-Image',
    models: /longcat-image/i,
    advice: [
      'Lettering must stand in quotation marks, or it is not drawn letter by letter.',
      'English and Chinese are both understood; a short prompt gains from being worked out first.',
    ],
    source: 'README of LongCat-Image',
  },
  {
    family: 'Ovis-Image',
    models: /ovis-image/i,
    advice: ['Made for lettering, in English and Chinese.'],
    source: 'technical report of Ovis-Image (arXiv 2511.22982)',
  },
  {
    family: 'GLM-Image',
    models: /glm-image/i,
    advice: ['Put all lettering in quotation marks.'],
    source: 'vLLM-Omni, GLM-Image example',
  },
  {
    family: 'Step1X-Edit',
    models: /step1x-edit/i,
    advice: ['One instruction in plain words, such as "add a red hat to the woman".'],
    source: 'examples of the Step1X-Edit repository',
  },
];

/** Undefined for a model of a family nobody described. */
export function promptGuidanceFor(model: string): PromptGuidance | undefined {
  const found = FAMILIES.find(({ models }) => models.test(model));
  return found && { family: found.family, advice: found.advice, source: found.source };
}
