import { appendFile, mkdir, mkdtemp, readdir, readFile, rename, rm, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { expect, test } from 'vitest';
import { BatchIndex, TAIL_BYTES } from '../../../bridge/fleet/batch-index.ts';
import { manifestView, repairNotes } from '../../../bridge/fleet/batch-view.ts';
import type { JobStateKind } from '../../../bridge/fleet/job-state.ts';
import { ManifestState, readLines } from '../../../bridge/fleet/manifest-lines.ts';
import type { ManifestLine } from '../../../bridge/fleet/manifest-lines.ts';
import { Manifest } from '../../../bridge/fleet/manifest.ts';
import { removeOldBatches } from '../../../bridge/fleet/old-batches.ts';
import { toCheckedLine } from '../../../shared/checked-line.ts';
import { request } from './builders.ts';

const batchId = '22222222-2222-4222-8222-222222222222';
const jobId = '11111111-1111-4111-8111-111111111111';
const otherJobId = '99999999-9999-4999-8999-999999999999';
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
  const root = await mkdtemp(join(tmpdir(), 'gantry-manifest-'));
  const path = join(root, batchId);
  await mkdir(path);
  return { path, file: join(path, 'manifest.jsonl'), [Symbol.asyncDispose]: () => rm(root, { recursive: true }) };
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

const whole: readonly ManifestLine[] = [{ ...header, total: 2 }, job, { ...job, jobId: otherJobId, index: 1 }, sent];

/** What happens to the text of a manifest, what is left of its lines, and how many images are lost for good. */
test.each<[string, (text: string) => string, ManifestLine['type'][], number]>([
  ['a word', (text) => text.replace('"sent"', '"se\u0000t"'), ['batch', 'job', 'job'], 0],
  ['one bit of a text that stays JSON', (text) => text.replace('"why"', '"whx"'), ['batch', 'job', 'job'], 0],
  ['the checksum', (text) => text.replace(/"crc":\d+\}\n$/, '"crc":1}\n'), ['batch', 'job', 'job'], 0],
  ['a line end', (text) => text.replace('}\n{"type":"sent"', '}x{"type":"sent"'), ['batch', 'job', 'job', 'failed'], 1],
  ['the header', (text) => text.replace('{"type":"batch"', '{"type":"botch"'), ['batch', 'job', 'job', 'sent'], 0],
  [
    'a job',
    (text) => text.replace(otherJobId, `${otherJobId.slice(1)}f`),
    ['batch', 'job', 'job', 'sent', 'failed'],
    1,
  ],
])('damaged: %s', async (_, damage, left, lost) => {
  await using directory = await temporary();
  const text = damage(whole.map(toCheckedLine).join(''));
  await writeFile(directory.file, text);
  const resumed = await Manifest.resume(directory.file, { batchId });
  await resumed?.manifest[Symbol.asyncDispose]();
  expect(resumed?.damaged).toBe(1);
  const after = readLines(await readFile(directory.file, 'utf8'));
  expect(after).toMatchObject({ damaged: 0, lines: resumed?.lines });
  expect(after.lines.map(({ type }) => type).filter((type) => type !== 'repaired')).toEqual(left);
  const state = stateOf(after.lines);
  expect(state.isWhole).toBe(true);
  expect(state.jobs).toHaveLength(2);
  const kept = (await readdir(directory.path)).filter((name) => name.startsWith('manifest.jsonl.corrupt-'));
  expect(kept).toHaveLength(1);
  const keptAs = join(directory.path, kept[0] ?? '');
  expect(state.repairs).toEqual([{ type: 'repaired', damaged: 1, lost, keptAs }]);
  expect(await readFile(keptAs, 'utf8')).toBe(text);
});

function stateOf(lines: readonly ManifestLine[]): ManifestState {
  const state = new ManifestState();
  for (const line of lines) state.apply(line);
  return state;
}

test('a note of a damaged record says what is lost and where the rest is', () => {
  const repaired = { type: 'repaired' as const, damaged: 2, lost: 1, keptAs: '/x.corrupt-1' };
  expect(repairNotes([repaired])).toEqual([
    '2 lines of the record of this batch could not be read. Of one image it is not known any more what was asked for: ' +
      'ask again for what is not there. The damaged file is kept as /x.corrupt-1.',
  ]);
});

