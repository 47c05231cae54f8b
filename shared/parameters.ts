import { AppError } from './errors.ts';
import type { ModelStatus } from './host-snapshot.ts';
import type { EditRequest, GenerateRequest, ImageFormat, ModelId } from './job.ts';
import type { ModelProfile } from './model-profile.ts';

/** What a caller may say about a picture, in the tools' words; everything else comes from the profile. */
export type GenerateCall = {
  prompt: string;
  negative_prompt?: string | undefined;
  width?: number | undefined;
  height?: number | undefined;
  aspect_ratio?: string | undefined;
  num_inference_steps?: number | undefined;
  guidance_scale?: number | undefined;
  format?: ImageFormat | undefined;
};

export type EditCall = {
  prompt: string;
  negative_prompt?: string | undefined;
  num_steps?: number | undefined;
  guidance_scale?: number | undefined;
  size_level?: number | undefined;
  format?: ImageFormat | undefined;
};

/** `seed` is the caller's or drawn by it, so that this stays a function. */
export type FreezeOptions = { model: ModelId; seed: number; profileFrom: ModelStatus['profileFrom'] };

export type Frozen<R> = { request: R; notes: string[] };

const MAX_PROMPT = 8_000;
const MAX_SIDE = 8_192;
const MAX_SEED = 2 ** 32 - 1;

/**
 * PURE. Call, then profile: every parameter of a picture, so that the same call means the same on every host. What the
 * model cannot do is refused with the next valid value, or ignored with a note; nothing is changed without a word.
 */
export function freezeGenerate(
  call: GenerateCall,
  profile: ModelProfile,
  options: FreezeOptions,
): Frozen<GenerateRequest> {
  if (!profile.capabilities.includes('generate'))
    throw invalid(`'${options.model}' cannot generate images, only edit them. Use edit_image, or name another model.`);
  const notes = profileNotes(profile, options);
  const request: GenerateRequest = {
    kind: 'generate',
    ...commonOf(
      { ...call, steps: call.num_inference_steps, stepsName: 'num_inference_steps' },
      profile,
      options,
      notes,
    ),
    ...sizeOf(call, profile, options.model, notes),
  };
  return { request, notes };
}

/** As freezeGenerate; `inputs` are the SHA-256 of the pictures to edit, `parents` the images of ours among them. */
export function freezeEdit(
  call: EditCall,
  profile: ModelProfile,
  options: FreezeOptions & { inputs: readonly string[]; parents?: readonly string[] },
): Frozen<EditRequest> {
  const { model, inputs, parents = [] } = options;
  if (!profile.capabilities.includes('edit'))
    throw invalid(
      `'${model}' cannot edit images. Name a model whose capabilities include edit; list_models shows them.`,
    );
  if (inputs.length < 1) throw invalid('No input image was given. Name at least one.');
  if (inputs.length > profile.maxInputs)
    throw invalid(`'${model}' takes ${profile.maxInputs} input image(s) at most, but ${inputs.length} were given.`);
  const notes = profileNotes(profile, options);
  const request: EditRequest = {
    kind: 'edit',
    ...commonOf({ ...call, steps: call.num_steps, stepsName: 'num_steps' }, profile, options, notes),
    inputs: [...inputs],
    ...(parents.length > 0 && { parents: [...parents] }),
    ...sizeLevelOf(call, profile, model),
  };
  return { request, notes };
}

/** What a person should know of a profile, in the predecessors' words. */
export function profileNotes(
  profile: ModelProfile,
  { model, profileFrom }: Pick<FreezeOptions, 'model' | 'profileFrom'>,
): string[] {
  if (profileFrom !== 'fallback') return [];
  return [
    `Model '${model}' is not in the known profiles. Using fallback defaults (steps=${profile.steps}, ` +
      `guidance=${profile.guidance.value.toFixed(1)}). Generation may produce unexpected results.`,
  ];
}

type CommonCall = Pick<GenerateCall, 'prompt' | 'negative_prompt' | 'guidance_scale' | 'format'> & {
  steps: number | undefined;
  stepsName: string;
};

function commonOf(call: CommonCall, profile: ModelProfile, { model, seed }: FreezeOptions, notes: string[]) {
  checkText('prompt', call.prompt);
  if (call.prompt.trim() === '') throw invalid('prompt is empty. Say in words what the picture shall show.');
  if (!Number.isInteger(seed) || seed < 0 || seed > MAX_SEED)
    throw invalid(`seed ${seed} is not a whole number from 0 to ${MAX_SEED}.`);
  const guidance = guidanceOf(call.guidance_scale, profile, model, notes);
  return {
    model,
    prompt: call.prompt,
    ...negativePromptOf(call.negative_prompt, { profile, guidance, model, notes }),
    steps: stepsOf(call, profile, model),
    guidance,
    seed,
    format: call.format ?? ('png' as const),
  };
}

function checkText(name: string, text: string): void {
  if (text.length > MAX_PROMPT)
    throw invalid(`${name} has ${text.length} characters; at most ${MAX_PROMPT} are possible. Shorten it.`);
  if (text.includes('\0')) throw invalid(`${name} contains a NUL character. Remove it.`);
  // With the u flag this matches only halves of a pair that stand alone.
  if (/\p{Surrogate}/u.test(text))
    throw invalid(`${name} contains half a surrogate pair, which is not text. Remove it.`);
}

