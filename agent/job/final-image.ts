import type { Job } from '../../shared/job.ts';
import type { TextChunk } from '../../shared/png-text.ts';

type Size = { width: number; height: number };

export type Origin = { job: Job; hostname: string; gpu: string; isSimulated: boolean };

/** What the file says of itself. `runMs`: until its first byte came; the text stands before the picture. */
export function textChunks(origin: Origin, made: Size & { runMs: number }): TextChunk[] {
  return [
    { keyword: 'parameters', text: parametersText(origin.job, made) },
    { keyword: 'gantry', text: JSON.stringify(gantryText(origin, made)) },
  ];
}

/** What the user should know of the size. */
export function sizeNotes({ request }: Job, { width, height }: Size): string[] {
  if (request.width === undefined || request.height === undefined) return [];
  if (request.width === width && request.height === height) return [];
  return [`The engine made ${width}x${height} instead of the ${request.width}x${request.height} asked for.`];
}

/** The form that Stable Diffusion tools read back: prompt, negative prompt, then one line of settings. */
function parametersText({ request }: Job, { width, height }: Size): string {
  const isNegative = (request.negativePrompt ?? '').trim() !== '';
  const negative = isNegative ? [`Negative prompt: ${request.negativePrompt}`] : [];
  const settings =
    `Steps: ${request.steps}, CFG scale: ${request.guidance.value}, Seed: ${request.seed}, ` +
    `Size: ${width}x${height}, Model: ${request.model}`;
  return [request.prompt, ...negative, settings].join('\n').replaceAll('\0', '');
}

function gantryText(
  { job, hostname, gpu, isSimulated }: Origin,
  { width, height, runMs }: Size & { runMs: number },
): object {
  const { jobId, attempt, request } = job;
  const simulated = isSimulated ? { simulated: true } : {};
  return { version: 1, jobId, attempt, request, width, height, hostname, gpu, runMs, ...simulated };
}
