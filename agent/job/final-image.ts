import { createHash } from 'node:crypto';
import { AppError } from '../../shared/errors.ts';
import type { ImageFormat, Job } from '../../shared/job.ts';
import { addTextChunks } from '../../shared/png-text.ts';

/** What the engine may answer at most; the largest size a request may name is 67 megapixels. */
const MAX_PIXELS = 80e6;
const PREVIEW_SIDE = 1_024;

export type FinalImage = {
  image: Buffer;
  preview: Buffer;
  sha256: string;
  width: number;
  height: number;
  format: ImageFormat;
  notes: string[];
};

export type Origin = { job: Job; hostname: string; gpu: string; runMs: number; isSimulated: boolean };

/**
 * Makes the file that the user will have from what the engine answered: every pixel is decoded once, so that a truncated
 * answer is RESULT_INVALID here and not a surprise later; then the format, the text chunks, and last the hash.
 */
export async function makeFinalImage(answer: Buffer, origin: Origin): Promise<FinalImage> {
  const { request } = origin.job;
  const decoded = await decode(answer);
  const image = await encode(decoded, answer, origin);
  return {
    image,
    preview: decoded.preview,
    sha256: createHash('sha256').update(image).digest('hex'),
    width: decoded.width,
    height: decoded.height,
    format: request.format,
    notes: sizeNotes(origin.job, decoded),
  };
}

type Decoded = { width: number; height: number; format: string; preview: Buffer };

async function decode(answer: Buffer): Promise<Decoded> {
  const { default: sharp } = await import('sharp');
  try {
    const { width, height, format } = await sharp(answer, { limitInputPixels: MAX_PIXELS }).metadata();
    if (!['png', 'jpeg', 'webp'].includes(format)) throw new Error(`its format is ${format}`);
    // No shrink-on-load before the resize would miss a damaged end: the full decode is the check.
    const { data, info } = await sharp(answer, { limitInputPixels: MAX_PIXELS, failOn: 'truncated' })
      .raw()
      .toBuffer({ resolveWithObject: true });
    const preview = await sharp(data, { raw: info })
      .resize({ width: PREVIEW_SIDE, height: PREVIEW_SIDE, fit: 'inside', withoutEnlargement: true })
      .flatten({ background: '#ffffff' })
      .jpeg({ quality: 80 })
      .toBuffer();
    return { width, height, format, preview };
  } catch (error) {
    const why = error instanceof Error ? (error.message.split('\n')[0] ?? '') : String(error);
    throw new AppError(
      'RESULT_INVALID',
      `The engine returned ${answer.length} bytes that are not a complete image (${why}). The attempt failed; nothing was saved.`,
      { cause: error },
    );
  }
}

async function encode(decoded: Decoded, answer: Buffer, origin: Origin): Promise<Buffer> {
  const { default: sharp } = await import('sharp');
  const { format } = origin.job.request;
  if (format === 'jpg') return await sharp(answer).flatten({ background: '#ffffff' }).jpeg({ quality: 95 }).toBuffer();
  if (format === 'webp') return await sharp(answer).webp({ quality: 90 }).toBuffer();
  const png = decoded.format === 'png' ? answer : await sharp(answer).png().toBuffer();
  return addTextChunks(png, [
    { keyword: 'parameters', text: parametersText(origin.job, decoded) },
    { keyword: 'gantry', text: JSON.stringify(gantryText(origin, decoded)) },
  ]);
}

/** The form that Stable Diffusion tools read back: prompt, negative prompt, then one line of settings. */
function parametersText({ request }: Job, { width, height }: Decoded): string {
  const isNegative = (request.negativePrompt ?? '').trim() !== '';
  const negative = isNegative ? [`Negative prompt: ${request.negativePrompt}`] : [];
  const settings =
    `Steps: ${request.steps}, CFG scale: ${request.guidance.value}, Seed: ${request.seed}, ` +
    `Size: ${width}x${height}, Model: ${request.model}`;
  return [request.prompt, ...negative, settings].join('\n').replaceAll('\0', '');
}

function gantryText({ job, hostname, gpu, runMs, isSimulated }: Origin, { width, height }: Decoded): object {
  const { jobId, attempt, request } = job;
  const simulated = isSimulated ? { simulated: true } : {};
  return { version: 1, jobId, attempt, request, width, height, hostname, gpu, runMs, ...simulated };
}

function sizeNotes({ request }: Job, { width, height }: Decoded): string[] {
  if (request.width === undefined || request.height === undefined) return [];
  if (request.width === width && request.height === height) return [];
  return [`The engine made ${width}x${height} instead of the ${request.width}x${request.height} asked for.`];
}