function stepsOf({ steps, stepsName }: CommonCall, profile: ModelProfile, model: ModelId): number {
  if (steps === undefined) return profile.steps;
  if (!Number.isInteger(steps) || steps < 1)
    throw invalid(`${stepsName} ${steps} is not a whole number of at least 1.`);
  if (steps > profile.maxSteps)
    throw invalid(
      `${stepsName} ${steps} is more than the ${profile.maxSteps} that '${model}' allows. ` +
        `Leave it out for the recommended ${profile.steps}.`,
    );
  return steps;
}

function guidanceOf(given: number | undefined, profile: ModelProfile, model: ModelId, notes: string[]) {
  const { field, value } = profile.guidance;
  if (given === undefined) return profile.guidance;
  if (!(given >= 0 && given <= 20)) throw invalid(`guidance_scale ${given} is not between 0 and 20.`);
  if (profile.type === 'distilled' && given !== value) {
    notes.push(`guidance_scale ${given} was ignored: '${model}' is distilled and always runs with ${value}.`);
    return profile.guidance;
  }
  if (given !== 0) return { field, value: given };
  if (profile.guidanceOff !== 0)
    notes.push(`guidance_scale 0 switches guidance off, which '${model}' calls ${field} ${profile.guidanceOff}.`);
  return { field, value: profile.guidanceOff };
}

function negativePromptOf(
  given: string | undefined,
  {
    profile,
    guidance,
    model,
    notes,
  }: Pick<EditRequest, 'guidance' | 'model'> & { profile: ModelProfile; notes: string[] },
): { negativePrompt?: string } {
  if (given !== undefined) checkText('negative_prompt', given);
  if (given !== undefined && given !== '') {
    if (profile.supportsNegativePrompt) return { negativePrompt: given };
    notes.push(`negative_prompt was ignored: '${model}' does not support negative prompts.`);
    return {};
  }
  // true_cfg_scale only acts beside a negative prompt, and whether none counts as an empty one depends on the release.
  if (profile.supportsNegativePrompt && guidance.field === 'true_cfg_scale' && guidance.value > 1)
    return { negativePrompt: ' ' };
  return {};
}

function sizeOf(call: GenerateCall, profile: ModelProfile, model: ModelId, notes: string[]) {
  if (call.aspect_ratio !== undefined) {
    const size = Object.hasOwn(profile.aspectRatios, call.aspect_ratio)
      ? profile.aspectRatios[call.aspect_ratio]
      : undefined;
    if (size === undefined) throw unknownRatio(call.aspect_ratio, profile, model);
    if (call.width !== undefined || call.height !== undefined)
      notes.push(`aspect_ratio ${call.aspect_ratio} overrides width and height: ${size[0]}x${size[1]}.`);
    return { width: size[0], height: size[1] };
  }
  const width = sideOf('Width', call.width ?? profile.width, profile.multiple);
  const height = sideOf('Height', call.height ?? profile.height, profile.multiple);
  const megapixels = (width * height) / 1e6;
  if (megapixels > profile.maxMegapixels)
    throw invalid(
      `${width}x${height} is ${megapixels.toFixed(2)} megapixels; '${model}' allows at most ${profile.maxMegapixels}. ` +
        'Choose a smaller size; list_presets shows the usual ones.',
    );
  return { width, height };
}

function unknownRatio(given: string, profile: ModelProfile, model: ModelId): AppError {
  const supported = Object.keys(profile.aspectRatios).join(', ');
  return invalid(
    `Aspect ratio '${given}' is not supported by '${model}'. ` +
      (supported === '' ? 'It has none; leave it out.' : `Supported: ${supported}. Or give width and height.`),
  );
}

function sideOf(name: 'Width' | 'Height', pixels: number, multiple: number): number {
  const word = name.toLowerCase();
  // Engines refuse less than 16 pixels a side, and more than 8192 is beyond every model.
  const smallest = Math.ceil(16 / multiple) * multiple;
  if (!Number.isFinite(pixels)) throw invalid(`${name} ${pixels} is not a number of pixels.`);
  if (pixels >= smallest && pixels <= MAX_SIDE && pixels % multiple === 0) return pixels;
  const largest = Math.floor(MAX_SIDE / multiple) * multiple;
  const nearest = Math.min(largest, Math.max(smallest, Math.round(pixels / multiple) * multiple));
  if (pixels % multiple !== 0)
    throw invalid(`${name} ${pixels} is not a multiple of ${multiple}. Nearest valid ${word} is ${nearest}.`);
  throw invalid(`${name} ${pixels} is not between ${smallest} and ${largest}. Nearest valid ${word} is ${nearest}.`);
}

function sizeLevelOf(
  { size_level: given }: EditCall,
  profile: ModelProfile,
  model: ModelId,
): { sizeLevel?: 512 | 768 | 1024 } {
  if (!profile.hasSizeLevel) {
    if (given === undefined) return {};
    throw invalid(`size_level is not supported by '${model}', which works at its own resolution. Leave it out.`);
  }
  if (given === undefined) return { sizeLevel: 1024 };
  if (given === 512 || given === 768 || given === 1024) return { sizeLevel: given };
  throw invalid(`size_level ${given} is not 512, 768 or 1024.`);
}

function invalid(message: string): AppError {
  return new AppError('INVALID_ARGUMENT', message);
}
