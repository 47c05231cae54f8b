import type { Asked, Answer } from './http-server.ts';
import { bodyOf, formOf, json } from './http-server.ts';
import { ApiError, type Complaint, invalid } from './omni-errors.ts';
import type { Made, OmniEngine, Order } from './omni-engine.ts';
import type { OmniOptions } from './omni-options.ts';
import { pictureSize, type PictureFormat } from './picture.ts';
import { zipped } from './zip.ts';

/** What the image routes need to know of the server around them. */
export type ImageContext = { engine: OmniEngine; options: OmniOptions; host: string; gpu: string };

/** What the pipelines take when a request does not say: 50 steps, whatever the model was distilled to. */
const PIPELINE_STEPS = 50;

type Body = Record<string, unknown>;
type Size = { width: number; height: number };

/** POST /v1/images/generations. Keys it does not know, `extra_body` among them, have no effect. */
export async function generations({ request, left }: Asked, context: ImageContext): Promise<Answer> {
  const body = await jsonBody(request);
  checkFields(body, GENERATION_FIELDS);
  checkModel(body['model'], context.options);
  const format = body['response_format'] ?? 'b64_json';
  if (format !== 'b64_json' && format !== 'file') {
    throw invalid([
      { type: 'enum', loc: ['body', 'response_format'], msg: "Input should be 'b64_json' or 'file'", input: format },
    ]);
  }
  const asked = typeof body['size'] === 'string' ? parseSize(body['size'], context.options.maxPixels) : undefined;
  const order = orderOf(body, { context, size: asked && floored(asked), input: undefined, signal: left });
  const made = await context.engine.generate(order);
  if (format === 'file') return fileAnswer(made.images, order.format);
  return json(200, {
    ...imageObject(made, order, asked),
    metrics: { stage_durations: { stage_0_gen_ms: Math.round(made.genMs * 10) / 10 }, peak_memory_mb: made.peakMiB },
  });
}

/** POST /v1/images/edits. Unlike the route above it does not notice that its client left. */
export async function edits({ request }: Asked, context: ImageContext): Promise<Answer> {
  const form = await formOf(request).catch(() => new FormData()); // no multipart body: every field is missing
  const body: Body = Object.fromEntries([...form].filter(([, value]) => typeof value === 'string'));
  const images = await inputImages(form);
  checkFields(body, EDIT_FIELDS);
  checkModel(body['model'], context.options);
  const [input] = images;
  if (!input) throw new ApiError(422, "Field 'image' or 'url' is required");
  const sizeText = typeof body['size'] === 'string' ? body['size'] : 'auto';
  const asked = sizeText === 'auto' ? await pictureSize(input) : parseSize(sizeText, context.options.maxPixels);
  const numbers = Object.fromEntries(
    Object.entries(body).map(([name, value]) => [name, NUMBERS.has(name) ? Number(value) : value]),
  );
  // A disconnect is not noticed: the signal never aborts.
  const signal = new AbortController().signal;
  const order = orderOf(numbers, { context, size: floored(asked), input, signal });
  const made = await context.engine.generate(order);
  return json(200, { ...imageObject(made, order, asked), metrics: null });
}

function orderOf(
  body: Body,
  o: { context: ImageContext; size: Size | undefined; input: Buffer | undefined; signal: AbortSignal },
): Order {
  const { options, host, gpu } = o.context;
  return {
    facts: {
      prompt: String(body['prompt']),
      // The draw is the server's own secret: no answer ever tells it.
      seed: typeof body['seed'] === 'number' ? body['seed'] : Math.floor(Math.random() * 2 ** 32),
      steps: typeof body['num_inference_steps'] === 'number' ? body['num_inference_steps'] : PIPELINE_STEPS,
      model: options.servedNames[0] ?? options.model,
      host,
      gpu,
    },
    count: typeof body['n'] === 'number' ? body['n'] : 1,
    size: o.size,
    input: o.input,
    format: outputFormat(body['output_format']),
    signal: o.signal,
  };
}

function imageObject({ images }: Made, order: Order, asked: Size | undefined): object {
  return {
    created: Math.floor(Date.now() / 1000),
    data: images.map((image) => ({ b64_json: image.toString('base64'), url: null, revised_prompt: null })),
    output_format: order.format,
    // The size that was asked for, which is not always the size of the pixels.
    size: asked ? `${asked.width}x${asked.height}` : null,
    cot_output: null,
  };
}

function fileAnswer(images: Buffer[], format: PictureFormat): Answer {
  const id = crypto.randomUUID().slice(0, 8);
  const named = (name: string) => ({ 'content-disposition': `attachment; filename="${name}"` });
  const [first = Buffer.alloc(0)] = images;
  // image/png whatever the format is: as the original says it.
  if (images.length === 1) {
    return { status: 200, headers: { 'content-type': 'image/png', ...named(`image_${id}.${format}`) }, body: first };
  }
  const files = images.map((content, index) => ({ name: `image_${index}.${format}`, content }));
  return {
    status: 200,
    headers: { 'content-type': 'application/zip', ...named(`images_${id}.zip`) },
    body: zipped(files),
  };
}

/** Anything but png, jpg, jpeg and webp becomes a jpeg without a word. */
function outputFormat(asked: unknown): PictureFormat {
  if (asked === undefined || asked === null || asked === 'png') return 'png';
  return asked === 'webp' ? 'webp' : 'jpeg';
}

