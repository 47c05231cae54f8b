import type { Asked, Answer } from './http-server.ts';
import { bodyOf, formOf, json } from './http-server.ts';
import type { EngineLog } from './engine-log.ts';
import { ApiError, invalid } from './omni-errors.ts';
import type { Made, OmniEngine, Order } from './omni-engine.ts';
import { checkFields, EDIT_FIELDS, floored, GENERATION_FIELDS, NUMBERS, parseSize } from './omni-fields.ts';
import type { OmniOptions } from './omni-options.ts';
import { pictureSize, type PictureFormat, type Size } from './picture.ts';
import { zipped } from './zip.ts';

/** What the image routes need to know of the server around them. */
export type ImageContext = {
  engine: OmniEngine;
  options: OmniOptions;
  log: EngineLog;
  host: string;
  gpu: string;
  /** With `--answer-file`: the answer to the first generation, which is that to every later one. */
  given?: Answer;
};

/** What the pipelines take when a request does not say: 50 steps, whatever the model was distilled to. */
const PIPELINE_STEPS = 50;
const PIPELINE_SIZE = { width: 1024, height: 1024 };

type Body = Record<string, unknown>;

/** POST /v1/images/generations. Keys it does not know, `extra_body` among them, have no effect. */
export async function generations({ request, left }: Asked, context: ImageContext): Promise<Answer> {
  const { options } = context;
  const body = await jsonBody(request);
  checkFields(body, GENERATION_FIELDS);
  checkModel(body['model'], context);
  const style = body['response_format'] ?? 'b64_json';
  if (style !== 'b64_json' && style !== 'file') {
    throw invalid([
      { type: 'enum', loc: ['body', 'response_format'], msg: "Input should be 'b64_json' or 'file'", input: style },
    ]);
  }
  const asked = typeof body['size'] === 'string' ? parseSize(body['size'], options.maxPixels) : undefined;
  const order = orderOf(body, { context, size: asked ?? PIPELINE_SIZE, input: undefined, left });
  const made = await context.engine.generate(order);
  if (style === 'file' && !options.isMultiStage) return fileAnswer(made.images, order.format);
  const metrics = {
    stage_durations: { stage_0_gen_ms: Math.round(made.genMs * 10) / 10 },
    peak_memory_mb: made.peakMiB,
  };
  const answer = (): Answer => json(200, imageObject(made, { order, asked, metrics, options }));
  if (options.answerFile === undefined) return answer();
  context.given ??= inBytes(answer());
  return context.given;
}

/** Encoded once, so that nothing but the sending is left to do for the next one. */
function inBytes(answer: Answer): Answer {
  return { ...answer, body: Buffer.from(answer.body as string) }; // JSON is text
}

/** POST /v1/images/edits. Unlike the route above it does not notice that its client left. */
export async function edits({ request }: Asked, context: ImageContext): Promise<Answer> {
  const { options } = context;
  const form = await formOf(request).catch(() => new FormData()); // no multipart body: every field is missing
  const body: Body = Object.fromEntries([...form].filter(([, value]) => typeof value === 'string'));
  const images = await inputImages(form);
  checkFields(body, EDIT_FIELDS);
  checkModel(body['model'], context);
  const [input] = images;
  if (!input) throw new ApiError(422, "Field 'image' or 'url' is required");
  const sizeText = typeof body['size'] === 'string' ? body['size'] : 'auto';
  const asked = sizeText === 'auto' ? await pictureSize(input) : parseSize(sizeText, options.maxPixels);
  const numbers = Object.fromEntries(
    Object.entries(body).map(([name, value]) => [name, NUMBERS.has(name) ? Number(value) : value]),
  );
  const left = new AbortController().signal; // never aborts
  const order = orderOf(numbers, { context, size: asked, input, left });
  const { images: made, ...rest } = await context.engine.generate(order);
  const delivered = options.editsFirstImageOnly ? made.slice(0, 1) : made;
  return json(200, imageObject({ images: delivered, ...rest }, { order, asked, metrics: null, options }));
}

function orderOf(
  body: Body,
  o: { context: ImageContext; size: Size; input: Buffer | undefined; left: AbortSignal },
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
    size: options.forcedSize ?? floored(o.size),
    input: o.input,
    format: options.isMultiStage ? 'png' : outputFormat(body['output_format']),
    left: o.left,
  };
}

/** The answer as the versions gave it: what is missing in the older ones is absent, not null. */
function imageObject(
  { images }: Made,
  o: { order: Order; asked: Size | undefined; metrics: object | null; options: OmniOptions },
): object {
  const { sizeField, responseShape, isMultiStage } = o.options;
  const least = {
    created: Math.floor(Date.now() / 1000),
    data: images.map((image) => ({ b64_json: image.toString('base64'), url: null, revised_prompt: null })),
  };
  if (responseShape === 'minimal') return least;
  // The size that was asked for, which is not always the size of the pixels.
  const size = sizeField === 'real' ? o.order.size : o.asked;
  return {
    ...least,
    output_format: isMultiStage ? null : o.order.format,
    size: isMultiStage || !size ? null : `${size.width}x${size.height}`,
    cot_output: null,
    ...(responseShape === 'new' && { metrics: o.metrics }),
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

function checkModel(model: unknown, { options: { servedNames, acceptsAnyModel }, log }: ImageContext): void {
  if (typeof model !== 'string' || model === servedNames[0]) return;
  const problem = `Model mismatch: request specifies '${model}' but server is running '${servedNames[0]}'.`;
  if (!acceptsAnyModel) throw new ApiError(400, problem);
  log.warning(`${problem} Using server model.`);
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
