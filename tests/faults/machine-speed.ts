import { execa } from 'execa';

/** An agent and its servers start, and nvidia-smi is asked some ten times around each transition. */
const STARTS = 40;
const LEAST_MS = 4_000;
const MOST_MS = 30_000;
const SAMPLES = 3;

/** What the programs of one fault take to start and to be asked, on this machine at this moment. */
export async function measureProcessMs(): Promise<number> {
  const tookMs: number[] = [];
  for (let sample = 0; sample < SAMPLES; sample += 1) {
    const startMs = performance.now();
    await execa('dist/sim/nvidia-smi', ['-L'], { reject: false }); // without a ledger it only complains, as late as it answers
    tookMs.push(performance.now() - startMs);
  }
  return Math.round(Math.min(MOST_MS, Math.max(LEAST_MS, STARTS * Math.max(...tookMs))));
}
