import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import sharp from 'sharp';
import { expect } from 'vitest';
import type { ManifestLine } from '../../bridge/fleet/manifest-lines.ts';
import { readLines } from '../../bridge/fleet/manifest-lines.ts';
import type { TestFleet } from '../helpers/fleet.ts';
import { eventually } from '../helpers/fleet.ts';
import { statusOf } from '../helpers/host-status.ts';

/** A file as it lies in the output directory; `size` is absent where it does not decode to its last pixel. */
export type SeenFile = { path: string; sha256: string; size?: { width: number; height: number } };

/**
 * What a batch's manifest and the files on disk say against the promises: no job lost, one file for each, every file
 * whole. `failed` are the indices of jobs that nobody can do. PURE. Empty where all of them hold.
 */
export function historyProblems(
  lines: readonly ManifestLine[],
  files: readonly SeenFile[],
  failed: readonly number[] = [],
): string[] {
  const jobs = lines.flatMap((line) => (line.type === 'job' ? [line] : []));
  const saved = lines.flatMap((line) => (line.type === 'saved' ? [line] : []));
  const problems: string[] = [];
  for (const { jobId, index, request } of jobs) {
    const mine = saved.filter((line) => line.jobId === jobId);
    const times = failed.includes(index) ? 0 : 1;
    if (mine.length !== times) problems.push(`job ${index} was saved ${mine.length} times`);
    const isFailed = lines.some((line) => line.type === 'failed' && line.jobId === jobId);
    if (isFailed !== failed.includes(index)) problems.push(`job ${index} ${isFailed ? 'failed' : 'did not fail'}`);
    if (attemptsOf(lines, jobId) > MAX_ATTEMPTS) problems.push(`job ${index} had more than ${MAX_ATTEMPTS} attempts`);
    for (const { path, result } of mine) {
      const file = files.find((candidate) => candidate.path === path);
      if (file === undefined) problems.push(`job ${index}: ${path} is not there`);
      else if (file.sha256 !== result.sha256) problems.push(`job ${index}: ${path} is not what the agent sent`);
      else if (file.size === undefined) problems.push(`job ${index}: ${path} is not a whole image`);
      else if (request.width !== undefined && file.size.width !== result.width) {
        problems.push(`job ${index}: ${path} is ${file.size.width} wide, not ${result.width}`);
      }
    }
  }
  const named = new Set(saved.map(({ path }) => path));
  for (const { path } of files) if (!named.has(path)) problems.push(`${path} belongs to no job`);
  if (named.size !== saved.length) problems.push('two jobs have the same file');
  if (!lines.some(({ type }) => type === 'ended')) problems.push('the batch has not ended');
  return problems;
}

const MAX_ATTEMPTS = 3;

function attemptsOf(lines: readonly ManifestLine[], jobId: string): number {
  const sent = lines.flatMap((line) => (line.type === 'sent' && line.jobId === jobId ? [line.attempt] : []));
  // A take that was refused is no attempt; nor is one that the agent never knew of.
  const refused = lines.flatMap((line) => (line.type === 'refused' && line.jobId === jobId ? [line.attempt] : []));
  return sent.filter((attempt) => !refused.includes(attempt)).length;
}

/** All lines of one batch, wherever in the fleet's laptops it is kept. */
export async function manifestOf(fleet: TestFleet, batchId: string): Promise<ManifestLine[]> {
  const laptops = (await readdir(fleet.directory)).filter((name) => name.startsWith('laptop'));
  for (const laptop of laptops) {
    const path = join(fleet.directory, laptop, '.local', 'state', 'gantry', 'batches', batchId, 'manifest.jsonl');
    const text = await readFile(path, 'utf8').catch(() => undefined); // kept by another laptop
    if (text !== undefined) return readLines(text).lines;
  }
  throw new Error(`no laptop has the batch ${batchId}`);
}

/**
 * The promises about jobs, checked against what is on disk on both sides. For every fault that has jobs; `batches` are all
 * batches that wrote into the output directory, by their ids, where jobs had to fail with the indices of those.
 */
export async function expectHistory(fleet: TestFleet, ...batches: readonly Expected[]): Promise<void> {
  await expectFiles(fleet, ...batches);
  for (const host of fleet.hosts.filter(({ isRunning }) => isRunning)) {
    await eventually(`every result of ${host.name} is acknowledged`, async () => {
      const { jobs } = await statusOf(host);
      return jobs.length === 0;
    });
  }
}

type Expected = string | { id: string; failed: readonly number[] };

/** The laptop's side of it. */
export async function expectFiles(fleet: TestFleet, ...batches: readonly Expected[]): Promise<void> {
  const expected = batches.map((batch) => (typeof batch === 'string' ? { id: batch, failed: [] } : batch));
  const histories = await Promise.all(expected.map(({ id }) => manifestOf(fleet, id)));
  const lists = expected.map(({ id }) => `batch_${id}.jsonl`); // the results file of a large one is no image
  const names = (await fleet.outputFiles()).filter((name) => !lists.includes(name));
  const files = await Promise.all(names.map((name) => look(join(fleet.output, name))));
  const named = new Set(histories.flat().flatMap((line) => (line.type === 'saved' ? [line.path] : [])));
  for (const [index, lines] of histories.entries()) {
    const own = new Set(lines.flatMap((line) => (line.type === 'saved' ? [line.path] : [])));
    expect(lines.filter(({ type }) => type === 'job').length, 'jobs in the manifest').toBeGreaterThan(0);
    const notOfOthers = files.filter(({ path }) => own.has(path) || !named.has(path));
    expect(historyProblems(lines, notOfOthers, expected[index]?.failed)).toEqual([]);
  }
}

async function look(path: string): Promise<SeenFile> {
  const bytes = await readFile(path);
  const sha256 = createHash('sha256').update(bytes).digest('hex');
  const decoded = await sharp(bytes, { failOn: 'truncated' })
    .raw()
    .toBuffer({ resolveWithObject: true })
    .catch(() => undefined); // torn: that is a finding, not a failure of this look
  return { path, sha256, ...(decoded && { size: { width: decoded.info.width, height: decoded.info.height } }) };
}
