import { z } from 'zod';
import { AppError } from '../../../shared/errors.ts';
import type { GenerateRequest } from '../../../shared/job.ts';
import { freezeGenerate } from '../../../shared/parameters.ts';
import { readPromptsFile } from '../../output/prompts-file.ts';
import { allowedPath, outputDirectory } from '../../output/roots.ts';
import { resultsJson } from '../answers.ts';
import {
  aspectRatio,
  drawSeed,
  format,
  guidance,
  host,
  model,
  negativePrompt,
  order,
  outputDir,
  preview,
  prompt,
  side,
  steps,
  waitSeconds,
} from '../arguments.ts';
import { batchAnswer } from '../batch-answer.ts';
import { makeImages } from '../making.ts';
import type { ChosenModel } from '../model-choice.ts';
import { modelOfCall } from '../model-choice.ts';
import type { OwnArguments } from '../prompt-lines.ts';
import { ofLine, ownArguments } from '../prompt-lines.ts';
import type { ImageAnswer } from '../results.ts';
import type { ToolContext } from '../tool.ts';
import { defineImageTool, MAKES } from '../tool.ts';
import { seconds } from '../units.ts';

const MAX_PROMPTS = 20;
const MAX_SEEDS = 10_000;
const SEEDS = 2 ** 32;

const input = z.strictObject({
  prompts: z.array(prompt).min(1).max(MAX_PROMPTS, 'Put more of them into a prompts_file.').optional(),
  prompts_file: z
    .string()
    .min(1)
    .max(4_096)
    .optional()
    .describe('Instead: up to 10,000 as .txt (lines), .csv or .jsonl (prompt, width, seed, ...)'),
  images_per_prompt: z.int().min(1).max(8).optional(),
  seeds: z
    .array(
      z
        .int()
        .min(0)
        .max(SEEDS - 1),
    )
    .max(MAX_SEEDS)
    .optional()
    .describe('One per prompt; its k-th image: seed + k - 1'),
  width: side,
  height: side,
  aspect_ratio: aspectRatio,
  num_inference_steps: steps,
  guidance_scale: guidance,
  negative_prompt: negativePrompt,
  max_concurrent: z.int().min(1).max(1_000).optional().describe('Over all hosts'),
  order,
  output_dir: outputDir,
  format,
  model,
  host,
  preview,
  wait_seconds: waitSeconds,
});

type Args = z.output<typeof input>;

export const batchGenerate = defineImageTool({
  name: 'batch_generate',
  title: 'Generate many images',
  description:
    'Generate images for 1 to 20 prompts, or a file of them, over all GPU hosts. Answers paths and a preview ' +
    'sheet, or `status: running` with a batch_id for get_job and cancel_batch.',
  annotations: MAKES,
  input,
  run,
});

async function run(args: Args, context: ToolContext): Promise<ImageAnswer> {
  const { settings } = context;
  const roots = await context.roots();
  if ((args.prompts === undefined) === (args.prompts_file === undefined)) {
    throw new AppError('INVALID_ARGUMENT', 'Give either prompts (1 to 20) or prompts_file.');
  }
  const { own, notes: ignored } =
    args.prompts === undefined
      ? ownArguments(await readPromptsFile(await allowedPath(args.prompts_file ?? '', roots)))
      : { own: args.prompts.map((text): OwnArguments => ({ prompt: text })), notes: [] };
  const seeds = seedsOf(args, own);
  const directory = await outputDirectory({ asked: args.output_dir, configured: settings.outputDir, roots });
  const fleet = await context.fleet();
  const chosen = modelOfCall(fleet.hosts(), { args, settings, capability: 'generate' });
  const { requests, notes } = requestsOf(args, { own, seeds, chosen });
  const view = await makeImages(
    {
      kind: 'generate',
      class: 'batch',
      jobs: requests.map((request, index) => ({ index, request, directory, name: undefined })),
      order: args.order ?? 'longest-first',
      maxConcurrent: args.max_concurrent,
      host: args.host,
    },
    { fleet, context, waitSeconds: args.wait_seconds },
  );
  return batchAnswer(view, {
    context,
    preview: args.preview,
    notes: [...notes, ...ignored],
    saved: 'Saved',
    json: {
      model: chosen.id,
      total_time_seconds: seconds(view.elapsedMs),
      images_generated: view.completed,
      images_failed: view.failed,
      results: resultsJson(view),
    },
  });
}

function seedsOf({ seeds }: Args, own: readonly OwnArguments[]): readonly number[] {
  if (seeds === undefined) return own.map(({ seed }) => seed ?? drawSeed());
  if (own.some(({ seed }) => seed !== undefined)) {
    throw new AppError(
      'INVALID_ARGUMENT',
      'prompts_file has seeds of its own. Leave seeds out, or take them out of it.',
    );
  }
  if (seeds.length === own.length) return seeds;
  throw new AppError(
    'INVALID_ARGUMENT',
    `seeds has ${seeds.length} entries but there are ${own.length} prompts. Give one seed per prompt, or leave seeds out.`,
  );
}

/** One request per image: prompts in order, the images of one prompt side by side. Notes are said once. */
function requestsOf(
  args: Args,
  { own, seeds, chosen }: { own: readonly OwnArguments[]; seeds: readonly number[]; chosen: ChosenModel },
): { requests: GenerateRequest[]; notes: string[] } {
  const notes = new Set<string>(chosen.note === undefined ? [] : [chosen.note]);
  const { profile, profileFrom } = chosen.status;
  const requests = own.flatMap((line, index) => {
    // A size of its own is more than a ratio for all.
    const hasSize = line.width !== undefined || line.height !== undefined;
    const call = { ...args, ...(hasSize && { aspect_ratio: undefined }), ...line };
    return Array.from({ length: args.images_per_prompt ?? 1 }, (_, k) => {
      const seed = ((seeds[index] ?? drawSeed()) + k) % SEEDS;
      const freeze = () => freezeGenerate(call, profile, { model: chosen.id, seed, profileFrom });
      const frozen = args.prompts_file === undefined ? freeze() : ofLine(index, freeze);
      for (const note of frozen.notes) notes.add(note);
      return frozen.request;
    });
  });
  return { requests, notes: [...notes] };
}
