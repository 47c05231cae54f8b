import { z } from 'zod';
import { AppError, toAppError } from '../../../shared/errors.ts';
import type { EditRequest } from '../../../shared/job.ts';
import type { NewJob } from '../../fleet/batch-order.ts';
import type { BatchView, JobView } from '../../fleet/batch-view.ts';
import type { Fleet } from '../../fleet/fleet.ts';
import type { InputImage } from '../../output/input-image.ts';
import { outputDirectory } from '../../output/roots.ts';
import type { Roots } from '../../output/roots.ts';
import { isMade, shownJobs } from '../answers.ts';
import { common, drawSeed, guidance, order, outputDir, picture, prompt, sizeLevel, steps } from '../arguments.ts';
import { batchAnswer } from '../batch-answer.ts';
import { editedJson, frozenEdit, inputOf } from '../editing.ts';
import { makeImages } from '../making.ts';
import type { ChosenModel } from '../model-choice.ts';
import { modelOfCall } from '../model-choice.ts';
import type { ImageAnswer, Json } from '../results.ts';
import type { ToolContext } from '../tool.ts';
import { defineImageTool, MAKES } from '../tool.ts';

const MOST = 100;

const input = z.strictObject({
  image_paths: z.array(picture).min(1).max(MOST).describe('Paths or image ids'),
  prompts: z.array(prompt).min(1).max(MOST).describe('One for all, or one each'),
  output_dir: outputDir,
  num_steps: steps,
  guidance_scale: guidance,
  size_level: sizeLevel,
  order,
  ...common,
});

type Args = z.output<typeof input>;

/** One picture of the call, as it could be read. */
type Read = { index: number; path: string; prompt: string; image: InputImage | AppError };

export const batchEditImages = defineImageTool({
  name: 'batch_edit_images',
  title: 'Edit many images',
  description:
    'Edit up to 100 pictures into new files over all GPU hosts; one that cannot be read fails alone. Answers ' +
    'as batch_generate.',
  annotations: MAKES,
  input,
  run,
});

async function run(args: Args, context: ToolContext): Promise<ImageAnswer> {
  const { settings } = context;
  const prompts = promptsOf(args);
  const roots = await context.roots();
  const directory = await outputDirectory({ asked: args.output_dir, configured: settings.outputDir, roots });
  const fleet = await context.fleet();
  const model = modelOfCall(fleet.hosts(), { args, settings, capability: 'edit' });
  const all = await readAll(args.image_paths, { prompts, roots, context });
  const { jobs, notes } = jobsOf(args, { all, model, directory });
  const view = await makeImages(
    {
      kind: 'edit',
      class: 'batch',
      jobs,
      order: args.order ?? 'longest-first',
      maxConcurrent: undefined,
      host: args.host,
    },
    { fleet, context, waitSeconds: args.wait_seconds },
  );
  const requests = new Map(jobs.map(({ index, request }) => [index, request]));
  return batchAnswer(view, {
    context,
    preview: args.preview,
    notes,
    saved: 'Edited',
    json: { model: model.id, ...outcome(view, { all, requests, fleet }) },
  });
}

function promptsOf({ image_paths: paths, prompts }: Args): readonly string[] {
  const [only] = prompts;
  if (prompts.length === 1 && only !== undefined) return paths.map(() => only);
  if (prompts.length === paths.length) return prompts;
  throw new AppError(
    'INVALID_ARGUMENT',
    `prompts has ${prompts.length} entries but there are ${paths.length} images. Give one prompt for all, or one for each.`,
  );
}

/** One after the other, because each may be large. If none can be read, why the first cannot is the answer. */
async function readAll(
  paths: readonly string[],
  { prompts, ...o }: { prompts: readonly string[]; roots: Roots; context: ToolContext },
): Promise<Read[]> {
  const known = new Map<string, InputImage | AppError>();
  for (const path of paths) {
    if (!known.has(path)) known.set(path, await inputOf(path, o).catch((error: unknown) => refusal(error)));
  }
  const read = paths.map((path, index) => ({
    index,
    path,
    prompt: prompts[index] ?? '',
    image: known.get(path) ?? new AppError('INPUT_INVALID', `Image file not found: ${path}.`),
  }));
  const [first] = read;
  if (first?.image instanceof AppError && read.every(({ image }) => image instanceof AppError)) throw first.image;
  return read;
}

/** Only what is wrong with the picture fails alone. */
function refusal(error: unknown): AppError {
  const known = toAppError(error);
  if (known.code === 'INPUT_INVALID' || known.code === 'PATH_DENIED') return known;
  throw error;
}

type EditJob = NewJob & { request: EditRequest };

function jobsOf(
  args: Args,
  { all, model, directory }: { all: readonly Read[]; model: ChosenModel; directory: string },
): { jobs: EditJob[]; notes: string[] } {
  const notes = new Set<string>(model.note === undefined ? [] : [model.note]);
  const jobs = all.flatMap(({ index, prompt: text, image }): EditJob[] => {
    if (image instanceof AppError) return [];
    const frozen = frozenEdit(
      { ...args, prompt: text, format: args.format ?? 'png' },
      { model, images: [image], seed: args.seed ?? drawSeed() },
    );
    for (const note of frozen.notes) notes.add(note);
    return [{ index, request: frozen.request, inputFiles: [image.path], directory, name: undefined }];
  });
  return { jobs, notes: [...notes] };
}

/** What came of each picture, those that could not be read among them, in the predecessors' words. */
function outcome(
  view: BatchView,
  o: { all: readonly Read[]; requests: ReadonlyMap<number, EditRequest>; fleet: Fleet },
): Json {
  const refused = o.all.flatMap(({ index, path, image }) =>
    image instanceof AppError ? [{ index, input: path, result: failedJson(image) }] : [],
  );
  const shown = shownJobs(view).map((job) => ({
    index: job.index,
    input: o.all[job.index]?.path ?? '',
    result: resultJson(job, o),
  }));
  const failures = view.failed + refused.length;
  const ended = view.completed + failures;
  return {
    ...(view.state === 'success' && refused.length > 0 && { status: 'partial' }),
    message: `Processed ${ended} images: ${view.completed} succeeded, ${failures} failed`,
    results: [...shown, ...refused].sort((a, b) => a.index - b.index).map(({ index: _, ...result }) => result),
    summary: { total: o.all.length, successes: view.completed, failures },
  };
}

function resultJson(
  job: JobView,
  { requests, fleet }: { requests: ReadonlyMap<number, EditRequest>; fleet: Fleet },
): Json {
  const request = requests.get(job.index);
  if (request === undefined || !isMade(job)) return failedJson(job.error);
  return { status: 'success', ...editedJson(job, { request, fleet }), host: job.host };
}

function failedJson(error: { code: string; message: string } | undefined): Json {
  const { code, message } = error ?? { code: 'INTERNAL', message: 'The job failed without a reason.' };
  return { status: 'error', error: `${code}: ${message}` };
}
