import { execaSync } from 'execa';
import { inject, test } from 'vitest';

/** A test on a real GPU: counted as skipped where there is none. */
export const gpuTest = test.skipIf(inject('gpuMissing') !== '');

/** Holds memory of a GPU; see there for its arguments. */
export const HOLDER = new URL('cuda_holder.py', import.meta.url).pathname;

/** The first GPU here, and the program that shows it, by its path: simulated hosts have another one of that name. */
export function firstGpu(): { uuid: string; nvidiaSmi: string } {
  const { stdout } = execaSync('nvidia-smi', ['-L']);
  const nvidiaSmi = execaSync('sh', ['-c', 'command -v nvidia-smi']).stdout;
  return { uuid: /UUID: (GPU-[\w-]+)/.exec(stdout)?.[1] ?? '', nvidiaSmi };
}
