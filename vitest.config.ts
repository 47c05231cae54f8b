import { defineConfig } from 'vitest/config';
import { ClosingReport } from './tests/helpers/closing-report.ts';

const common = {
  globalSetup: ['tests/helpers/build.ts'],
  setupFiles: ['tests/helpers/leak-census.ts'],
  pool: 'forks' as const,
  // Vitest's own is a second.
  expect: { poll: { timeout: 60_000 } },
  // In CI one stutter of a shared machine must not undo a day's work. The closing report names whoever needed it.
  retry: process.env['CI'] === undefined ? 0 : 1,
};

export default defineConfig({
  test: {
    reporters: ['default', new ClosingReport()],
    projects: [
      {
        test: {
          ...common,
          name: 'unit',
          include: ['tests/**/*.test.ts'],
          exclude: ['tests/process/**', 'tests/faults/**', 'tests/gpu/**'],
          // Longer than any of them takes where ten others run beside it: a limit ends what hangs and judges nothing.
          testTimeout: 120_000,
          hookTimeout: 120_000,
          // These wait for processes and timers more than they compute, so one more than the two cores of CI.
          maxWorkers: 3,
          sequence: { groupOrder: 0 },
        },
      },
      {
        test: {
          ...common,
          name: 'process',
          include: ['tests/process/**/*.test.ts'],
          testTimeout: 240_000,
          hookTimeout: 120_000,
          // Each file starts agents, engines and a bridge, and then mostly waits for them.
          maxWorkers: 3,
          sequence: { groupOrder: 1 },
        },
      },
      {
        test: {
          ...common,
          name: 'faults',
          include: ['tests/faults/**/*.test.ts'],
          // Ends what hangs: where ten others run on the same cores a row takes two minutes.
          testTimeout: 300_000,
          hookTimeout: 60_000,
          // Faults are judged by what happens in a given time, so nothing else runs beside them.
          fileParallelism: false,
          sequence: { groupOrder: 2 },
        },
      },
      {
        test: {
          name: 'gpu',
          include: ['tests/gpu/**/*.test.ts'],
          globalSetup: ['tests/gpu/setup.ts'],
          setupFiles: common.setupFiles,
          pool: common.pool,
          testTimeout: 60_000,
          // Memory of a GPU is judged by what is free, so nothing else of ours may move on it.
          fileParallelism: false,
          sequence: { groupOrder: 3 },
        },
      },
    ],
  },
});
