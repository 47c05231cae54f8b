import { existsSync } from 'node:fs';
import { AppError } from '../../shared/errors.ts';
import type { EditRequest, ImageFormat } from '../../shared/job.ts';
import { Uuid } from '../../shared/job.ts';
import { freezeEdit } from '../../shared/parameters.ts';
import type { EditCall, Frozen } from '../../shared/parameters.ts';
import type { Fleet } from '../fleet/fleet.ts';
import type { InputImage } from '../output/input-image.ts';
import { readInputImage } from '../output/input-image.ts';
import type { Roots } from '../output/roots.ts';
import { allowedPath } from '../output/roots.ts';
import type { ChosenModel } from './model-choice.ts';
import type { Json } from './results.ts';
import type { MadeImage } from './answers.ts';
import { noSuchImage, whyMissing } from './picture-view.ts';
import { modelLocation } from './status-json.ts';
import type { ToolContext } from './tool.ts';
import { gb, seconds } from './units.ts';

/** What a call says of one edit, in the words of the tools. */
export type EditArguments = Omit<EditCall, 'negative_prompt' | 'format'> & { format: ImageFormat };

/** A picture by its path, or by the id or address of an image made before. */
export async function inputOf(
  asked: string,
  { roots, context }: { roots: Roots; context: ToolContext },
): Promise<InputImage> {
  const id = idIn(asked);
  if (id === undefined) {
    const path = await allowedPath(asked, roots);
    // A word that is no file here was meant as an id, cut short or made up.
    if (/^[\w-]+$/.test(asked) && !existsSync(path)) throw noSuchImage(asked);
    return readInputImage(path);
  }
  const images = await context.images();
  const made = await images.find(id);
  // Whoever may only read elsewhere gets no other file by its id either.
  if (made !== undefined) return { ...(await readInputImage(await allowedPath(made.path, roots))), imageId: id };
  const entry = await images.entry(id);
  throw entry === undefined ? noSuchImage(id) : new AppError('INPUT_INVALID', whyMissing(entry));
}

/** As tools say it, or as the address of a resource has it. */
function idIn(asked: string): string | undefined {
  const [, id = asked] = /^image:\/\/([^/?]*)/.exec(asked) ?? [];
  return id === asked && !Uuid.safeParse(id).success ? undefined : id;
}

export function frozenEdit(
  args: EditArguments,
  { model, images, seed }: { model: ChosenModel; images: readonly InputImage[]; seed: number },
): Frozen<EditRequest> {
  return freezeEdit(args, model.status.profile, {
    model: model.id,
    seed,
    profileFrom: model.status.profileFrom,
    inputs: images.map(({ sha256 }) => sha256),
    parents: images.flatMap(({ imageId }) => imageId ?? []),
  });
}

export function editMetadata(request: EditRequest): Json {
  return {
    model: request.model,
    prompt: request.prompt,
    num_steps: request.steps,
    guidance_scale: request.guidance.value,
    size_level: request.sizeLevel,
    seed: request.seed,
    parents: request.parents,
  };
}

/** One edited picture as both tools tell it. */
export function editedJson(job: MadeImage, { request, fleet }: { request: EditRequest; fleet: Fleet }): Json {
  return {
    message: 'Image edited successfully',
    output_path: job.filePath,
    job_id: job.jobId,
    processing_time: seconds(job.result.runMs),
    metadata: { ...editMetadata(request), ...gpuAfter(job, fleet) },
  };
}

/** Where the model is after the edit, by the host's latest status. */
function gpuAfter(job: MadeImage, fleet: Fleet): Json {
  const snapshot = fleet.hosts().find(({ name }) => name === job.host)?.snapshot;
  const model = snapshot?.models.find((status) => status.model === job.model);
  if (model === undefined) return {};
  return { gpu_location: modelLocation(model), gpu_memory_gb: gb(model.heldMiB) };
}
