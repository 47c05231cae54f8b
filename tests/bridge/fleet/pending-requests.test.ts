import { getEventListeners } from 'node:events';
import { expect, test } from 'vitest';
import { PendingRequests } from '../../../bridge/fleet/pending-requests.ts';
import { AppError } from '../../../shared/errors.ts';

const signal = new AbortController().signal;
const down = new AppError('AGENT_UNREACHABLE', 'down');

test('a reply settles its request, once', async () => {
  const pending = new PendingRequests({ limit: 4 });
  const sent: number[] = [];
  const ask = (): Promise<unknown> =>
    pending.add({ what: 'it', deadlineMs: 1_000, signal, send: (id) => sent.push(id) });
  const [a, b] = [ask(), ask()];
  pending.resolve(2, 'two');
  pending.resolve(2, 'again');
  pending.reject(1, down);
  pending.resolve(9, 'nobody');
  expect(await b).toBe('two');
  await expect(a).rejects.toBe(down);
  expect([sent, pending.count]).toEqual([[1, 2], 0]);
});

test('no more are unanswered than the limit; the next is sent when one settles', async () => {
  const pending = new PendingRequests({ limit: 1 });
  const sent: number[] = [];
  const all = [1, 2, 3].map(() => pending.add({ what: 'it', deadlineMs: 1_000, signal, send: (id) => sent.push(id) }));
  expect(sent).toEqual([1]);
  pending.resolve(1, 'a');
  expect(sent).toEqual([1, 2]);
  pending.resolve(2, 'b');
  pending.resolve(3, 'c');
  expect(await Promise.all(all)).toEqual(['a', 'b', 'c']);
});

test('a time-out names what was not answered', async () => {
  const pending = new PendingRequests({ limit: 1 });
  const asked = pending.add({ what: 'job.take to gpu-a', deadlineMs: 10, signal, send: () => undefined });
  await expect(asked).rejects.toMatchObject({
    code: 'TIMEOUT',
    message: 'job.take to gpu-a was not answered within 10 ms.',
  });
});

test('the caller may leave; the end of the link rejects everything and all that comes later', async () => {
  const pending = new PendingRequests({ limit: 1 });
  const leaver = new AbortController();
  const ask = (o: { signal: AbortSignal }): Promise<unknown> =>
    pending.add({ what: 'it', deadlineMs: 1_000, send: () => undefined, ...o });
  const left = ask({ signal: leaver.signal });
  const [sent, queued] = [ask({ signal }), ask({ signal })];
  leaver.abort(new Error('left'));
  pending.end(down);
  await expect(left).rejects.toThrow('left');
  for (const one of [sent, queued, ask({ signal })]) await expect(one).rejects.toBe(down);
  expect(pending.count).toBe(0);
});

test('the many requests of a batch share its signal: no warning, and no listener is left', async () => {
  const warnings: Error[] = [];
  const onWarning = (warning: Error): void => void warnings.push(warning);
  process.on('warning', onWarning);
  const { signal } = new AbortController();
  const pending = new PendingRequests({ limit: 4 });
  const all = Array.from({ length: 50 }, () =>
    pending.add({ what: 'it', deadlineMs: 60_000, signal, send: () => undefined }),
  );
  expect(getEventListeners(signal, 'abort')).toHaveLength(50);
  await new Promise((turn) => setImmediate(turn)); // warnings come a turn later
  pending.end(down);
  for (const each of await Promise.allSettled(all)) expect(each.status).toBe('rejected');
  expect(getEventListeners(signal, 'abort')).toEqual([]);
  process.off('warning', onWarning);
  expect(warnings).toEqual([]);
});
