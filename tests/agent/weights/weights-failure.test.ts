import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { DownloadProblem } from '../../../agent/weights/weights-failure.ts';
import { readFailure } from '../../../agent/weights/weights-failure.ts';

const WANTED = {
  ...{ alias: 'klein', repository: 'acme/klein', revision: undefined, hub: 'hugging-face' as const },
  ...{ how: 'ended with code 1', logPath: '/var/log/x.log' },
};

describe.each(['2.4.0', '0.36.0'])('what huggingface_hub %s wrote', (version) => {
  test.each<[string, DownloadProblem, boolean, RegExp]>([
    ['gated-403', 'denied', true, /^acme\/klein is gated. Accept its licence at https:\/\/huggingface.co\/acme\/klein/],
    ['gated-401', 'denied', true, /^acme\/klein is gated.* then `gantry-agent reload` and load_model /],
    ['unknown-401', 'not-found', true, /^acme\/klein was not found, or is private/],
    ['unknown-404', 'not-found', true, /^acme\/klein was not found, or is private/],
    ['no-revision', 'not-found', true, /no such revision/],
    ['unreachable', 'network', false, /the hub cannot be reached/],
    ['server-error', 'network', false, /the hub cannot be reached/],
  ])('%s', async (name, problem, isFatal, words) => {
    const text = await readFile(join('tests/golden/hf', version, `${name}.txt`), 'utf8');
    const lastLines = text.trimEnd().split('\n').slice(-20).join('\n');
    const failure = readFailure(lastLines, WANTED);
    expect(failure).toMatchObject({ problem, isFatal });
    expect(failure.error.message).toMatch(words);
  });
});

test.each<[string, DownloadProblem]>([
  ['OSError: [Errno 28] No space left on device', 'disk-full'],
  [
    'RuntimeError: Data processing error: File reconstruction error: IO Error: No space left on device (os error 28)',
    'disk-full',
  ],
  ['OSError: [Errno 122] Disk quota exceeded', 'disk-full'],
  [
    "httpx.HTTPStatusError: Client error '401 Unauthorized' for url\nInvalid credentials in Authorization header",
    'denied',
  ],
  ['modelscope_hub.errors.NetworkError: could not connect [E1020]', 'network'],
  ['a sentence nobody has seen', 'failed'],
])('%s', (text, problem) => {
  expect(readFailure(text, WANTED).problem).toBe(problem);
});

test('an unknown failure shows its own words and where the rest is', () => {
  const { error } = readFailure('the moon is in the way', WANTED);
  expect(error.message).toBe(
    'The downloader of acme/klein ended with code 1. What has arrived is kept. See its log: /var/log/x.log\nthe moon is in the way',
  );
});