test('who only reads a batch that is over is told of damaged lines, and whoever takes up work mends it', async () => {
  await using directory = await temporary();
  const end: ManifestLine = { type: 'ended', state: 'success', elapsedMs: 9, quality: null };
  const text = [header, job, sent, saved, end].map(toCheckedLine).join('');
  await writeFile(directory.file, text);
  const index = new BatchIndex(dirname(directory.path));
  expect(index.unfinished()).toEqual([]);
  await writeFile(`${directory.file}.new`, text.replace('"why"', '"whx"'));
  await rename(`${directory.file}.new`, directory.file);
  expect(index.unfinished()).toEqual([batchId]);
  expect(index.unfinished({ but: new Set([batchId]) })).toEqual([]);
  const found = index.find(batchId);
  expect(found && manifestView(found.state)?.notes).toEqual([
    'One line of the record of this batch could not be read, so what is said here may lack something.',
  ]);
  const resumed = await Manifest.resume(directory.file, { batchId });
  await resumed?.manifest[Symbol.asyncDispose]();
  expect(index.unfinished()).toEqual([]);
  expect(index.find(batchId)?.state.ended?.state).toBe('success');
});

test('damage before the end of a large manifest is seen when somebody asks for the batch', async () => {
  await using directory = await temporary();
  const many = Array.from({ length: 500 }, (_, n): ManifestLine => ({ ...sent, jobId, attempt: n + 1 }));
  const end: ManifestLine = { type: 'ended', state: 'success', elapsedMs: 9, quality: null };
  const text = [header, job, ...many, saved, end].map(toCheckedLine).join('');
  expect(text.length).toBeGreaterThan(TAIL_BYTES);
  await writeFile(directory.file, text.replace('"why"', '"whx"'));
  const index = new BatchIndex(dirname(directory.path));
  expect(index.unfinished()).toEqual([]);
  expect(index.find(batchId)?.state.damaged).toBe(1);
  expect(index.unfinished()).toEqual([batchId]);
});

test('the index follows manifests of others as they grow, and when they are cleaned', async () => {
  await using directory = await temporary();
  const index = new BatchIndex(directory.path);
  expect(index.unfinished()).toEqual([]);
  const own = join(directory.path, batchId);

  await mkdir(own);
  const file = join(own, 'manifest.jsonl');
  await writeFile(file, `${JSON.stringify(header)}\n`);
  expect(index.find(batchId), 'not whole yet').toBeUndefined();
  expect(index.unfinished()).toEqual([batchId]);
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
  const [empty, unreadable] = ['77777777-7777-4777-8777-777777777777', '88888888-8888-4888-8888-888888888888'];
  for (const id of [...unanswered, empty, unreadable]) await mkdir(join(directory.path, id));
  await writeFile(join(directory.path, empty, 'manifest.jsonl'), '');
  await age(join(directory.path, empty, 'manifest.jsonl'), nowMs - 2 * day);
  await writeFile(join(directory.path, unreadable, 'manifest.jsonl.corrupt-1'), 'rubbish');
  await age(join(directory.path, unreadable), nowMs - 15 * day);
  await age(join(directory.path, unanswered[0] ?? ''), nowMs - 2 * day);
  await mkdir(join(directory.path, 'not-a-batch'));

  expect(await removeOldBatches(directory.path, { nowMs, keep: 3 })).toBe(5);
  const left = [
    ...made.slice(0, 2),
    unreadable,
    unfinished.batchId,
    quoting.batchId,
    unanswered[1] ?? '',
    'not-a-batch',
  ];
  expect((await readdir(directory.path)).sort()).toEqual(left.sort());
  expect(await removeOldBatches(directory.path, { nowMs, keep: 3 })).toBe(0);
  await rm(join(directory.path, unreadable), { recursive: true });
  for (const id of made.slice(0, 2)) for (const n of [1, 2]) await writeFile(join(directory.path, id, `${n}.jpg`), '');
  expect(await removeOldBatches(directory.path, { nowMs, previews: 3 })).toBe(0);
  const previews = made.slice(0, 2).map(async (id) => (await readdir(join(directory.path, id))).length - 1);
  expect(await Promise.all(previews), 'previews of the newest are kept').toEqual([2, 1]);
  expect(await removeOldBatches(directory.path, { nowMs, bytes: 1 }), 'the newest is always remembered').toBe(1);
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
