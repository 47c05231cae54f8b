import { stat } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import { z } from 'zod';
import { AppError } from '../../../shared/errors.ts';
import { formatOfName, safeName } from '../../output/file-names.ts';
import type { Roots } from '../../output/roots.ts';
import { allowedPath, outputDirectory } from '../../output/roots.ts';
import { common, drawSeed, guidance, picture, prompt, sizeLevel, steps } from '../arguments.ts';
import { editedJson, editMetadata, frozenEdit, inputOf } from '../editing.ts';
import { makeImages } from '../making.ts';
import { modelOfCall } from '../model-choice.ts';
import { singleAnswer } from '../single-answer.ts';
import type { ImageAnswer } from '../results.ts';
import type { ToolContext } from '../tool.ts';
import { defineImageTool, MAKES } from '../tool.ts';

const input = z.strictObject({
  image_path: picture.optional().describe('File, or id of an image made before'),
  image_paths: z.array(picture).min(1).max(3).optional().describe('Instead: 1 to 3 references'),
  prompt: prompt.describe('What to change'),
  output_path: z.string().min(1).max(4_096).optional().describe('File or directory'),
  num_steps: steps,
  guidance_scale: guidance,
  size_level: sizeLevel,
  ...common,
});

export const editImage = defineImageTool({
  name: 'edit_image',
  title: 'Edit an image',
  description:
    'Edit one picture (PNG, JPEG, WebP) by an instruction in words; the original stays. Answers path and ' +
    'preview, or `status: running` with a job_id.',
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
  const images = await Promise.all(asked.map((path) => inputOf(path, { roots, context })));
  const model = modelOfCall(fleet.hosts(), { args, settings, capability: 'edit' });
  const format = args.format ?? formatOfName(target.name ?? '') ?? 'png';
  const seed = args.seed ?? drawSeed();
  const { request, notes } = frozenEdit({ ...args, format }, { model, images, seed });
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
  return singleAnswer(view, {
    context,
    preview: args.preview,
    notes: said,
    frozen: { metadata: editMetadata(request) },
    made: (job) => ({
      sentence: `Image edited successfully: ${basename(job.filePath)}, made by ${job.host ?? 'a host'}.`,
      json: editedJson(job, { request, fleet }),
    }),
  });
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
