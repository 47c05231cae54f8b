import { expect, test } from 'vitest';
import type { Attempt } from '../../../bridge/fleet/job-record.ts';
import { afterFailure, hostsToAvoid } from '../../../bridge/fleet/retry-policy.ts';

function failed(host: string, code = 'ENGINE_FAILED', o: { serverDied?: boolean; retryable?: boolean } = {}): Attempt {
  const { serverDied = false, retryable = true } = o;
  return { host, attempt: 1, end: { kind: 'failed', error: { code, message: 'It failed.', retryable }, serverDied } };
}
const died = (host: string): Attempt => failed(host, 'MODEL_FAILED', { serverDied: true });
const lost = (host: string): Attempt => ({ host, attempt: 1, end: { kind: 'lost' } });

test.each<[string, Attempt[], string[], string]>([
  ['a retryable failure is tried again', [failed('a')], ['a', 'b'], 'again'],
  ['two are tried again', [failed('a'), failed('b')], ['a', 'b'], 'again'],
  ['three are not', [failed('a'), failed('b'), failed('a')], ['a', 'b'], 'ENGINE_FAILED'],
  ['lost attempts do not count', [lost('a'), lost('a'), lost('a'), failed('a')], ['a'], 'again'],
  [
    'what cannot be retried fails at once',
    [failed('a', 'INPUT_INVALID', { retryable: false })],
    ['a', 'b'],
    'INPUT_INVALID',
  ],
  ['one server death is tried again', [died('a')], ['a', 'b'], 'again'],
  ['two deaths on two hosts quarantine', [died('a'), died('b')], ['a', 'b', 'c'], 'QUARANTINED'],
  ['two deaths on the only host quarantine', [died('a'), died('a')], ['a'], 'QUARANTINED'],
  ['two deaths on one of two hosts do not', [died('a'), died('a')], ['a', 'b'], 'again'],
  [
    'a server that does not start is no death',
    [failed('a', 'MODEL_FAILED'), failed('b', 'MODEL_FAILED')],
    ['a'],
    'again',
  ],
])('%s', (_, attempts, capable, expected) => {
  const next = afterFailure(attempts, { capable, largestFree: undefined });
  expect(next.kind === 'again' ? 'again' : next.error.code).toBe(expected);
});

test.each<[string, Attempt[], string[], string[]]>([
  ['any host may have the second attempt', [failed('a')], ['a', 'b'], []],
  ['the last attempt goes to another host', [failed('a'), failed('a')], ['a', 'b'], ['a']],
  ['unless there is none', [failed('a'), failed('a')], ['a'], []],
  ['two hosts tried: any may have the last', [failed('a'), failed('b')], ['a', 'b'], []],
  ['where it did not fit, it does not go again', [failed('a', 'GPU_OUT_OF_MEMORY')], ['a', 'b'], ['a']],
  ['where there is no more VRAM neither', [failed('b', 'GPU_OUT_OF_MEMORY')], ['a', 'b', 'c'], ['b', 'a']],
  ['unless nobody has more', [failed('b', 'GPU_OUT_OF_MEMORY')], ['a', 'b'], ['b']],
  ['where it hung neither', [failed('a', 'TIMEOUT')], ['a', 'b'], ['a']],
  ['unless it is the only host', [failed('a', 'TIMEOUT')], ['a'], []],
  ['where it killed its server neither', [died('a')], ['a', 'b'], ['a']],
])('%s', (_, attempts, capable, expected) => {
  const able = capable.map((host, index) => ({ host, roomMiB: 1_000 * (index + 1) }));
  expect(hostsToAvoid(attempts, able)).toEqual(expected);
});

test('the last error says how often and where', () => {
  const next = afterFailure([failed('a'), failed('b'), failed('a')], {
    capable: ['a', 'b'],
    largestFree: '8.0 GB on b',
  });
  expect(next.kind === 'failed' && next.error.message).toBe('It failed. Tried 3 times, on a and b.');
});

test('what fits nowhere says what is free', () => {
  const attempts = ['a', 'b', 'a'].map((host) => failed(host, 'GPU_OUT_OF_MEMORY'));
  const next = afterFailure(attempts, { capable: ['a', 'b'], largestFree: '8.0 GB on b' });
  expect(next.kind === 'failed' && next.error.message).toMatch(/Tried 3 times.* is now 8\.0 GB on b\.$/);
});