function checkModel(model: unknown, { servedNames }: OmniOptions): void {
  if (typeof model !== 'string' || model === servedNames[0]) return;
  throw new ApiError(400, `Model mismatch: request specifies '${model}' but server is running '${servedNames[0]}'.`);
}

function parseSize(text: string, maxPixels: number): Size {
  const parts = text.split('x');
  if (parts.length !== 2) throw new ApiError(400, `Invalid size format: '${text}'. Expected format: 'WIDTHxHEIGHT'.`);
  if (!parts.every((part) => /^-?\d+$/.test(part))) {
    throw new ApiError(400, `Invalid size format: '${text}'. Width and height must be integers.`);
  }
  const [width = 0, height = 0] = parts.map(Number);
  if (width <= 0 || height <= 0) throw new ApiError(400, `Invalid size: ${text}. Width and height must be positive.`);
  if (width < 16 || height < 16)
    throw new ApiError(400, `Invalid size: ${text}. Width and height must be at least 16.`);
  if (width * height <= maxPixels) return { width, height };
  throw new ApiError(
    400,
    `Requested image size ${width}x${height} exceeds the maximum allowed size of ${maxPixels} pixels. ` +
      'You can reduce the size or raise --max-generated-image-size.',
  );
}

/** Pipelines work on multiples of 16 and take the next lower one. */
function floored({ width, height }: Size): Size {
  return { width: Math.max(16, width - (width % 16)), height: Math.max(16, height - (height % 16)) };
}

async function jsonBody(request: Asked['request']): Promise<Body> {
  if (!/^application\/json\b/i.test(request.headers['content-type'] ?? '')) {
    throw new ApiError(400, "Unsupported Media Type: Only 'application/json' is allowed");
  }
  try {
    const body: unknown = JSON.parse((await bodyOf(request)).toString('utf8'));
    if (typeof body === 'object' && body !== null && !Array.isArray(body)) return { ...body };
  } catch {
    // Falls through to the same refusal.
  }
  throw invalid([{ type: 'json_invalid', loc: ['body'], msg: 'JSON decode error', input: {} }]);
}

/** Files come before addresses; of both spellings the one without brackets wins. Only data: addresses are fetched here. */
async function inputImages(form: FormData): Promise<Buffer[]> {
  const files = [form.getAll('image'), form.getAll('image[]')].find((list) => list.length > 0) ?? [];
  const urls = [...form.getAll('url'), ...form.getAll('url[]')].filter((url) => typeof url === 'string');
  const read = files.flatMap((file) => (typeof file === 'string' ? [] : file.arrayBuffer()));
  return [
    ...(await Promise.all(read)).map((bytes) => Buffer.from(bytes)),
    ...urls.map((url) => Buffer.from(url.slice(url.indexOf(',') + 1), 'base64')),
  ];
}

type Rule = { kind: 'integer' | 'number' | 'text'; isRequired?: boolean; least?: number; most?: number };

const GENERATION_FIELDS: Record<string, Rule> = {
  prompt: { kind: 'text', isRequired: true },
  model: { kind: 'text' },
  n: { kind: 'integer', least: 1, most: 10 },
  size: { kind: 'text' },
  output_format: { kind: 'text' },
  negative_prompt: { kind: 'text' },
  num_inference_steps: { kind: 'integer', least: 1, most: 200 },
  guidance_scale: { kind: 'number', least: 0, most: 20 },
  true_cfg_scale: { kind: 'number', least: 0, most: 20 },
  seed: { kind: 'integer' },
  layers: { kind: 'integer', least: 2, most: 10 },
};
/** No bounds here, as in the original. */
const EDIT_FIELDS: Record<string, Rule> = {
  prompt: { kind: 'text', isRequired: true },
  n: { kind: 'integer' },
  num_inference_steps: { kind: 'integer' },
  guidance_scale: { kind: 'number' },
  true_cfg_scale: { kind: 'number' },
  seed: { kind: 'integer' },
};
const NUMBERS = new Set(['n', 'num_inference_steps', 'guidance_scale', 'true_cfg_scale', 'seed']);

function checkFields(body: Body, rules: Record<string, Rule>): void {
  const complaints = Object.entries(rules).flatMap(([name, rule]) => complaintAbout(name, body[name], rule) ?? []);
  if (complaints.length > 0) throw invalid(complaints);
}

function complaintAbout(name: string, input: unknown, rule: Rule): Complaint | undefined {
  const loc = ['body', name];
  if (input === undefined || input === null) {
    return rule.isRequired ? { type: 'missing', loc, msg: 'Field required', input: {} } : undefined;
  }
  if (rule.kind === 'text') {
    return typeof input === 'string'
      ? undefined
      : { type: 'string_type', loc, msg: 'Input should be a valid string', input };
  }
  const value = typeof input === 'string' && input.trim() !== '' ? Number(input) : input;
  if (typeof value !== 'number' || !Number.isFinite(value) || (rule.kind === 'integer' && !Number.isInteger(value))) {
    const [type, word] = rule.kind === 'integer' ? ['int_parsing', 'integer'] : ['float_parsing', 'number'];
    return { type, loc, msg: `Input should be a valid ${word}`, input };
  }
  if (rule.least !== undefined && value < rule.least) {
    return { type: 'greater_than_equal', loc, msg: `Input should be greater than or equal to ${rule.least}`, input };
  }
  if (rule.most !== undefined && value > rule.most) {
    return { type: 'less_than_equal', loc, msg: `Input should be less than or equal to ${rule.most}`, input };
  }
  return undefined;
}
