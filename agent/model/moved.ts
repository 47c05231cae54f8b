import type { VramMeasure } from '../gpu/vram-measure.ts';
import { freedMiB } from '../gpu/vram-measure.ts';

/** What a transition did, with VRAM as nvidia-smi showed it before and after. */
export type Moved = {
  done: 'load' | 'wake' | 'offload' | 'release' | 'nothing';
  tookMs: number;
  before?: VramMeasure;
  after?: VramMeasure;
  heldBeforeMiB: number;
  heldAfterMiB: number;
  freedMiB: number;
  /** Why something else was done than was asked for. */
  why?: string;
};

export function movedBy(
  done: Moved['done'],
  o: {
    startMs: number;
    before: VramMeasure | undefined;
    after: VramMeasure | undefined;
    heldBeforeMiB: number;
    heldAfterMiB: number;
  },
): Moved {
  return {
    done,
    tookMs: performance.now() - o.startMs,
    ...(o.before && { before: o.before }),
    ...(o.after && { after: o.after }),
    heldBeforeMiB: o.heldBeforeMiB,
    heldAfterMiB: o.heldAfterMiB,
    freedMiB: o.before && o.after ? freedMiB(o.before, o.after) : 0,
  };
}

/** It was there already. */
export function notMoved(heldMiB: number): Moved {
  return { done: 'nothing', tookMs: 0, heldBeforeMiB: heldMiB, heldAfterMiB: heldMiB, freedMiB: 0 };
}
