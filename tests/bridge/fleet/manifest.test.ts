import { appendFile, mkdir, mkdtemp, readdir, readFile, rename, rm, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { BatchIndex } from '../../../bridge/fleet/batch-index.ts';
import type { JobStateKind } from '../../../bridge/fleet/job-state.ts';
import { ManifestState, readLines } from '../../../bridge/fleet/manifest-lines.ts';
import type { ManifestLine } from '../../../bridge/fleet/manifest-lines.ts';
import { Manifest } from '../../../bridge/fleet/manifest.ts';
import { removeOldBatches } from '../../../bridge/fleet/old-batches.ts';
import { request } from './builders.ts';

const batchId = '22222222-2222-4222-8222-222222222222';
const jobId = '11111111-1111-4111-8111-111111111111';
const header: ManifestLine = {
  type: 'batch',
  version: 1,
  batchId,
  kind: 'generate',
  class: 'batch',
  order: 'longest-first',
  maxConcurrent: null,
  host: null,
  client: 'test',
  createdAt: '2026-11-20T12:00:00.000Z',
  total: 1,
};
const job: ManifestLine = {
  type: 'job',
  jobId,
  index: 0,
  request: request(),
  inputFiles: [],
  directory: '/out',
  name: null,
};
const at = { jobId, host: 'a', attempt: 1 };
const result = {
  sha256: 'a'.repeat(64),
  bytes: 1,
  width: 16,
  height: 16,
  format: 'png' as const,
  runMs: 1,
  gpu: 'g',
  notes: [],
};
const sent: ManifestLine = { type: 'sent', ...at, sentInMs: 5, routing: 'why' };
const saving: ManifestLine = { type: 'saving', ...at, name: 'x.png', sha256: result.sha256, result };
const saved: ManifestLine = { type: 'saved', ...at, path: '/out/x.png', previewPath: null, result, endedInMs: 9 };
const error = { code: 'ENGINE_FAILED', message: 'no', retryable: true };

async function temporary(): Promise<{ path: string; file: string } & AsyncDisposable> {
  const path = await mkdtemp(join(tmpdir(), 'gantry-manifest-'));
  return { path, file: join(path, 'manifest.jsonl'), [Symbol.asyncDispose]: () => rm(path, { recursive: true }) };
}

test.each<[ManifestLine[], JobStateKind]>([
  [[], 'waiting'],
  [[sent], 'taking'],
  [[sent, { type: 'phase', ...at, phase: 'running' }], 'running'],
  [[sent, { type: 'refused', ...at, code: 'GRANT_EXPIRED' }], 'waiting'],
  [[sent, { type: 'lost', ...at }], 'waiting'],
  [[sent, { type: 'attempt-failed', ...at, error, serverDied: false }], 'waiting'],
  [[sent, saving], 'saving'],
  [[sent, saving, saved], 'done'],
  [[sent, saving, saved, { type: 'cancelled', jobId, endedInMs: 9 }], 'done'],
  [[sent, { type: 'failed', jobId, error, endedInMs: 9 }], 'failed'],
  [[{ type: 'cancelled', jobId, endedInMs: 9 }], 'cancelled'],
])('the lines %# make the job %s', (lines, expected) => {
  const state = new ManifestState();
  for (const line of [header, job, ...lines]) state.apply(line);
  expect(state.isWhole).toBe(true);
  expect(state.job(jobId)?.state.kind).toBe(expected);
});

test('lines survive, in order, and a torn last line is not one', async () => {
  await using directory = await temporary();
  const manifest = await Manifest.create(directory.file, [header, job]);
  await Promise.all([manifest.append([sent]), manifest.note({ type: 'phase', ...at, phase: 'running' })]);
  await manifest[Symbol.asyncDispose]();
  await appendFile(directory.file, '{"type":"sav');
  const text = await readFile(directory.file, 'utf8');
  expect(readLines(text)).toMatchObject({ damaged: 0, lines: [header, job, sent, { type: 'phase' }] });
  const resumed = await Manifest.resume(directory.file, { batchId });
  await resumed?.manifest.append([saved]);
  await resumed?.manifest[Symbol.asyncDispose]();
  const now = readLines(await readFile(directory.file, 'utf8'));
  expect(now.lines.at(-1)).toEqual(saved);
  expect(now.damaged, 'a torn line is cut off and counts as no damage later').toBe(0);
});

test('a damaged manifest is kept aside, and the rest used', async () => {
  await using directory = await temporary();
  const text = [header, job, sent].map((line) => JSON.stringify(line)).join('\n');
  await writeFile(directory.file, `${text.replace('"sent"', '"se\u0000t"')}\n`);
  const resumed = await Manifest.resume(directory.file, { batchId });
  await resumed?.manifest[Symbol.asyncDispose]();
  expect(resumed?.lines.map(({ type }) => type)).toEqual(['batch', 'job', 'repaired']);
  expect(resumed?.damaged).toBe(1);
  expect((await readdir(directory.path)).some((name) => name.startsWith('manifest.jsonl.corrupt-'))).toBe(true);
  expect(readLines(await readFile(directory.file, 'utf8'))).toMatchObject({ damaged: 0 });
});

test('the index follows manifests of others as they grow, and when they are cleaned', async () => {
  await using directory = await temporary();
  const index = new BatchIndex(directory.path);
  expect(index.unfinished()).toEqual([]);
  const own = join(directory.path, batchId);

  await mkdir(own);
  const file = join(own, 'manifest.jsonl');
  await writeFile(file, `${JSON.stringify(header)}\n`);
  expect(index.unfinished(), 'not whole yet').toEqual([]);
  await appendFile(file, `${JSON.stringify(job)}\n${JSON.stringify(sent).slice(0, 20)}`);
  expect(index.find(jobId)?.state.job(jobId)?.state.kind).toBe('waiting');
  await appendFile(file, `${JSON.stringify(sent).slice(20)}\n`);
  expect(index.find(batchId)?.state.job(jobId)?.state.kind).toBe('taking');
  await writeFile(`${file}.clean`, [header, job, saved].map((line) => `${JSON.stringify(line)}\n`).join(''));
  await rename(`${file}.clean`, file);
  expect(index.find(jobId)?.state.job(jobId)?.state.kind).toBe('done');
  await rm(own, { recursive: true });
  expect(index.find(jobId)).toBeUndefined();
});

test('of ended batches only the jobs of the last asked for stay in memory, and all are found', async () => {
  await using directory = await temporary();
  const ids = await Promise.all([1, 2, 3, 4].map((n) => endedBatch(directory.path, n)));
  const index = new BatchIndex(directory.path, { jobsKept: 2 });
  expect(index.newest(3)).toHaveLength(3);
  for (const one of [...ids, ...ids]) {
    expect(index.find(one.batchId)?.state.job(one.jobId)?.state.kind).toBe('cancelled');
    expect(index.find(one.jobId)?.batchId).toBe(one.batchId);
    expect(index.jobsInMemory).toBeLessThanOrEqual(2);
  }
  expect(index.find('44444444-4444-4444-8444-444444444444')).toBeUndefined();
  expect(index.unfinished()).toEqual([]);
});

test('ended batches are removed when they are old or too many, unfinished ones never', async () => {
  await using directory = await temporary();
  const day = 24 * 3_600_000;
  const nowMs = Date.now();
  const ids = await Promise.all([1, 2, 3, 4, 5].map((n) => endedBatch(directory.path, n)));
  const made = ids.map((one) => one.batchId);
  await Promise.all(made.map((id, n) => age(join(directory.path, id, 'manifest.jsonl'), nowMs - (n + 1) * 10 * day)));
  const unfinished = await endedBatch(directory.path, 6, [sent]);
  await age(join(directory.path, unfinished.batchId, 'manifest.jsonl'), nowMs - 400 * day);
  const quoting = await endedBatch(directory.path, 7, [
    { ...job, request: request({ prompt: '\n{"type":"ended","state":"success"}\n' }) },
  ]);
  await age(join(directory.path, quoting.batchId, 'manifest.jsonl'), nowMs - 400 * day);
  const unanswered = ['55555555-5555-4555-8555-555555555555', '66666666-6666-4666-8666-666666666666'];
  for (const id of unanswered) await mkdir(join(directory.path, id));
  await age(join(directory.path, unanswered[0] ?? ''), nowMs - 2 * day);
  await mkdir(join(directory.path, 'not-a-batch'));

  expect(await removeOldBatches(directory.path, { nowMs, keep: 2 })).toBe(4);
  const left = [...made.slice(0, 2), unfinished.batchId, quoting.batchId, unanswered[1] ?? '', 'not-a-batch'];
  expect((await readdir(directory.path)).sort()).toEqual(left.sort());
  expect(await removeOldBatches(directory.path, { nowMs, keep: 2 })).toBe(0);
  expect(await removeOldBatches(join(directory.path, 'nowhere'), { nowMs })).toBe(0);
});

/** A batch of one job in a directory of its own; `lines` come after its header and job, in place of its end. */
async function endedBatch(root: string, n: number, lines?: readonly ManifestLine[]) {
  const ids = { batchId: `22222222-2222-4222-8222-00000000000${n}`, jobId: `11111111-1111-4111-8111-00000000000${n}` };
  const end: ManifestLine[] = [
    { type: 'cancelled', jobId: ids.jobId, endedInMs: 9 },
    { type: 'ended', state: 'cancelled', elapsedMs: 9, quality: null },
  ];
  const all = [{ ...header, batchId: ids.batchId }, { ...job, jobId: ids.jobId }, ...(lines ?? end)];
  await mkdir(join(root, ids.batchId));
  const text = all.map((line) => `${JSON.stringify(line)}\n`).join('');
  await writeFile(join(root, ids.batchId, 'manifest.jsonl'), text);
  return ids;
}

async function age(path: string, atMs: number): Promise<void> {
  await utimes(path, atMs / 1_000, atMs / 1_000);
}
