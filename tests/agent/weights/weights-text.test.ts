import { describe, expect, test } from 'vitest';
import { AppError } from '../../../shared/errors.ts';
import { forecast, readMeter, startMeter } from '../../../agent/weights/weights-meter.ts';
import { downloadText, missingWeights } from '../../../agent/weights/weights-text.ts';
import type { WeightsState } from '../../../agent/weights/weights.ts';

const GIB = 1024;
const downloading = (o: Partial<Extract<WeightsState, { kind: 'downloading' }>>): WeightsState => ({
  ...{ kind: 'downloading', doneMiB: 12 * GIB, totalMiB: 54 * GIB, isEstimate: false },
  ...{ mibPerSecond: 85, leftMs: 480_000, ...o },
});

test.each<[string, WeightsState, string | undefined]>([
  ['there', { kind: 'present' }, undefined],
  ['not asked for', { kind: 'absent' }, 'its weights are not downloaded yet'],
  ['in a queue', { kind: 'queued', behind: 'a/b' }, 'its download waits for that of a/b'],
  ['all known', downloading({}), 'downloading 12 of 54 GiB, 85 MiB/s, 8 min left'],
  ['a guessed total', downloading({ isEstimate: true, leftMs: null }), 'downloading 12 of about 54 GiB, 85 MiB/s'],
  [
    'more than was guessed',
    downloading({ doneMiB: 60 * GIB, isEstimate: true, mibPerSecond: null }),
    'downloading 60 of about 60 GiB',
  ],
  ['no total', downloading({ totalMiB: null, leftMs: null }), 'downloading, 12 GiB so far, 85 MiB/s'],
  [
    'a small one',
    downloading({ doneMiB: 3, totalMiB: 24.4, mibPerSecond: 8.25, leftMs: 2_500 }),
    'downloading 3 of 24 MiB, 8.3 MiB/s, 3 s left',
  ],
  [
    'tenths below ten',
    downloading({ doneMiB: 1_600, totalMiB: 8 * GIB, leftMs: 9_000_000 }),
    'downloading 1.6 of 8.0 GiB, 85 MiB/s, 2.5 h left',
  ],
  [
    'nothing to fetch',
    downloading({ doneMiB: 0, totalMiB: 0, mibPerSecond: null, leftMs: null }),
    'looking for its weights',
  ],
])('%s', (_, state, text) => {
  expect(downloadText(state)).toBe(text);
});

describe('what a slot says', () => {
  const error = new AppError('MODEL_FAILED', 'It is gated.');
  const failed = (retry: { atMs: number } | 'never'): WeightsState => ({
    kind: 'failed',
    problem: 'denied',
    error,
    retry,
  });

  test('nothing where they are there', () => {
    expect(missingWeights({ kind: 'present' }, 0)).toBeUndefined();
  });

  test('the time left of a download, and a guess without one', () => {
    expect(missingWeights(downloading({}), 0)).toMatchObject({ leftMs: 480_000, isFailed: false });
    expect(missingWeights({ kind: 'absent' }, 0)?.leftMs).toBeGreaterThan(0);
  });

  test('a failure that nobody mends is for good; another has its time', () => {
    expect(missingWeights(failed('never'), 0)).toEqual({ text: 'It is gated.', leftMs: 0, isFailed: true });
    const again = missingWeights(failed({ atMs: 9_000 }), 1_000);
    expect(again).toMatchObject({ text: 'It is gated. It is tried again in 8 s.', isFailed: false });
  });
});

describe('the rate', () => {
  test('is not said at once, then smoothed; the time left follows it', () => {
    let meter = startMeter(100, 0);
    meter = readMeter(meter, { doneMiB: 110, nowMs: 1_000 });
    expect(forecast(meter, 200)).toEqual({ mibPerSecond: null, leftMs: null });
    for (let second = 2; second <= 30; second += 1)
      meter = readMeter(meter, { doneMiB: 100 + 10 * second, nowMs: second * 1_000 });
    expect(forecast(meter, 500)).toEqual({
      mibPerSecond: expect.closeTo(10) as number,
      leftMs: expect.closeTo(10_000) as number,
    });
    const burst = readMeter(meter, { doneMiB: 500, nowMs: 31_000 });
    expect(burst.mibPerSecond).toBeLessThan(30);
    expect(forecast(burst, null).leftMs).toBeNull();
  });

  test('a file that changes its name takes nothing back, and is no growth when it is back', () => {
    const before = readMeter(startMeter(0, 0), { doneMiB: 50, nowMs: 1_000 });
    const gone = readMeter(before, { doneMiB: 20, nowMs: 2_000 });
    const back = readMeter(gone, { doneMiB: 50, nowMs: 3_000 });
    expect([gone.doneMiB, back.doneMiB, back.grewAtMs]).toEqual([50, 50, 1_000]);
  });
});
