import { basename } from 'node:path';
import { z } from 'zod';
import { freezeGenerate } from '../../../shared/parameters.ts';
import type { GenerateRequest } from '../../../shared/job.ts';
import { formatOfName, safeName } from '../../output/file-names.ts';
import { outputDirectory } from '../../output/roots.ts';
import {
  aspectRatio,
  common,
  drawSeed,
  guidance,
  negativePrompt,
  outputDir,
  prompt,
  side,
  steps,
} from '../arguments.ts';
import { makeImages } from '../making.ts';
import { modelOfCall } from '../model-choice.ts';
import { singleAnswer } from '../single-answer.ts';
import type { ImageAnswer } from '../results.ts';
import type { ToolContext } from '../tool.ts';
import { defineImageTool, MAKES } from '../tool.ts';
import { seconds } from '../units.ts';

const input = z.strictObject({
  prompt,
  negative_prompt: negativePrompt,
  width: side.describe('Pixels; default from the model'),
  height: side,
  aspect_ratio: aspectRatio,
  num_inference_steps: steps,
  guidance_scale: guidance,
  filename: z.string().min(1).max(1_000).optional().describe('Default: time and hash'),
  output_dir: outputDir,
  ...common,
});

export const generateImage = defineImageTool({
  name: 'generate_image',
  title: 'Generate an image',
  description:
    'Generate one image from a text prompt and save it as a new file. What is left out comes from the model. ' +
    'Answers path and preview, or `status: running` with a job_id for get_job.',
  annotations: MAKES,
  input,
  run,
});

async function run(args: z.output<typeof input>, context: ToolContext): Promise<ImageAnswer> {
  const { settings } = context;
  const roots = await context.roots();
  const directory = await outputDirectory({ asked: args.output_dir, configured: settings.outputDir, roots });
  const fleet = await context.fleet();
  const model = modelOfCall(fleet.hosts(), { args, settings, capability: 'generate' });
  const format = args.format ?? formatOfName(args.filename ?? '') ?? 'png';
  const { request, notes } = freezeGenerate({ ...args, format }, model.status.profile, {
    model: model.id,
    seed: args.seed ?? drawSeed(),
    profileFrom: model.status.profileFrom,
  });
  const name = args.filename === undefined ? undefined : safeName(args.filename, format);
  const view = await makeImages(
    {
      kind: 'generate',
      class: 'interactive',
      jobs: [{ index: 0, request, directory, name }],
      order: 'longest-first',
      maxConcurrent: undefined,
      host: args.host,
    },
    { fleet, context, waitSeconds: args.wait_seconds },
  );
  const said = [...(model.note === undefined ? [] : [model.note]), ...notes, ...renamed(args.filename, name)];
  return singleAnswer(view, {
    context,
    preview: args.preview,
    notes: said,
    frozen: { parameters_used: parametersUsed(request) },
    made: ({ filePath, host = 'a host', jobId, result }) => ({
      sentence: `Saved 1 image: ${basename(filePath)}, ${result.width}x${result.height}, made by ${host}.`,
      json: {
        file_path: filePath,
        job_id: jobId,
        generation_time_seconds: seconds(result.runMs),
        parameters_used: { ...parametersUsed(request), width: result.width, height: result.height },
        gpu: result.gpu,
      },
    }),
  });
}

function parametersUsed(request: GenerateRequest) {
  return {
    model: request.model,
    prompt: request.prompt,
    negative_prompt: request.negativePrompt?.trim() === '' ? undefined : request.negativePrompt,
    width: request.width,
    height: request.height,
    steps: request.steps,
    guidance_scale: request.guidance.value,
    seed: request.seed,
  };
}

function renamed(asked: string | undefined, name: string | undefined): string[] {
  if (asked === undefined || name === undefined || asked === name) return [];
  return [`The file is called ${name}: of filename only a safe name counts, with the extension of the format.`];
}
