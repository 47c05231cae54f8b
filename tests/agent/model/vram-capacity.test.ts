import { expect, test } from 'vitest';
import { vramCapacity } from '../../../agent/model/vram-capacity.ts';

const needMiB = (megapixels: number): number => 10_000 + 2_000 * Math.max(1, megapixels);

test.each([
  ['up to the size that just fits', 16_000, 4, 3],
  ['all that the model draws', 24_000, 4, 4],
  ['none where not even the smallest fits', 11_999, 4, 0],
])('jobs fit: %s', (_, mostMiB, largestMegapixels, expected) => {
  const found = vramCapacity({ mostMiB, largestMegapixels, needMiB });
  expect(found.fitsMegapixels).toBeCloseTo(expected, 1);
  if (expected > 0) expect(needMiB(Math.min(found.fitsMegapixels, largestMegapixels))).toBeLessThanOrEqual(mostMiB);
});

test('what some sizes need is told', () => {
  expect(vramCapacity({ mostMiB: 16_000, largestMegapixels: 4, needMiB }).peaks).toContainEqual({
    megapixels: 4,
    peakMiB: 18_000,
  });
});
