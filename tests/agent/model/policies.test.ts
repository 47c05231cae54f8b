import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { jobPeakMiB, learnPeak, loadedMiB, offloadedMiB, peakMiB } from '../../../agent/model/footprint.ts';
import type { Footprint } from '../../../agent/model/footprint.ts';
import type { IdleFacts } from '../../../agent/model/idle-policy.ts';
import { idleAction } from '../../../agent/model/idle-policy.ts';
import type { ModelState } from '../../../agent/model/model-state.ts';
import { canEnter, TRANSITIONS } from '../../../agent/model/model-state.ts';
import type { Failures } from '../../../agent/server/restart-policy.ts';
import { afterReady, retryAfter } from '../../../agent/server/restart-policy.ts';
import { omni } from './model-host.ts';

type Kind = ModelState['kind'];

describe('a state', () => {
  const LEGAL: [from: Kind, to: Kind][] = [
    ['released', 'loading'],
    ['released', 'failed'],
    ['loading', 'ready'],
    ['loading', 'releasing'],
    ['ready', 'offloading'],
    ['ready', 'releasing'],
    ['offloading', 'offloaded'],
    ['offloading', 'ready'],
    ['offloading', 'releasing'],
    ['offloaded', 'loading'],
    ['offloaded', 'releasing'],
    ['releasing', 'released'],
    ['releasing', 'failed'],
    ['failed', 'loading'],
    ['failed', 'released'],
  ];
  const kinds = LEGAL.map(([from]) => from).filter((kind, at, all) => all.indexOf(kind) === at);
  const all = kinds.flatMap((from) => kinds.map((to): [Kind, Kind] => [from, to]));

  test.each(all)('%s to %s is as the diagram says', (from, to) => {
    expect(canEnter(from, to)).toBe(LEGAL.some((legal) => legal[0] === from && legal[1] === to));
  });

  test('with a server dies only through releasing', () => {
    const withServer: Kind[] = ['loading', 'ready', 'offloading', 'offloaded'];
    const deaths = withServer.flatMap((kind) =>
      TRANSITIONS[kind].filter((to: Kind) => to === 'failed' || to === 'released'),
    );
    expect(deaths).toEqual([]);
  });
});

describe('a restart', () => {
  const MINUTE = 60_000;
  const start = (atMs: number) => ({ atMs, isStart: true });
  const crash = (atMs: number) => ({ atMs, isStart: false });
  const ROWS: [rule: string, failures: Failures, isFatal: boolean, delayMs: number | 'never'][] = [
    ['comes 2 s after the first failure', [start(0)], false, 2_000],
    ['comes 4 s after the second', [start(0), start(5_000)], false, 4_000],
    ['never comes after three failed starts in 15 min', [start(0), start(MINUTE), start(2 * MINUTE)], false, 'never'],
    ['comes where the first of three is 15 min ago', [start(0), start(MINUTE), start(15 * MINUTE)], false, 8_000],
    ['never comes for a fatal cause', [start(0)], true, 'never'],
    ['comes after three crashes of a ready server', [crash(0), crash(1_000), crash(2_000)], false, 8_000],
    ['waits 60 s at most', Array.from({ length: 12 }, (_, at) => crash(at * 1_000)), false, 60_000],
  ];
  test.each(ROWS)('%s', (_, failures, isFatal, delayMs) => {
    const retry = retryAfter(failures, { isFatal, random: 0.5, firstMs: 2_000 });
    expect(retry === 'never' ? retry : retry.atMs - (failures.at(-1)?.atMs ?? 0)).toBe(delayMs);
  });

  test('is spread by a quarter to either side', () => {
    fc.assert(
      fc.property(fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), (random) => {
        const retry = retryAfter([start(0)], { isFatal: false, random, firstMs: 2_000 });
        if (retry === 'never') throw new Error('one failed start is not final');
        expect(retry.atMs).toBeGreaterThanOrEqual(1_500);
        expect(retry.atMs).toBeLessThanOrEqual(2_500);
      }),
    );
  });

  test('forgets what was before 10 min of ready', () => {
    expect(afterReady([crash(0)], 10 * MINUTE)).toEqual([]);
    expect(afterReady([crash(0)], 10 * MINUTE - 1)).toHaveLength(1);
  });
});

describe('an idle server', () => {
  const idle: IdleFacts = {
    state: 'ready',
    inFlight: 0,
    isPinned: false,
    canEnd: true,
    idleMs: 400_000,
    canOffload: true,
    offloadAfterMs: 300_000,
    releaseAfterMs: 3_600_000,
  };
  const ROWS: [rule: string, change: Partial<IdleFacts>, action: 'offload' | 'release' | undefined][] = [
    ['is offloaded after its time', {}, 'offload'],
    ['stays before its time', { idleMs: 299_999 }, undefined],
    ['stays while a job runs', { inFlight: 1 }, undefined],
    ['stays under pin', { isPinned: true, idleMs: 9_999_999 }, undefined],
    ['is released after the longer time', { idleMs: 3_600_000 }, 'release'],
    ['is not offloaded twice', { state: 'offloaded' }, undefined],
    ['is released where it cannot be offloaded', { canOffload: false }, 'release'],
    ['stays where nothing is configured', { offloadAfterMs: null, releaseAfterMs: null, idleMs: 9_999_999 }, undefined],
    ['is never released when it is not ours', { canEnd: false, idleMs: 9_999_999, offloadAfterMs: null }, undefined],
    ['is not ended where it is not ours and cannot be offloaded', { canEnd: false, canOffload: false }, undefined],
    ['is released from offloaded, counted from its last job', { state: 'offloaded', idleMs: 3_600_000 }, 'release'],
    ['stays offloaded before that', { state: 'offloaded', idleMs: 3_599_999 }, undefined],
    ['is not released under pin', { state: 'offloaded', isPinned: true, idleMs: 9_999_999 }, undefined],
    ['is not released while a job runs', { inFlight: 1, idleMs: 9_999_999 }, undefined],
    ['is left alone on its way', { state: 'loading' }, undefined],
  ];
  test.each(ROWS)('%s', (_, change, action) => {
    expect(idleAction({ ...idle, ...change })).toBe(action);
  });
});

