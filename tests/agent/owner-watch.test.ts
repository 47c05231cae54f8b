import { PassThrough } from 'node:stream';
import { expect, test } from 'vitest';
import { OwnerWatch } from '../../agent/owner-watch.ts';
import { Deadline, untilAborted } from '../../shared/abort.ts';

const LONG_MS = 600_000;

/** `over` may take its time on a busy machine. */
async function isOver(watch: OwnerWatch): Promise<boolean> {
  using limit = new Deadline({ ms: 30_000 });
  return untilAborted(
    watch.over.then(() => true),
    limit.signal,
  );
}

test('it is over when the input has ended and no link is there', async () => {
  const input = new PassThrough();
  using watch = new OwnerWatch({ input, lingerMs: 1 });
  input.end();
  expect(await isOver(watch)).toBe(true);
});

test('an input that is cut ends as one that is closed', async () => {
  const input = new PassThrough();
  using watch = new OwnerWatch({ input, lingerMs: 1 });
  input.destroy(new Error('EIO'));
  expect(await isOver(watch)).toBe(true);
});

test.each([
  ['the input is open', { isOpen: true, links: 0 }],
  ['a bridge is linked', { isOpen: false, links: 1 }],
])('it is not over while %s', async (_, { isOpen, links }) => {
  const input = new PassThrough();
  using watch = new OwnerWatch({ input, lingerMs: 1 });
  watch.links(2);
  const closed = new Promise((resolve) => input.once('close', resolve));
  if (!isOpen) {
    input.destroy();
    await closed;
  }
  watch.links(links);
  // Where the time ran although somebody is there, it is over before this longer one of another watch.
  const longer = new PassThrough();
  using other = new OwnerWatch({ input: longer, lingerMs: 100 });
  longer.destroy();
  const first = await Promise.race([watch.over.then(() => 'over'), other.over.then(() => 'not over')]);
  expect(first).toBe('not over');
  input.destroy();
  watch.links(0);
  expect(await isOver(watch)).toBe(true);
});

test('a bridge that comes back in time begins the time anew', async () => {
  const input = new PassThrough();
  using watch = new OwnerWatch({ input, lingerMs: LONG_MS });
  const closed = new Promise((resolve) => input.once('close', resolve));
  input.destroy();
  await closed;
  watch.links(1); // the timer of the first time is gone: the leak check of all tests would find it
  watch.links(0);
  watch.links(1);
});
