import { expect, test } from 'vitest';
import { jobLines } from '../../../bridge/cli/jobs.ts';

const out = { columns: 80, write: () => undefined, paint: (_: string, text: string) => text };

test('where no job has the state that was asked for nobody is told that there are no jobs', () => {
  const answer = { sentence: '', json: { message: 'There are no jobs with state failed.', jobs: [] } };
  expect(jobLines(answer, { out, nowMs: 0, isFiltered: true })).toEqual(['There are no jobs with state failed.']);
  expect(jobLines(answer, { out, nowMs: 0, isFiltered: false })[0]).toMatch(/^No job is known on this machine/);
});