describe('a footprint', () => {
  const nothing: Footprint = { loadedMiB: null, offloadedMiB: null, peaks: [] };
  const { profile } = omni('a');
  const guess = { vramMiB: null, profile };

  test('is what was measured, else configured, else published, else a guess', () => {
    expect(loadedMiB({ ...nothing, loadedMiB: 7_000 }, { ...guess, vramMiB: 9_000 })).toBe(7_000);
    expect(loadedMiB(nothing, { ...guess, vramMiB: 9_000 })).toBe(9_000);
    expect(loadedMiB(nothing, guess)).toBe(profile.weightsMiB);
    expect(loadedMiB(nothing, { vramMiB: null, profile: { ...profile, weightsMiB: null } })).toBe(16_384);
    expect(offloadedMiB({ ...nothing, offloadedMiB: 900 }, guess)).toBe(900);
  });

  test('has the published peak at one megapixel, and more above', () => {
    expect(peakMiB(nothing, { ...guess, megapixels: 1 })).toBeCloseTo(profile.peakMiB ?? 0);
    expect(peakMiB(nothing, { ...guess, megapixels: 4 })).toBeGreaterThan(profile.peakMiB ?? 0);
  });

  test('seen with a small picture does not demand a multiple of itself for a large one', () => {
    const loaded = profile.weightsMiB ?? 0;
    const small = learnPeak({ ...nothing, loadedMiB: loaded }, { megapixels: 0.25, peakMiB: loaded + 4_000 });
    const published = profile.peakMiB ?? 0;
    expect(peakMiB(small, { ...guess, megapixels: 1 })).toBe(Math.max(loaded + 4_000, published));
  });

  test('has the measured peak of its size, scaled for others', () => {
    const learned = learnPeak({ ...nothing, loadedMiB: 8_000 }, { megapixels: 1, peakMiB: 9_000 });
    expect(peakMiB(learned, { ...guess, megapixels: 1 })).toBe(9_000);
    expect(peakMiB(learned, { ...guess, megapixels: 2 })).toBe(10_000);
    expect(peakMiB(learned, { ...guess, megapixels: 0.25 }), 'a smaller one needs no more').toBe(9_000);
  });

  test('knows from a small picture how much it grows by for each megapixel', () => {
    const loaded = 8_000;
    const small = learnPeak({ ...nothing, loadedMiB: loaded }, { megapixels: 0.065, peakMiB: loaded + 100 });
    expect(peakMiB(small, { ...guess, megapixels: 0.13 })).toBeCloseTo(loaded + 200);
  });

  test('is never more than there is where such a job has run or was short of memory, but a guess may be', () => {
    const seen = learnPeak({ ...nothing, loadedMiB: 8_000 }, { megapixels: 1, peakMiB: 24_300 });
    const need = (megapixels: number) => peakMiB(seen, { ...guess, megapixels, mostMiB: 24_052 });
    expect(need(1)).toBe(24_052);
    expect(need(2)).toBeGreaterThan(24_052);
    const short = { ...nothing, loadedMiB: 8_000, shortages: [{ megapixels: 1, aboveMiB: 24_392 }] };
    expect(peakMiB(short, { ...guess, megapixels: 1, mostMiB: 24_052 })).toBe(24_052);
  });

  test.each([
    ['counts from the start of the job', { isHeldInFlux: false }, 10_000, 22_000],
    ['counts from the last look where that fell into another job', { isHeldInFlux: true }, 10_000, 14_000],
    ['is no evidence where it is more than there is', { isHeldInFlux: false }, 1_000, undefined],
  ])('of a job %s', (_, o, leastFreeMiB, expected) => {
    const measure = { freeMiB: 12_000, othersMiB: 0 };
    const readings = [{ usedMiB: 12_000, freeMiB: 12_000 }];
    const before = { heldMiB: 12_000, freeMiB: 20_000, measure, ...o };
    expect(jobPeakMiB(before, { leastFreeMiB, readings })).toBe(expected);
  });

  test('of a job is no evidence either where others hold what it would have needed', () => {
    const readings = [{ usedMiB: 12_000, freeMiB: 12_000 }];
    const peak = (othersMiB: number): number | undefined =>
      jobPeakMiB(
        { heldMiB: 12_000, freeMiB: 20_000, measure: { freeMiB: 12_000, othersMiB }, isHeldInFlux: false },
        { leastFreeMiB: 10_000, readings },
      );
    expect(peak(2_000)).toBe(22_000);
    expect(peak(2_001)).toBeUndefined();
  });

  test('believes a higher peak at once and a lower one slowly', () => {
    const high = learnPeak(learnPeak(nothing, { megapixels: 1, peakMiB: 9_000 }), { megapixels: 1, peakMiB: 12_000 });
    expect(high.peaks).toEqual([{ megapixels: 1, peakMiB: 12_000 }]);
    expect(learnPeak(high, { megapixels: 1, peakMiB: 10_000 }).peaks).toEqual([{ megapixels: 1, peakMiB: 11_600 }]);
  });
});
