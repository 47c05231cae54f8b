import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { VramLook, VramMeasure } from '../../../agent/gpu/vram-measure.ts';
import { freedMiB, measureVram } from '../../../agent/gpu/vram-measure.ts';
import { HeldVram } from '../../../agent/model/held-vram.ts';
import type { VramClaim } from '../../../agent/gpu/vram-verifier.ts';
import { isBack, untilBack, untilSettled } from '../../../agent/gpu/vram-verifier.ts';

const measure = (more: Partial<VramMeasure>): VramMeasure => ({
  freeMiB: 10_000,
  mineMiB: 0,
  othersMiB: 0,
  isPresent: false,
  isListed: false,
  unexplainedMiB: 9_000,
  ...more,
});

/** 8000 MiB of a dead server, with 10 000 free before its end. */
const listed = measure({ mineMiB: 8_000, isPresent: true, isListed: true, unexplainedMiB: 500 });
const hidden = measure({ unexplainedMiB: 8_500 });

describe('the memory of a dead server is back', () => {
  const ROWS: [rule: string, before: VramMeasure, after: Partial<VramMeasure>, back: boolean][] = [
    ['when 80 % of it came free', listed, { freeMiB: 16_400 }, true],
    ['not when less came free', listed, { freeMiB: 16_000, unexplainedMiB: 2_500 }, false],
    ['not while one of its processes is listed', listed, { freeMiB: 18_000, isPresent: true, isListed: true }, false],
    ['not while one is listed, its memory hidden', hidden, { freeMiB: 18_000, isPresent: true }, false],
    [
      'whatever others do, where they cannot be told',
      { ...hidden, othersMiB: null },
      { freeMiB: 16_400, othersMiB: 9_000 },
      true,
    ],
    ['not so where others took it and cannot be told', hidden, { freeMiB: 10_000, othersMiB: null }, false],
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

test('of a GPU without a reading, or whose memory is not shown, nothing is said', () => {
  const seen = look({ oursMiB: 1, othersMiB: 0 });
  const whose = { gpus: [GPU, 'GPU-1'], pids: [7] };
  expect(measureVram(seen, whose)).toBeUndefined();
  const [reading] = seen.readings;
  if (reading === undefined) throw new Error('it has one');
  const mute = { ...reading, uuid: 'GPU-1', freeMiB: null };
  expect(measureVram({ ...seen, readings: [reading, mute] }, whose)).toBeUndefined();
});

/** A GPU of 80 000 MiB as the driver would show it. Pid 7 is ours, 8 another's; null: not listed. */
type Truth = { oursMiB: number; othersMiB: number; isDead?: boolean };

const TOTAL_MIB = 80_000;
const GPU = 'GPU-0';

function look({ oursMiB, othersMiB, isDead = false }: Truth, { hides = false } = {}): VramLook {
  const freeMiB = TOTAL_MIB - oursMiB - othersMiB;
  const rows = [
    ...(isDead ? [] : [{ pid: 7, gpuUuid: GPU, usedMiB: oursMiB, name: 'ours' }]),
    ...(othersMiB > 0 ? [{ pid: 8, gpuUuid: GPU, usedMiB: othersMiB, name: 'other' }] : []),
  ];
  const reading = { index: 0, uuid: GPU, name: 'GPU', totalMiB: TOTAL_MIB, usedMiB: oursMiB + othersMiB, freeMiB };
  const rest = { utilisationPercent: 0, temperatureC: 30, powerW: 50, health: 'ok' as const, ageMs: 0 };
  return { readings: [{ ...reading, ...rest }], apps: hides ? [] : rows, isNumberedHere: true };
}

function measured(truth: Truth, options?: { hides?: boolean }): VramMeasure {
  const found = measureVram(look(truth, options), { gpus: [GPU], pids: [7] });
  if (found === undefined) throw new Error('no reading');
  return found;
}

const mib = fc.integer({ min: 0, max: 40_000 });

describe('for all that others may do meanwhile', () => {
  test('what came free is exactly what it gave back, never more and never wrapped around', () => {
    fc.assert(
      fc.property(mib, mib, mib, mib, (oursBefore, oursAfter, othersBefore, othersAfter) => {
        const before = measured({ oursMiB: oursBefore, othersMiB: othersBefore });
        const after = measured({ oursMiB: oursAfter, othersMiB: othersAfter });
        expect(freedMiB(before, after)).toBe(oursBefore - oursAfter);
      }),
    );
  });

  test('a dead server is back when and only when 80 % of it came free', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 3_000, max: 40_000 }),
        mib,
        mib,
        fc.double({ min: 0, max: 1, noNaN: true }),
        (heldMiB, othersBefore, othersAfter, kept) => {
          const before = measured({ oursMiB: heldMiB, othersMiB: othersBefore });
          const oursMiB = Math.round(heldMiB * kept);
          const after = measured({ oursMiB, othersMiB: othersAfter, isDead: true });
          const claim: VramClaim = { gpus: [GPU], pids: [7], before, heldMiB };
          // Up to 2 GiB that nobody is listed for is the driver's own, whatever it was before.
          const isEnough = heldMiB - oursMiB >= 0.8 * heldMiB - 64 || oursMiB <= Math.max(2_048, 0.2 * heldMiB);
          expect(isBack(claim, after)).toBe(isEnough);
        },
      ),
    );
  });

  test('it is never back while the driver lists it', () => {
    fc.assert(
      fc.property(mib, mib, mib, mib, (heldMiB, oursMiB, othersBefore, othersAfter) => {
        const before = measured({ oursMiB: heldMiB, othersMiB: othersBefore });
        const claim: VramClaim = { gpus: [GPU], pids: [7], before, heldMiB };
        expect(isBack(claim, measured({ oursMiB, othersMiB: othersAfter }))).toBe(false);
      }),
    );
  });

  test('where no process is listed the same holds as long as others keep still', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1_000, max: 40_000 }), mib, mib, (heldMiB, oursMiB, othersMiB) => {
        const before = measured({ oursMiB: heldMiB, othersMiB }, { hides: true });
        const after = measured({ oursMiB: Math.min(oursMiB, heldMiB), othersMiB, isDead: true }, { hides: true });
        const claim: VramClaim = { gpus: [GPU], pids: [7], before, heldMiB };
        expect(isBack(claim, after)).toBe(heldMiB - Math.min(oursMiB, heldMiB) >= 0.8 * heldMiB - 64);
      }),
    );
  });

  test('what a server holds follows every own look, with rows and without, and is never negative', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(mib, { minLength: 1, maxLength: 6 }),
        mib,
        fc.boolean(),
        async (steps, othersMiB, hides) => {
          let truth: Truth = { oursMiB: 0, othersMiB };
          const vram = new HeldVram(() => Promise.resolve(look(truth, { hides })));
          vram.begin(measured(truth, { hides }));
          for (const oursMiB of steps) {
            truth = { oursMiB, othersMiB };
            await vram.look({ gpus: [GPU], pids: () => [7], signal: new AbortController().signal });
            expect(vram.heldMiB).toBe(oursMiB);
          }
        },
      ),
    );
  });
});

