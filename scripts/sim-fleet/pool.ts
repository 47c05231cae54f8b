import { Worker } from 'node:worker_threads';
import type { Verdict } from './run-seed.ts';

/** Seeds that a worker gets at a time: few enough to share the work evenly, enough that messages cost nothing. */
const SEEDS_AT_A_TIME = 25;

/** Runs all seeds on so many threads, and tells each verdict as it comes; ends early when `onVerdict` returns false. */
export async function runSeeds(
  text: string,
  o: { seeds: readonly number[]; threads: number; onVerdict: (verdict: Verdict) => boolean },
): Promise<void> {
  let next = 0;
  let goesOn = true;
  const work = async (): Promise<void> => {
    const worker = new Worker(text, { eval: true });
    try {
      while (goesOn && next < o.seeds.length) {
        const seeds = o.seeds.slice(next, next + SEEDS_AT_A_TIME);
        next += seeds.length;
        for (const verdict of await ask(worker, seeds)) goesOn = o.onVerdict(verdict) && goesOn;
      }
    } finally {
      await worker.terminate();
    }
  };
  await Promise.all(Array.from({ length: o.threads }, work));
}

async function ask(worker: Worker, seeds: readonly number[]): Promise<Verdict[]> {
  return await new Promise((resolve, reject) => {
    const onMessage = (verdicts: Verdict[]): void => {
      worker.off('error', reject);
      resolve(verdicts);
    };
    worker.once('message', onMessage);
    worker.once('error', reject);
    worker.postMessage({ seeds });
  });
}
