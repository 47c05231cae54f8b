import { describe, expect, test } from 'vitest';
import type { VramMeasure } from '../../../agent/gpu/vram-measure.ts';
import { isBack } from '../../../agent/model/vram-verifier.ts';

const measure = (more: Partial<VramMeasure>): VramMeasure => ({
  freeMiB: 10_000,
  mineMiB: 0,
  othersMiB: 0,
  isListed: false,
  unexplainedMiB: 9_000,
  ...more,
});

/** 8000 MiB of a dead server, with 10 000 free before its end. */
const listed = measure({ mineMiB: 8_000, isListed: true, unexplainedMiB: 500 });
const hidden = measure({ unexplainedMiB: 8_500 });

describe('the memory of a dead server is back', () => {
  const ROWS: [rule: string, before: VramMeasure, after: Partial<VramMeasure>, back: boolean][] = [
    ['when 80 % of it came free', listed, { freeMiB: 16_400 }, true],
    ['not when less came free', listed, { freeMiB: 16_000, unexplainedMiB: 2_500 }, false],
    ['not while one of its processes is listed', listed, { freeMiB: 18_000, isListed: true }, false],
    ['when what came free was taken by others meanwhile', listed, { freeMiB: 10_000, othersMiB: 8_000 }, true],
    ['not when others gave back what came free', { ...listed, othersMiB: 8_000 }, { freeMiB: 18_000 }, false],
    ['when live processes explain all that is in use, whatever it was before', listed, { unexplainedMiB: 600 }, true],
    ['not so where the driver lists no process', hidden, { unexplainedMiB: 600 }, false],
    ['not so where the size of the GPU is not known', listed, { unexplainedMiB: null }, false],
  ];
  test.each(ROWS)('%s', (_, before, after, back) => {
    const claim = { gpus: ['GPU-0'], pids: [7], before, heldMiB: 8_000 };
    expect(isBack(claim, measure(after))).toBe(back);
  });
});
