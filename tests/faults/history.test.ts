import { describe, expect, test } from 'vitest';
import type { ManifestLine } from '../../bridge/fleet/manifest-lines.ts';
import type { GenerateRequest } from '../../shared/job.ts';
import type { SeenFile } from './history.ts';
import { historyProblems } from './history.ts';

const REQUEST: GenerateRequest = {
  ...{ kind: 'generate', model: 'm', prompt: 'a fox', steps: 4, seed: 1, format: 'png', width: 256, height: 256 },
  guidance: { field: 'guidance_scale', value: 1 },
};
const RESULT = {
  sha256: 'good',
  bytes: 10,
  width: 256,
  height: 256,
  format: 'png',
  runMs: 5,
  gpu: 'g',
  notes: [],
} as const;
const FILE: SeenFile = { path: '/out/a.png', sha256: 'good', size: { width: 256, height: 256 } };

/** A checker that finds nothing proves nothing: each broken promise must be found, and a good history must pass. */
describe('the history checker', () => {
  test('has nothing to say about a job that was saved once', () => {
    expect(historyProblems([job(), sent(1), saved(1), ENDED], [FILE])).toEqual([]);
    expect(historyProblems([job(), sent(1), failed(1), sent(2), saved(2), ENDED], [FILE])).toEqual([]);
  });

  test.each<[string, ManifestLine[], SeenFile[], RegExp]>([
    ['a lost job', [job(), sent(1), ENDED], [], /saved 0 times/],
    [
      'a job saved twice',
      [job(), sent(1), saved(1), sent(2), saved(2, '/out/b.png'), ENDED],
      [FILE, { ...FILE, path: '/out/b.png' }],
      /saved 2 times/,
    ],
    ['a file that is not there', [job(), sent(1), saved(1), ENDED], [], /is not there/],
    ['a torn file', [job(), sent(1), saved(1), ENDED], [{ path: FILE.path, sha256: 'good' }], /not a whole image/],
    [
      'other bytes than were sent',
      [job(), sent(1), saved(1), ENDED],
      [{ ...FILE, sha256: 'bad' }],
      /not what the agent sent/,
    ],
    ['another size', [job(), sent(1), saved(1), ENDED], [{ ...FILE, size: { width: 128, height: 256 } }], /128 wide/],
    [
      'a file of nobody',
      [job(), sent(1), saved(1), ENDED],
      [FILE, { ...FILE, path: '/out/.x.part' }],
      /belongs to no job/,
    ],
    [
      'a fourth attempt',
      [job(), ...[1, 2, 3].flatMap((n) => [sent(n), failed(n)]), sent(4), saved(4), ENDED],
      [FILE],
      /more than 3 attempts/,
    ],
    ['a batch without an end', [job(), sent(1), saved(1)], [FILE], /has not ended/],
  ])('finds %s', (_, lines, files, problem) => {
    expect(historyProblems(lines, files).join('\n')).toMatch(problem);
  });
});

const ENDED: ManifestLine = { type: 'ended', state: 'success', elapsedMs: 1, quality: null };

function job(): ManifestLine {
  return { type: 'job', jobId: 'j', index: 0, request: REQUEST, inputFiles: [], directory: '/out', name: null };
}

function sent(attempt: number): ManifestLine {
  return { type: 'sent', jobId: 'j', host: 'a', attempt, sentInMs: 0, routing: '' };
}

function failed(attempt: number): ManifestLine {
  const error = { code: 'ENGINE_FAILED', message: 'm', retryable: true } as const;
  return { type: 'attempt-failed', jobId: 'j', host: 'a', attempt, error, serverDied: false };
}

function saved(attempt: number, path = FILE.path): ManifestLine {
  return {
    type: 'saved',
    jobId: 'j',
    host: 'a',
    attempt,
    path,
    previewPath: null,
    result: { ...RESULT, notes: [] },
    endedInMs: 0,
  };
}
