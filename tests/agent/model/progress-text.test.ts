import { describe, expect, test } from 'vitest';
import { progressText, sayEveryMs } from '../../../agent/model/progress-text.ts';

const qwen = { doing: 'loading' as const, alias: 'qwen', usualMs: 74_000, isMeasured: true, soFarMs: 41_000 };

describe('the progress of a load', () => {
  const ROWS: [rule: string, change: Partial<Parameters<typeof progressText>[0]>, text: string][] = [
    ['has the usual time and the time so far', {}, 'loading qwen, usually 74 s, 41 s so far'],
    ['has no time so far in its first moment', { soFarMs: 10 }, 'loading qwen, usually 74 s'],
    [
      'says when it takes longer than usual',
      { soFarMs: 90_000 },
      'loading qwen, usually 74 s, 90 s so far, longer than usual',
    ],
    ['does not call a guess usual', { isMeasured: false }, 'loading qwen, about 74 s expected, 41 s so far'],
    [
      'does not call anything longer than a guess',
      { isMeasured: false, soFarMs: 90_000 },
      'loading qwen, about 74 s expected, 90 s so far',
    ],
    [
      'has tenths where it takes seconds',
      { usualMs: 2_340, soFarMs: 1_160 },
      'loading qwen, usually 2.3 s, 1.2 s so far',
    ],
    [
      'of a wake is said likewise',
      { doing: 'waking', usualMs: 3_000, soFarMs: 500 },
      'waking qwen, usually 3.0 s, 0.5 s so far',
    ],
  ];
  test.each(ROWS)('%s', (_, change, text) => {
    expect(progressText({ ...qwen, ...change })).toBe(text);
  });

  test('is said every few seconds, and oftener where it takes little time', () => {
    expect([74_000, 20_000, 1_000].map(sayEveryMs)).toEqual([3_000, 1_000, 100]);
  });
});
