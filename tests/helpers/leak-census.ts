import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, afterEach, beforeEach } from 'vitest';

const WATCHED = ['ProcessWrap', 'TCPServerWrap', 'TCPSocketWrap'] as const;
/** What is left for good is told after this; what only takes its time on a busy machine is no leak. */
const PATIENCE_MS = 20_000;
/** Node's own loaders keep what they compiled there. */
const CACHES = /^(tsx-|node-compile-cache)/;

// A directory of its own for each file: what is left in it was left by its tests, and goes with it.
const system = tmpdir();
const own = mkdtempSync(join(system, 'gantry-tests-'));
process.env['TMPDIR'] = own;

const atStart = census();
let before = atStart;

beforeEach(({ task }) => {
  if (task.concurrent !== true) before = census();
});

// Every test gives back the processes, servers and sockets it opened.
afterEach(async ({ task }) => {
  if (task.concurrent === true) return; // its neighbours have theirs: the file is asked at its end
  await assertNoLeaks(before, 'The test');
});

afterAll(async () => {
  process.env['TMPDIR'] = system;
  const left = readdirSync(own).filter((name) => !CACHES.test(name));
  rmSync(own, { recursive: true, force: true, maxRetries: 3 });
  await assertNoLeaks(atStart, 'The file');
  if (left.length > 0) throw new Error(`The file left ${left.join(', ')} in the temporary directory.`);
});

/** Handles close a little after their owner is disposed, so the census is repeated for a while before anybody is blamed. */
async function assertNoLeaks(earlier: ReadonlyMap<string, number>, who: string): Promise<void> {
  const deadline = performance.now() + PATIENCE_MS;
  let leaks = leaksSince(earlier);
  while (leaks.length > 0 && performance.now() < deadline) {
    await delay(10);
    leaks = leaksSince(earlier);
  }
  if (leaks.length > 0) throw new Error(`${who} leaked ${leaks.join(', ')}. Dispose what it opened with await using.`);
}

function leaksSince(earlier: ReadonlyMap<string, number>): string[] {
  const now = census();
  return WATCHED.map((kind) => ({ kind, more: (now.get(kind) ?? 0) - (earlier.get(kind) ?? 0) }))
    .filter(({ more }) => more > 0)
    .map(({ kind, more }) => `${more} ${kind}`);
}

function census(): Map<string, number> {
  const counts = new Map<string, number>();
  for (const kind of process.getActiveResourcesInfo()) counts.set(kind, (counts.get(kind) ?? 0) + 1);
  return counts;
}
