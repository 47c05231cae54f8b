/** PURE. The hosts and the jobs of the batch targets. Work is in ms on a host of speed 1. */
export const SPEEDS = [1, 1, 2, 4] as const;

/** One step takes so long on a host of speed 1; a job's work is its steps, which every side of it knows. */
const STEP_MS = 100;
const COUNT = 40;
const UNIFORM_WORK_MS = 800;
const MIXED_WORK_MS = [400, 400, 800, 800, 1_600, 3_200] as const;
/** The first seed that draws 41.6 s of work in all. */
const MIXED_SEED = 42;

export type BenchJob = { prompt: string; steps: number; workMs: number };

export function uniformJobs(count = COUNT): BenchJob[] {
  return Array.from({ length: count }, (_, index) => jobOf(`uniform ${index}`, UNIFORM_WORK_MS));
}

/** Drawn with a fixed seed: always the same jobs in the same order. */
export function mixedJobs(count = COUNT, seed = MIXED_SEED): BenchJob[] {
  const random = randomFrom(seed);
  return Array.from({ length: count }, (_, index) => {
    const workMs = MIXED_WORK_MS[Math.floor(random() * MIXED_WORK_MS.length)] ?? MIXED_WORK_MS[0];
    return jobOf(`mixed ${index}`, workMs);
  });
}

/** Which of two models each job wants, by a fixed draw. */
export function mixedModels(count: number, models: readonly [string, string]): string[] {
  const random = randomFrom(COUNT);
  return Array.from({ length: count }, () => (random() < 0.5 ? models[0] : models[1]));
}

export function stepMs(speed: number): number {
  return STEP_MS / speed;
}

function jobOf(prompt: string, workMs: number): BenchJob {
  return { prompt, steps: workMs / STEP_MS, workMs };
}

/** Numbers in 0..1 (mulberry32). */
function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
