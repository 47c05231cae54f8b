import { z } from 'zod';

/**
 * What the tools with images answer, for the tests and for docs/tools.md. They declare no output themselves, because clients
 * drop the images beside it.
 */

/** Files are absolute, ids are ids, and sentences are whole ones. */
const Path = z.string().startsWith('/');
const Id = z.uuidv4();
const Sentence = z.string().regex(/^\S.*[.!)]$/s);
const Seconds = z.number().nonnegative();

const Progress = {
  progress: z.strictObject({
    step: z.int(),
    total_steps: z.int(),
    completed: z.int(),
    failed: z.int(),
    cancelled: z.int(),
    total: z.int(),
  }),
  eta_seconds: Seconds.nullable(),
  queue_position: z.int().nonnegative().nullable(),
  host: z.string().optional(),
  activity: z.string().min(1),
};
const ParametersUsed = z.strictObject({
  model: z.string(),
  prompt: z.string(),
  negative_prompt: z.string().optional(),
  width: z.int(),
  height: z.int(),
  steps: z.int(),
  guidance_scale: z.number(),
  seed: z.int(),
});
const ParentIds = z.array(z.uuidv4());
const EditMetadata = z.strictObject({
  model: z.string(),
  prompt: z.string(),
  num_steps: z.int(),
  guidance_scale: z.number(),
  size_level: z.int().optional(),
  seed: z.int(),
  parents: ParentIds.optional(),
  gpu_location: z.enum(['GPU', 'CPU', 'Unloaded']).optional(),
  gpu_memory_gb: z.number().optional(),
});
const OneResult = z.strictObject({
  index: z.int(),
  job_id: Id,
  inputs: z.array(Path).optional(),
  prompt: z.string(),
  seed: z.int(),
  host: z.string(),
  file_path: Path,
  attempts: z.int(),
  generation_time_seconds: Seconds,
  started_seconds: Seconds,
  finished_seconds: Seconds,
});
const Quality = z.strictObject({
  makespan_seconds: Seconds,
  lower_bound_seconds: Seconds,
  ratio: z.number().min(0.5),
  images_per_host: z.record(z.string(), z.int()),
  swaps: z.int(),
  re_runs: z.int(),
});
const Running = { status: z.literal('running'), job_id: Id, batch_id: Id, ...Progress, notes: z.array(Sentence) };
const Cancelled = z.strictObject({ status: z.literal('cancelled'), job_id: Id, batch_id: Id });

const GenerateAnswer = z.union([
  z.strictObject({
    status: z.literal('success'),
    file_path: Path,
    job_id: Id,
    generation_time_seconds: Seconds,
    parameters_used: ParametersUsed,
    host: z.string(),
    gpu: z.string(),
    routing: Sentence,
    notes: z.array(Sentence),
  }),
  z.strictObject({ ...Running, parameters_used: ParametersUsed }),
  Cancelled,
]);
const EditAnswer = z.union([
  z.strictObject({
    status: z.literal('success'),
    message: z.literal('Image edited successfully'),
    output_path: Path,
    job_id: Id,
    processing_time: Seconds,
    metadata: EditMetadata.required({ gpu_location: true, gpu_memory_gb: true }),
    host: z.string(),
    routing: Sentence,
    notes: z.array(Sentence),
  }),
  z.strictObject({ ...Running, metadata: EditMetadata }),
  Cancelled,
]);
const batchAnswer = {
  batch_id: Id,
  model: z.string(),
  total_time_seconds: Seconds,
  images_generated: z.int(),
  images_failed: z.int(),
  results: z.array(OneResult),
  results_file: Path.optional(),
  notes: z.array(Sentence),
};
const BatchAnswer = z.union([
  z.strictObject({ status: z.enum(['success', 'partial']), ...batchAnswer, quality: Quality }),
  z.strictObject({ status: z.literal('cancelled'), ...batchAnswer, quality: Quality.optional() }),
  z.strictObject({ status: z.literal('running'), ...batchAnswer, ...Progress }),
]);
const OneEdit = z.strictObject({
  input: z.string(),
  result: z.union([
    z.strictObject({
      status: z.literal('success'),
      message: z.literal('Image edited successfully'),
      output_path: Path,
      job_id: Id,
      processing_time: Seconds,
      metadata: EditMetadata,
      host: z.string(),
    }),
    z.strictObject({ status: z.literal('error'), error: Sentence }),
  ]),
});
const batchEditAnswer = {
  batch_id: Id,
  model: z.string(),
  message: z.string().regex(/^Processed \d+ images: \d+ succeeded, \d+ failed$/),
  results: z.array(OneEdit),
  summary: z.strictObject({ total: z.int(), successes: z.int(), failures: z.int() }),
  results_file: Path.optional(),
  notes: z.array(Sentence),
};
const BatchEditAnswer = z.union([
  z.strictObject({ status: z.enum(['success', 'partial']), ...batchEditAnswer, quality: Quality }),
  z.strictObject({ status: z.literal('cancelled'), ...batchEditAnswer, quality: Quality.optional() }),
  z.strictObject({ status: z.literal('running'), ...batchEditAnswer, ...Progress }),
]);
const JobAnswer = z.strictObject({
  status: z.enum(['success', 'running', 'partial', 'cancelled']),
  state: z.enum(['waiting', 'running', 'success', 'partial', 'cancelled']),
  job_id: Id.optional(),
  batch_id: Id,
  kind: z.enum(['generate', 'edit']),
  created_at: z.iso.datetime(),
  ...Progress,
  elapsed_seconds: Seconds,
  results: z.array(z.union([OneResult, z.strictObject({ ...OneResult.shape, cancelled: z.literal(true) }).partial()])),
  results_file: Path.optional(),
  quality: Quality.optional(),
  routing: Sentence.optional(),
  notes: z.array(Sentence),
});

const ShownImage = z.strictObject({
  status: z.literal('success'),
  file_path: Path,
  id: Id.optional(),
  created_at: z.iso.datetime().optional(),
  kind: z.enum(['generate', 'edit']).optional(),
  model: z.string().optional(),
  prompt: z.string().optional(),
  negative_prompt: z.string().optional(),
  seed: z.int().optional(),
  num_inference_steps: z.int().optional(),
  guidance_scale: z.number().optional(),
  size_level: z.int().optional(),
  width: z.int().optional(),
  height: z.int().optional(),
  format: z.string().optional(),
  bytes: z.int().optional(),
  sha256: z.string().optional(),
  host: z.string().optional(),
  gpu: z.string().optional(),
  generation_time_seconds: Seconds.optional(),
  batch_id: Id.optional(),
  parents: z.array(z.strictObject({ id: Id.optional(), path: Path, sha256: z.string() })).optional(),
  shown: z.union([
    z.strictObject({
      mime_type: z.string(),
      width: z.int(),
      height: z.int(),
      quality: z.int().optional(),
      bytes: z.int(),
    }),
    z.string(),
  ]),
  notes: z.array(Sentence),
});

/** By tool: in the order of success, under way, and stopped where they differ. */
export const IMAGE_ANSWERS: Readonly<Record<string, z.ZodType>> = {
  generate_image: GenerateAnswer,
  edit_image: EditAnswer,
  batch_generate: BatchAnswer,
  batch_edit_images: BatchEditAnswer,
  get_job: JobAnswer,
  get_image: ShownImage,
};
