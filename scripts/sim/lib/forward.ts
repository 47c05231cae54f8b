import { performance } from 'node:perf_hooks';
import { pause } from '../../../shared/abort.ts';

const TICK_MS = 50;

/** The time a forward pass takes, told in steps; ends at once when the signal aborts, and after a step that `isOver`. */
export async function runSteps(o: {
  totalMs: number;
  steps: number;
  onStep: (step: number) => void;
  isOver?: () => boolean;
  signal: AbortSignal;
}): Promise<void> {
  const startedMs = performance.now();
  const stepMs = o.totalMs / o.steps;
  o.onStep(0);
  for (let step = 0; step < o.steps && !o.signal.aborted && o.isOver?.() !== true;) {
    // A bar that moves every few milliseconds helps nobody: short steps are told several at a time, as tqdm does.
    const nextMs = Math.min(o.totalMs, (step + Math.max(1, Math.ceil(TICK_MS / Math.max(stepMs, 0.001)))) * stepMs);
    await pause(Math.max(0, startedMs + nextMs - performance.now()), o.signal);
    step = Math.min(o.steps, Math.max(step + 1, Math.round(nextMs / Math.max(stepMs, 0.001))));
    if (nextMs >= o.totalMs) step = o.steps;
    if (!o.signal.aborted) o.onStep(step);
  }
}

/** Loads weights in ten parts, so that a sampler sees the memory grow; throws CudaOutOfMemory when a part does not fit. */
export async function rampUp(o: {
  totalMs: number;
  onShare: (share: number) => void;
  signal: AbortSignal;
}): Promise<void> {
  const parts = Math.max(1, Math.min(10, Math.floor(o.totalMs / 20)));
  for (let part = 1; part <= parts; part += 1) {
    await pause(o.totalMs / parts, o.signal);
    o.onShare(part / parts);
  }
}
