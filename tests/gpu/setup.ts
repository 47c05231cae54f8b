import { execaSync } from 'execa';
import type { TestProject } from 'vitest/node';

declare module 'vitest' {
  export interface ProvidedContext {
    /** Why tests on a real GPU cannot run here; empty where they can. */
    gpuMissing: string;
  }
}

/** Looks for a GPU once, and says in one line where there is none: then the tests are counted as skipped. */
export function setup(project: TestProject): void {
  const missing = whatIsMissing();
  project.provide('gpuMissing', missing);
  if (missing !== '') process.stdout.write(`No test on a real GPU is run: ${missing}.\n`);
}

function whatIsMissing(): string {
  const list = execaSync('nvidia-smi', ['-L'], { reject: false, timeout: 20_000 });
  if (list.exitCode === undefined) return 'nvidia-smi was not found';
  if (list.exitCode !== 0 || !/^GPU \d+:/m.test(list.stdout)) return `nvidia-smi shows no GPU (${list.stdout.trim()})`;
  const program = 'import ctypes, sys; sys.exit(ctypes.CDLL("libcuda.so.1").cuInit(0))';
  const cuda = execaSync('python3', ['-c', program], { reject: false, timeout: 60_000 });
  if (cuda.exitCode === 0) return '';
  return `python3 cannot use the CUDA driver (${cuda.stderr?.trim().split('\n').at(-1) ?? 'python3 was not found'})`;
}