describe('a look that somebody else took', () => {
  test('counts where the driver lists what the server holds, and where it does so no longer', () => {
    const vram = new HeldVram(() => Promise.resolve(undefined));
    vram.begin(measured({ oursMiB: 0, othersMiB: 0 }));
    vram.note(measured({ oursMiB: 7_000, othersMiB: 1_000 }));
    expect(vram.heldMiB).toBe(7_000);
    vram.note(measured({ oursMiB: 0, othersMiB: 1_000, isDead: true }));
    expect(vram.heldMiB).toBe(0);
  });

  test('moves the baseline only where it lists nothing: what changed meanwhile may be of others', () => {
    const vram = new HeldVram(() => Promise.resolve(undefined));
    vram.begin(measured({ oursMiB: 0, othersMiB: 0 }, { hides: true }));
    vram.count(measured({ oursMiB: 7_000, othersMiB: 0 }, { hides: true }));
    vram.note(measured({ oursMiB: 7_000, othersMiB: 5_000 }, { hides: true }));
    expect(vram.heldMiB).toBe(7_000);
    vram.count(measured({ oursMiB: 8_000, othersMiB: 5_000 }, { hides: true }));
    expect(vram.heldMiB).toBe(8_000);
  });
});

describe('the wait for memory', () => {
  const before = measured({ oursMiB: 8_000, othersMiB: 1_000 });
  const claim: VramClaim = { gpus: [GPU], pids: [7], before, heldMiB: 8_000 };
  const signal = new AbortController().signal;

  test('ends when the memory is back', async () => {
    let looks = 0;
    const truths: Truth[] = [
      { oursMiB: 8_000, othersMiB: 1_000 },
      { oursMiB: 8_000, othersMiB: 1_000, isDead: true },
      { oursMiB: 0, othersMiB: 9_000, isDead: true },
    ];
    const next = () => Promise.resolve(look(truths[Math.min(looks++, 2)] ?? claimTruth));
    const verdict = await untilBack(claim, { look: next, deadlineMs: 10_000, pollMs: 1, signal });
    expect([verdict.isBack, verdict.freedMiB, looks]).toEqual([true, 8_000, 3]);
  });

  test('ends at its deadline, and says how much came free by then', async () => {
    const stuck = () => Promise.resolve(look({ oursMiB: 6_000, othersMiB: 0, isDead: true }));
    const verdict = await untilBack(claim, { look: stuck, deadlineMs: 30, pollMs: 5, signal });
    expect(verdict).toMatchObject({ isBack: false, freedMiB: 2_000 });
  });

  test('is not over while a process of the tree lives, whatever is free', async () => {
    let lives = true;
    const gone = () => Promise.resolve(look({ oursMiB: 0, othersMiB: 0, isDead: true }));
    const limits = { look: gone, deadlineMs: 30, pollMs: 5, signal, lives: () => lives };
    expect(await untilBack(claim, limits)).toMatchObject({ isBack: false });
    lives = false;
    expect(await untilBack(claim, limits)).toMatchObject({ isBack: true });
  });

  test('claims nothing while nvidia-smi does not answer', async () => {
    const verdict = await untilBack(claim, {
      look: () => Promise.resolve(undefined),
      deadlineMs: 20,
      pollMs: 5,
      signal,
    });
    expect(verdict).toEqual({ isBack: false, freedMiB: 0, after: undefined });
  });

  test('of an offload counts what nvidia-smi shows once it stands still', async () => {
    const half = () => Promise.resolve(look({ oursMiB: 3_500, othersMiB: 1_000 }));
    const limits = { deadlineMs: 5_000, pollMs: 1, signal };
    expect(await untilSettled(claim, { ...limits, look: half })).toMatchObject({ isBack: true, freedMiB: 4_500 });
    const none = () => Promise.resolve(look({ oursMiB: 8_000, othersMiB: 0 }));
    expect(await untilSettled(claim, { ...limits, look: none })).toMatchObject({ isBack: false, freedMiB: 0 });
  });
});

const claimTruth: Truth = { oursMiB: 8_000, othersMiB: 1_000 };
