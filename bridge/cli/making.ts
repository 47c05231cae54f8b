import type { Command } from 'commander';
import type { Session } from '../session.ts';
import { make } from './make.ts';
import type { Operands } from './operands.ts';
import { batchOperands, editOperands, generateOperands, placesOf } from './operands.ts';
import type { ToolShape } from './tool-flags.ts';
import { addToolFlags, optionValues } from './tool-flags.ts';

export type MakingName = 'generate' | 'edit' | 'batch';

/** The tool behind each of these commands, and which of its arguments are no flags but operands. */
const MAKING: Record<
  MakingName,
  { tool: string; but: readonly string[]; operands: (words: readonly string[]) => Operands }
> = {
  generate: { tool: 'generate_image', but: ['prompt'], operands: generateOperands },
  edit: { tool: 'edit_image', but: ['image_path', 'image_paths', 'prompt'], operands: editOperands },
  batch: { tool: 'batch_generate', but: ['prompts', 'prompts_file'], operands: batchOperands },
};

/** Adds a flag for each argument of the tool, in its own words. */
export function addMakingFlags(
  command: Command,
  { name, tools }: { name: MakingName; tools: readonly ToolShape[] },
): void {
  const { tool, but } = MAKING[name];
  const shape = tools.find((one) => one.name === tool);
  if (shape === undefined) throw new Error(`there is no tool ${tool}`);
  addToolFlags(command, shape, { but });
}

/** Runs one of these commands. Returns the exit code. */
export async function runMaking(
  name: MakingName,
  { words, session }: { words: readonly string[]; session: Session },
): Promise<number> {
  const { tool, operands } = MAKING[name];
  const { args, files } = operands(words);
  const all = { ...args, ...optionValues(session.flags) };
  return await make({ tool, args: all, places: placesOf({ args: all, files }) }, session);
}
