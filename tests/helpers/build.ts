import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { TestProject } from 'vitest/node';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));

/** Tests start programs from dist/, so it is built once before them: all of it, or only the simulators for unit tests. */
export async function setup({ name }: TestProject): Promise<void> {
  const parts = name === 'unit' ? ['sim'] : [];
  await promisify(execFile)(process.execPath, ['scripts/build.mjs', ...parts], { cwd: ROOT });
}
