import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { MODELS } from '../../scripts/scenario/models.ts';
import { makePlan } from '../../scripts/scenario/plan.ts';
import { runScenario } from '../../scripts/scenario/run.ts';
import { tablesOf } from '../../scripts/scenario/tables.ts';

/** A third of `npm run scenario:models`: every model is wanted, most of them several times, and the calls come at once. */
const SHORT = { singles: 10, batches: 2, batchSize: 5, peaks: 2, calmMs: 2_000 };

test(
  'five models on two GPUs that hold two of them: every job ends well, no card is over-committed, nothing is left',
  { timeout: 300_000 },
  async () => {
    const directory = await mkdtemp(join(tmpdir(), 'gantry-scenario-'));
    try {
      const plan = makePlan(7, MODELS, SHORT);
      expect(new Set(plan.map(({ model }) => model.alias)).size).toBe(MODELS.length);
      const report = await runScenario({ plan, directory, signal: new AbortController().signal });
      expect(report.problems, tablesOf(report)).toEqual([]);
      expect(report.jobs).toHaveLength(20);
      // The watch saw what it was there for: models came and went, and the cards were well filled.
      expect(report.moves.filter(({ kind }) => kind === 'load').length).toBeGreaterThanOrEqual(MODELS.length);
      expect(report.moves.some(({ kind, isByItself }) => kind === 'offload' && !isByItself)).toBe(true);
      expect(Math.max(...report.gpus.map(({ mostUsedMiB }) => mostUsedMiB))).toBeGreaterThan(20_000);
    } finally {
      await rm(directory, { recursive: true, force: true, maxRetries: 3 });
    }
  },
);
