import { stat } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import { z } from 'zod';
import { AppError } from '../../../shared/errors.ts';
import type { EditRequest } from '../../../shared/job.ts';
import { Uuid } from '../../../shared/job.ts';
import { freezeEdit } from '../../../shared/parameters.ts';
import type { BatchView, JobView } from '../../fleet/batch-view.ts';
import type { Fleet } from '../../fleet/fleet.ts';
import { formatOfName, safeName } from '../../output/file-names.ts';
import type { InputImage } from '../../output/input-image.ts';
import { readInputImage } from '../../output/input-image.ts';
import type { Roots } from '../../output/roots.ts';
import { allowedPath, outputDirectory } from '../../output/roots.ts';
import { previewsFor, runningAnswer, throwIfFailed } from '../answers.ts';
import { common, drawSeed, guidance, prompt, steps } from '../arguments.ts';
import { connectedHosts } from '../hosts.ts';
import { makeImages } from '../making.ts';
import { chooseModel } from '../model-choice.ts';
import { modelLocation } from '../status-json.ts';
import type { ImageAnswer, ToolContext } from '../tool.ts';
import { defineImageTool, MAKES } from '../tool.ts';
import { gb, seconds } from '../units.ts';

const picture = z.string().min(1).max(4_096);

const input = z.strictObject({
  image_path: picture.optional().describe('File path, or the job_id of an image made before'),
  image_paths: z.array(picture).min(1).max(3).optional().describe('Instead of image_path: 1 to 3 references'),
  prompt: prompt.describe('What to change'),
  output_path: z.string().min(1).max(4_096).optional().describe('File or directory for the result'),
  num_steps: steps,
  guidance_scale: guidance,
  size_level: z.int().min(512).max(1024).optional().describe('512, 768 or 1024, where the model has it'),
  ...common,
});

export const editImage = defineImageTool({
  name: 'edit_image',
  title: 'Edit an image',
  description:
    'Edit one picture by an instruction in words, on one of your GPU hosts; the original stays as it is. Takes PNG, JPEG ' +
    'or WebP files up to 32 MiB. Answers the path of the new file and a small preview, or `status: running` with a ' +
    'job_id for get_job.',
  annotations: MAKES,
  input,
  run,
});

async function run(args: z.output<typeof input>, context: ToolContext): Promise<ImageAnswer> {
  const { settings } = context;
  const asked = picturesOf(args);
  const roots = await context.roots();
  const target = await targetOf(args.output_path, { roots, configured: settings.outputDir });
  const fleet = await context.fleet();
  const images = await Promise.all(asked.map((path) => inputOf(path, { roots, fleet })));
  const hosts = connectedHosts(fleet.hosts(), args.host);
  const model = chooseModel(hosts, { asked: args.model, configured: settings.defaultEditModel, capability: 'edit' });
  const format = args.format ?? formatOfName(target.name ?? '') ?? 'png';
  const { request, notes } = freezeEdit({ ...args, format }, model.status.profile, {
    model: model.id,
    seed: args.seed ?? drawSeed(),
    profileFrom: model.status.profileFrom,
    inputs: images.map(({ sha256 }) => sha256),
  });
  const name = target.name === undefined ? undefined : safeName(target.name, format);
  const view = await makeImages(
    {
      kind: 'edit',
      class: 'interactive',
      jobs: [{ index: 0, request, inputFiles: images.map(({ path }) => path), directory: target.directory, name }],
      order: 'longest-first',
      maxConcurrent: undefined,
      host: args.host,
    },
    { fleet, context, waitSeconds: args.wait_seconds },
  );
  const said = [...(model.note === undefined ? [] : [model.note]), ...notes];
  return answer(view, { request, notes: said, preview: args.preview, context, fleet });
}

function picturesOf(args: z.output<typeof input>): readonly string[] {
  if (args.image_paths !== undefined && args.image_path === undefined) return args.image_paths;
  if (args.image_path !== undefined && args.image_paths === undefined) return [args.image_path];
  throw new AppError('INVALID_ARGUMENT', 'Give either image_path, or image_paths with 1 to 3 references.');
}

/** Where the result goes: an existing directory, or a file in one; without a wish, the usual directory. */
async function targetOf(
  asked: string | undefined,
  o: { roots: Roots; configured: string | undefined },
): Promise<{ directory: string; name: string | undefined }> {
  if (asked === undefined) return { directory: await outputDirectory({ asked, ...o }), name: undefined };
  const path = await allowedPath(asked, o.roots);
  const isDirectory = /[/\\]$/.test(asked) || (await stat(path).catch(() => undefined))?.isDirectory() === true;
  return isDirectory ? { directory: path, name: undefined } : { directory: dirname(path), name: basename(path) };
}

/** A picture by its path, or by the job that made it. */
async function inputOf(asked: string, { roots, fleet }: { roots: Roots; fleet: Fleet }): Promise<InputImage> {
  if (!Uuid.safeParse(asked).success) return readInputImage(await allowedPath(asked, roots));
  const made = fleet.find(asked)?.jobs.find(({ jobId }) => jobId === asked)?.filePath;
  if (made !== undefined) return readInputImage(made);
  throw new AppError(
    'INPUT_INVALID',
    `No finished image has the id ${asked}. Check with get_job, or give a file path.`,
  );
}

async function answer(
  view: BatchView,
  o: {
    request: EditRequest;
    notes: string[];
    preview: 'inline' | 'none' | undefined;
    context: ToolContext;
    fleet: Fleet;
  },
): Promise<ImageAnswer> {
  throwIfFailed(view);
  const metadata = {
    model: o.request.model,
    prompt: o.request.prompt,
    num_steps: o.request.steps,
    guidance_scale: o.request.guidance.value,
    size_level: o.request.sizeLevel,
    seed: o.request.seed,
  };
  if (view.state === 'running') {
    const running = runningAnswer(view);
    return { ...running, json: { ...running.json, metadata, notes: o.notes } };
  }
  const [job] = view.jobs;
  if (job?.result === undefined || job.filePath === undefined) {
    return {
      sentence: 'Cancelled before the image was finished; nothing was saved.',
      json: { status: 'cancelled', job_id: job?.jobId, batch_id: view.batchId },
      previews: [],
    };
  }
  const { previews, notes } = await previewsFor(view.jobs, { asked: o.preview, settings: o.context.settings });
  return {
    sentence: `Image edited successfully: ${basename(job.filePath)}, made by ${job.host ?? 'a host'}.`,
    json: {
      status: 'success',
      message: 'Image edited successfully',
      output_path: job.filePath,
      job_id: job.jobId,
      processing_time: seconds(job.result.runMs),
      metadata: { ...metadata, ...gpuAfter(job, o.fleet) },
      host: job.host,
      routing: job.routing ?? `${job.host ?? 'the host'} was free.`,
      notes: [...o.notes, ...job.result.notes, ...notes],
    },
    previews,
  };
}

/** Where the model is after the edit, by the host's latest status. */
function gpuAfter(job: JobView, fleet: Fleet) {
  const snapshot = fleet.hosts().find(({ name }) => name === job.host)?.snapshot;
  const model = snapshot?.models.find((status) => status.model === job.model);
  if (model === undefined) return {};
  return { gpu_location: modelLocation(model), gpu_memory_gb: gb(model.heldMiB) };
}
