import { pause } from '../../shared/abort.ts';
import type { VramMeasure } from '../gpu/vram-measure.ts';
import { freedMiB } from '../gpu/vram-measure.ts';

/** So many looks that show the same, and too little: nothing more is under way. */
const HOPELESS_LOOKS = 8;
const NOISE_MIB = 64;

/** Looks until a server has taken so much VRAM since `before`, or takes no more. `after` is missing where nobody answers. */
export async function untilRisen(
  look: () => Promise<VramMeasure | undefined>,
  o: { before: VramMeasure; wantMiB: number; deadlineMs: number; pollMs: number; signal: AbortSignal },
): Promise<{ after: VramMeasure | undefined; risenMiB: number }> {
  const endMs = performance.now() + o.deadlineMs;
  let equal = 0;
  let lastMiB = Number.NaN;
  for (;;) {
    const after = await look();
    if (after === undefined) return { after, risenMiB: 0 };
    const isListed = after.isListed && o.before.isListed;
    const risenMiB = isListed ? after.mineMiB - o.before.mineMiB : -freedMiB(o.before, after);
    equal = Math.abs(risenMiB - lastMiB) <= NOISE_MIB ? equal + 1 : 1;
    lastMiB = risenMiB;
    const isOver = risenMiB >= o.wantMiB || equal >= HOPELESS_LOOKS || performance.now() >= endMs || o.signal.aborted;
    if (isOver) return { after, risenMiB };
    await pause(o.pollMs, o.signal);
  }
}
