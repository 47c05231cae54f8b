import { randomUUID } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { ActiveJob } from '../../../agent/job/active-job.ts';
import { Attempts } from '../../../agent/job/attempts.ts';
import { Journal } from '../../../agent/job/journal.ts';
import { job as newJob } from './job.ts';

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-attempts-'));
});
afterEach(() => rm(dir, { recursive: true, force: true }));

const job = newJob();

function taken(tokenId: string): ActiveJob {
  return new ActiveJob({
    tokenId,
    sessionId: randomUUID(),
    job,
    gpus: [],
    grantedMs: 0,
    bringsModelIn: false,
    isLead: false,
    expectedMs: 1_000,
    notify: () => undefined,
  });
}

test('two tokens with the same id and attempt have two jobs, and neither sees, ends or acknowledges the other', async () => {
  await using journal = await Journal.open({ dir, log: pino({ level: 'silent' }) });
  const attempts = new Attempts(journal);
  const [mine, foreign] = [taken('mine'), taken('foreign')];
  attempts.add(mine);
  expect(attempts.activeOf('foreign', job)).toBeUndefined();
  expect(attempts.jobOf('foreign', job)).toBeUndefined();
  attempts.add(foreign);
  expect(attempts.activeOf('mine', job)).toBe(mine);
  attempts.remove(foreign);
  expect(attempts.isActive(mine)).toBe(true);

  await journal.taken('mine', job);
  attempts.acknowledge('foreign', job, new Promise(() => undefined));
  expect(attempts.unacknowledged('mine')).toHaveLength(1);
  expect(attempts.unacknowledged('foreign')).toEqual([]);
  expect(() => attempts.latest('foreign', job.jobId)).toThrow('There is no such job here');
});
