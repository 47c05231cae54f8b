import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach } from 'vitest';

const WATCHED = ['ProcessWrap', 'TCPServerWrap', 'TCPSocketWrap'] as const;
const PATIENCE_MS = 2_000;

let before = new Map<string, number>();

beforeEach(() => {
  before = census();
});

// Every test gives back the processes, servers and sockets it opened. Handles close a little after their owner is
// disposed, so the census is repeated for a while before a test is blamed.
afterEach(async () => {
  const deadline = performance.now() + PATIENCE_MS;
  let leaks = leaksSince(before);
  while (leaks.length > 0 && performance.now() < deadline) {
    await delay(10);
    leaks = leaksSince(before);
  }
  if (leaks.length > 0)
    throw new Error(`The test leaked ${leaks.join(', ')}. Dispose what it opened with await using.`);
});

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
