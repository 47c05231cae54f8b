import { describe, expect, test } from 'vitest';
import type { Held } from '../scripts/scenario/ledger-watch.ts';
import { MODELS } from '../scripts/scenario/models.ts';
import { movesIn } from '../scripts/scenario/moves.ts';
import { FULL, makePlan } from '../scripts/scenario/plan.ts';

describe('the plan of the scenario', () => {
  test('is the same for the same seed, and another one for another', () => {
    expect(makePlan(1, MODELS, FULL)).toEqual(makePlan(1, MODELS, FULL));
    expect(makePlan(1, MODELS, FULL)).not.toEqual(makePlan(2, MODELS, FULL));
  });

  test('has 60 jobs, half of them single calls, each with a prompt of its own, in the order of their times', () => {
    const plan = makePlan(1, MODELS, FULL);
    const single = plan.filter(({ kind }) => kind !== 'batch');
    expect(single).toHaveLength(30);
    expect(single.some(({ kind }) => kind === 'edit')).toBe(true);
    expect(new Set(plan.flatMap(({ prompts }) => prompts)).size).toBe(60);
    expect(plan.map(({ afterMs }) => afterMs)).toEqual(plan.map(({ afterMs }) => afterMs).toSorted((a, b) => a - b));
  });
});

describe('the moves in a trace of the ledger', () => {
  test('load, peak, offload, wake and release of one server, with what moved', () => {
    const moves = movesIn(trace('klein', [0, 2_000, 10_240, 12_800, 10_240, 1_200, 5_000, 10_240, 0]), MODELS);
    expect(moves.map(({ kind, movedMiB }) => [kind, movedMiB])).toEqual([
      ['load', 10_240],
      ['offload', 9_040],
      ['wake', 9_040],
      ['release', 10_240],
    ]);
    expect(moves.map(({ tookMs }) => tookMs)).toEqual([100, 0, 100, 0]);
  });

  test('what Step1X-Edit does by itself around each edit is not a swap; its first load is', () => {
    const moves = movesIn(trace('step1x', [0, 16_384, 19_500, 600, 16_384, 600, 0]), MODELS);
    expect(moves.map(({ kind, isByItself }) => [kind, isByItself])).toEqual([
      ['load', false],
      ['offload', true],
      ['wake', true],
      ['offload', true],
      ['release', false],
    ]);
  });

  test('a start that never got its weights is no move', () => {
    expect(movesIn(trace('qwen', [0, 2_000, 9_000, 0]), MODELS)).toEqual([]);
  });
});

function trace(alias: string, held: readonly number[]): Held[] {
  const model = MODELS.find((candidate) => candidate.alias === alias)?.model ?? '';
  return held.map((heldMiB, index) => ({ atMs: 100 * index, pid: 1, gpu: 0, model, heldMiB }));
}
