import { z } from 'zod';
import { AppError } from '../../../shared/errors.ts';
import type { GenerateRequest } from '../../../shared/job.ts';
import { freezeGenerate } from '../../../shared/parameters.ts';
import type { BatchView } from '../../fleet/batch-view.ts';
import { readPromptsFile } from '../../output/prompts-file.ts';
import { allowedPath, outputDirectory } from '../../output/roots.ts';
import {
  plural,
  previewsFor,
  progressJson,
  qualityJson,
  resultsFileJson,
  resultsJson,
  runningAnswer,
  statusOf,
  throwIfFailed,
} from '../answers.ts';
import {
  aspectRatio,
  drawSeed,
  format,
  guidance,
  host,
  model,
  negativePrompt,
  outputDir,
  preview,
  prompt,
  side,
  steps,
  waitSeconds,
} from '../arguments.ts';
import { connectedHosts } from '../hosts.ts';
import { makeImages } from '../making.ts';
import type { ChosenModel } from '../model-choice.ts';
import { chooseModel } from '../model-choice.ts';
import type { OwnArguments } from '../prompt-lines.ts';
import { ofLine, ownArguments } from '../prompt-lines.ts';
import type { ImageAnswer, ToolContext } from '../tool.ts';
import { defineImageTool, MAKES } from '../tool.ts';
import { seconds } from '../units.ts';

const MAX_PROMPTS = 20;
const MAX_SEEDS = 10_000;
const SEEDS = 2 ** 32;

const input = z.strictObject({
  prompts: z.array(prompt).min(1).max(MAX_PROMPTS).optional().describe('1 to 20; more in prompts_file'),
  prompts_file: z
    .string()
    .min(1)
    .max(4_096)
    .optional()
    .describe(
      'Instead of prompts: .txt (one a line), .csv or .jsonl (prompt and, if wanted, width, seed, ...), up to 10,000',
    ),
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
    .describe('One per prompt; its k-th image takes seed + k - 1'),
  width: side,
  height: side,
  aspect_ratio: aspectRatio,
  num_inference_steps: steps,
  guidance_scale: guidance,
  negative_prompt: negativePrompt,
  max_concurrent: z.int().min(1).max(1_000).optional().describe('Over all hosts; default: every free slot'),
  order: z.enum(['longest-first', 'fifo']).optional().describe('fifo where the first results matter most'),
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
    'Generate images for 1 to 20 prompts, or a file of prompts, spread over all your GPU hosts so that the whole ends ' +
    'soonest. Answers the paths, one preview sheet and how well the hosts were used, or `status: running` with a ' +
    'batch_id for get_job and cancel_batch. Finished images are kept whatever happens to the others.',
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
  const hosts = connectedHosts(fleet.hosts(), args.host);
  const chosen = chooseModel(hosts, { asked: args.model, configured: settings.defaultModel, capability: 'generate' });
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
  return answer(view, { model: chosen.id, notes: [...notes, ...ignored], preview: args.preview, context });
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

async function answer(
  view: BatchView,
  o: { model: string; notes: string[]; preview: 'inline' | 'none' | undefined; context: ToolContext },
): Promise<ImageAnswer> {
  throwIfFailed(view);
  const file = await resultsFileJson(view);
  const json = {
    status: statusOf(view),
    batch_id: view.batchId,
    model: o.model,
    total_time_seconds: seconds(view.elapsedMs),
    images_generated: view.completed,
    images_failed: view.failed,
    results: resultsJson(view),
    ...file.json,
    ...qualityJson(view),
  };
  if (view.state === 'running') {
    return { ...runningAnswer(view), json: { ...json, ...progressJson(view), notes: o.notes } };
  }
  const { previews, notes } = await previewsFor(view.jobs, { asked: o.preview, settings: o.context.settings });
  const failed = view.failed > 0 ? `, ${view.failed} failed` : '';
  const cancelled = view.cancelled > 0 ? `, ${view.cancelled} cancelled` : '';
  return {
    sentence: `Saved ${plural(view.completed, 'image')} in ${seconds(view.elapsedMs)} s${failed}${cancelled}.`,
    json: { ...json, notes: [...o.notes, ...file.notes, ...notes] },
    previews,
  };
}
