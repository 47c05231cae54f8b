import { z } from 'zod';
import { AppError } from '../../shared/errors.ts';
import { nearest } from '../../shared/nearest.ts';
import type { PromptLine } from '../output/prompts-file.ts';
import { aspectRatio, guidance, negativePrompt, prompt, seed, side, steps } from './arguments.ts';
import { parseArguments } from './tool.ts';

/** What a line of a prompts file may say of its own picture; the call's arguments are for those that say nothing. */
const OwnArguments = z.strictObject({
  prompt,
  negative_prompt: negativePrompt,
  width: side,
  height: side,
  aspect_ratio: aspectRatio,
  num_inference_steps: steps,
  guidance_scale: guidance,
  seed,
});
export type OwnArguments = z.output<typeof OwnArguments>;

const NAMES = Object.keys(OwnArguments.shape);
const NUMBERS = new Set(['width', 'height', 'num_inference_steps', 'guidance_scale', 'seed']);

/**
 * Checks what the lines say. A key that looks like a misspelt argument is refused with the number of its prompt;
 * others, which such files often carry for their owner, are ignored with a note.
 */
export function ownArguments(lines: readonly PromptLine[]): { own: OwnArguments[]; notes: string[] } {
  const ignored = new Set<string>();
  const own = lines.map((line, index) => {
    const values: Record<string, unknown> = { prompt: line.prompt };
    for (const [key, value] of Object.entries(line.values)) {
      const near = nearest(key, NAMES);
      if (NAMES.includes(key)) values[key] = NUMBERS.has(key) ? numberOf(value) : value;
      else if (near === undefined) ignored.add(key);
      else
        throw lineError(
          index,
          `${JSON.stringify(key.slice(0, 80))} is no argument of a picture. Did you mean ${near}?`,
        );
    }
    return ofLine(index, () => parseArguments(OwnArguments, values));
  });
  if (ignored.size === 0) return { own, notes: [] };
  const named = [...ignored].slice(0, 5).map((key) => key.slice(0, 80));
  const more = ignored.size > named.length ? ' and others' : '';
  const note = `What prompts_file says as ${named.join(', ')}${more} was ignored; a line may give ${NAMES.join(', ')}.`;
  return { own, notes: [note] };
}

/** Runs what may refuse a line; its error then says which. */
export function ofLine<T>(index: number, run: () => T): T {
  try {
    return run();
  } catch (error) {
    throw error instanceof AppError ? lineError(index, error.message, error) : error;
  }
}

function lineError(index: number, why: string, cause?: AppError): AppError {
  return new AppError(cause?.code ?? 'INVALID_ARGUMENT', `Prompt ${index + 1} of prompts_file: ${why}`, { cause });
}

/** CSV has texts only. */
function numberOf(value: unknown): unknown {
  if (typeof value !== 'string' || value.trim() === '') return value;
  const number = Number(value);
  return Number.isNaN(number) ? value : number;
}
