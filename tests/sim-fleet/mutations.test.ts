import { describe, expect, test } from 'vitest';
import { bundle } from '../../scripts/sim-fleet/bundle.ts';
import { load } from '../../scripts/sim-fleet/load.ts';
import { MUTATIONS } from '../../scripts/sim-fleet/mutations.ts';

/** Where no known seed catches it any more, because the product changed, so many are tried. */
const SEEDS = 400;

describe('each planted fault is noticed by the check of its promise', () => {
  test.each(MUTATIONS)('$name breaks $caughtBy', { timeout: 60_000 }, async ({ caughtBy, seeds, ...change }) => {
    const runSeed = load(await bundle([change]));
    const all = [...seeds, ...Array.from({ length: SEEDS }, (_, at) => at + 1)];
    for (const seed of all) {
      const { violations } = await runSeed(seed);
      if (violations.some(({ promise }) => promise === caughtBy)) return;
    }
    expect.fail(`no seed up to ${SEEDS} broke ${caughtBy}`);
  });

  test('there is one for every promise', () => {
    const caught = new Set(MUTATIONS.map(({ caughtBy }) => caughtBy));
    expect([...caught].sort()).toEqual(['P1', 'P2', 'P3', 'P4', 'P5', 'P6', 'P7', 'P8']);
  });

  test('a change must match its file exactly once', async () => {
    const change = { file: 'agent/job/journal.ts', find: 'no such text', replace: '' };
    await expect(bundle([change])).rejects.toThrow('agent/job/journal.ts has 0 times: no such text');
  });
});
