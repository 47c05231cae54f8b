import { statSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { AppError } from '../../shared/errors.ts';

/** What the words of a command say: arguments of its tool, and the places they name. */
export type Operands = { args: Record<string, unknown>; files: readonly string[] };

const PROMPTS_FILE = /\.(txt|csv|jsonl)$/i;
/** Arguments of tools that name a place to write to. */
const PLACES = ['output_dir', 'output_path'];

export function generateOperands(words: readonly string[]): Operands {
  const [prompt, ...more] = words;
  if (more.length > 0) {
    throw new AppError(
      'INVALID_ARGUMENT',
      `generate takes one prompt, and got ${words.length}. Write it in quotes; for several images: gantry batch.`,
    );
  }
  return { args: { prompt }, files: [] };
}

/** The last word is the prompt, those before it are the pictures. */
export function editOperands(words: readonly string[]): Operands {
  const images = words.slice(0, -1);
  const prompt = words.at(-1);
  const [only] = images;
  if (only === undefined)
    throw new AppError('INVALID_ARGUMENT', 'edit takes an image and a prompt: gantry edit photo.jpg "add a kite".');
  return { args: { ...(images.length === 1 ? { image_path: only } : { image_paths: images }), prompt }, files: images };
}

/** One word that is the name of a file is a prompts file; everything else are prompts. */
export function batchOperands(words: readonly string[]): Operands {
  const [only = ''] = words;
  if (words.length === 1 && (PROMPTS_FILE.test(only) || isFile(only)))
    return { args: { prompts_file: only }, files: [only] };
  return { args: { prompts: words }, files: [] };
}

/** Directories that a person meant by naming them; the rules for what is private hold there too. */
export function placesOf({ args, files }: Operands): string[] {
  const named = PLACES.flatMap((key) => (typeof args[key] === 'string' ? [args[key]] : []));
  return [...files, ...named].flatMap((path) => [resolve(path), dirname(resolve(path))]);
}

function isFile(path: string): boolean {
  try {
    return statSync(path).isFile();
  } catch {
    return false; // most prompts are no names of files, and some cannot be
  }
}
