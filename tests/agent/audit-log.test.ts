import { mkdtemp, readdir, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { AuditLog } from '../../agent/audit-log.ts';
import { objectOf } from '../../agent/rpc/audit.ts';
import { createLog } from '../../shared/log.ts';

const log = createLog({ name: 'test', to: 'stderr', level: 'silent' });

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-audit-'));
});
afterEach(() => rm(dir, { recursive: true, force: true }));

test('one line for each, in order, for its owner alone', async () => {
  const audit = new AuditLog({ stateDir: dir, log });
  for (let count = 0; count < 50; count += 1)
    audit.note({ action: 'auth', outcome: 'ok', from: '::1', object: String(count) });
  await audit[Symbol.asyncDispose]();
  const lines = (await readFile(join(dir, 'audit.jsonl'), 'utf8')).trim().split('\n');
  expect(lines.map((line) => (JSON.parse(line) as { object: string }).object)).toEqual(
    Array.from({ length: 50 }, (_, at) => String(at)),
  );
  expect((await stat(join(dir, 'audit.jsonl'))).mode & 0o777).toBe(0o600);
});

test('it is rotated, keeps five older parts, and all of them stay 0600', async () => {
  for (let round = 0; round < 9; round += 1) {
    const audit = new AuditLog({ stateDir: dir, log, maxBytes: 10 });
    audit.note({ action: 'auth', outcome: String(round), from: '::1' });
    await audit[Symbol.asyncDispose]();
  }
  const names = (await readdir(dir)).sort();
  expect(names).toEqual(['audit.jsonl', ...[1, 2, 3, 4, 5].map((part) => `audit.jsonl.${part}`)]);
  for (const name of names) expect((await stat(join(dir, name))).mode & 0o777).toBe(0o600);
  expect(await readFile(join(dir, 'audit.jsonl.5'), 'utf8')).toContain('"outcome":"3"');
});

test('a place that cannot be written stops nobody', async () => {
  const audit = new AuditLog({ stateDir: join(dir, 'absent'), log });
  audit.note({ action: 'auth', outcome: 'ok', from: '::1' });
  await audit[Symbol.asyncDispose]();
  expect(await readdir(dir)).toEqual([]);
});

test('of a job the id and a digest of the prompt, never the prompt', () => {
  const job = { jobId: '11111111-1111-4111-8111-111111111111', request: { prompt: 'a secret fox' } };
  const said = objectOf({ grantId: 'x', job });
  expect(said.object).toBe(job.jobId);
  expect(said.promptSha256).toMatch(/^[0-9a-f]{64}$/);
  expect(JSON.stringify(said)).not.toContain('secret');
});
