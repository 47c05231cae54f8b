import { z } from 'zod';

export const Uuid = z.uuidv4();
export const Sha256 = z.string().regex(/^[0-9a-f]{64}$/);

/** Fleet-wide id of a model: `repository@revision`, or `repository` where no revision is pinned. */
export const ModelId = z.string().min(1).max(200);
export type ModelId = z.infer<typeof ModelId>;

export const ImageFormat = z.enum(['png', 'jpg', 'webp']);
export type ImageFormat = z.infer<typeof ImageFormat>;

/** The engine's own name for what the tools call `guidance_scale`, with the value to send. */
export const Guidance = z.object({
  field: z.enum(['guidance_scale', 'true_cfg_scale']),
  value: z.number().min(0).max(20),
});
export type Guidance = z.infer<typeof Guidance>;

const frozen = {
  model: ModelId,
  prompt: z.string().min(1).max(8_000),
  negativePrompt: z.string().max(8_000).optional(),
  steps: z.int().min(1).max(200),
  guidance: Guidance,
  seed: z
    .int()
    .min(0)
    .max(2 ** 32 - 1),
  format: ImageFormat,
};

/** Width and height in pixels. Every parameter is sent explicitly, so that the request means the same on every host. */
export const GenerateRequest = z.object({
  kind: z.literal('generate'),
  ...frozen,
  width: z.int().min(16).max(8_192),
  height: z.int().min(16).max(8_192),
});
export type GenerateRequest = z.infer<typeof GenerateRequest>;

/** `inputs` are the SHA-256 of the pictures to edit, as uploaded; `sizeLevel` is Step1X-Edit's working resolution. */
export const EditRequest = z.object({
  kind: z.literal('edit'),
  ...frozen,
  inputs: z.array(Sha256).min(1).max(3),
  /** The images made before that the inputs are, as far as that is known: where this picture comes from. */
  parents: z.array(Uuid).min(1).max(3).optional(),
  sizeLevel: z.union([z.literal(512), z.literal(768), z.literal(1024)]).optional(),
  width: z.int().min(16).max(8_192).optional(),
  height: z.int().min(16).max(8_192).optional(),
});
export type EditRequest = z.infer<typeof EditRequest>;

/** One image asked for, with all parameters frozen. */
export const JobRequest = z.discriminatedUnion('kind', [GenerateRequest, EditRequest]);
export type JobRequest = z.infer<typeof JobRequest>;

export const JobClass = z.enum(['interactive', 'batch']);
export type JobClass = z.infer<typeof JobClass>;

/**
 * Failures end a job after three, but hosts that come and go may lose it any number of times: at one take in 45 s of silence
 * this is five days of that.
 */
export const MAX_ATTEMPT = 9_999;

/** A job as it is taken: one take is one attempt. */
export const Job = z.object({
  jobId: Uuid,
  attempt: z.int().min(1).max(MAX_ATTEMPT),
  class: JobClass,
  request: JobRequest,
});
export type Job = z.infer<typeof Job>;

/** What came out: the final file as the agent stores it, text chunks included. Width and height are read from the bytes. */
export const JobResult = z.object({
  sha256: Sha256,
  bytes: z.int().positive(),
  width: z.int().positive(),
  height: z.int().positive(),
  format: ImageFormat,
  /** From the request to the engine to its last byte. */
  runMs: z.number().nonnegative(),
  gpu: z.string(),
  notes: z.array(z.string()),
});
export type JobResult = z.infer<typeof JobResult>;

export const JobError = z.object({ code: z.string(), message: z.string(), retryable: z.boolean() });
export type JobError = z.infer<typeof JobError>;

/** Megapixels a request works on; an edit without a size works at its size level, or at 1 MP. */
export function megapixelsOf(request: JobRequest): number {
  if (request.width !== undefined && request.height !== undefined) return (request.width * request.height) / 1e6;
  const side = request.kind === 'edit' ? (request.sizeLevel ?? 1024) : 1024;
  return (side * side) / 1e6;
}
