import { parentPort } from 'node:worker_threads';
import type { Violation } from './parts/checks.ts';
import { History } from './parts/history.ts';
import type { Tally } from './parts/history.ts';

export type Verdict = {
  seed: number;
  hash: string;
  violations: Violation[];
  tally: Tally;
  trace: string[] | undefined;
};

/** One seed from its first event to its last. */
export async function runSeed(seed: number, o: { isTraced?: boolean } = {}): Promise<Verdict> {
  // Most errors here are those of a simulated disk or network; nobody reads where they were made.
  if (o.isTraced !== true) Error.stackTraceLimit = 0;
  const history = new History(seed, o);
  await history.run();
  return { seed, ...history.verdict() };
}

// As a worker: seeds in, verdicts out.
parentPort?.on('message', ({ seeds, isTraced }: { seeds: number[]; isTraced?: boolean }) => {
  void (async () => {
    const verdicts: Verdict[] = [];
    for (const seed of seeds) verdicts.push(await runSeed(seed, { isTraced: isTraced ?? false }));
    parentPort?.postMessage(verdicts);
  })();
});
