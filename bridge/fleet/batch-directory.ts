import { randomUUID } from 'node:crypto';
import { readdir, readFile, rm, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { makeDirectory } from '../../shared/durable-file.ts';
import { AppError, errorCode, toAppError } from '../../shared/errors.ts';
import { BatchBook } from './batch-book.ts';
import type { FleetSide } from './batch-book.ts';
import { BatchLock } from './batch-lock.ts';
import type { LockHolder } from './batch-lock.ts';
import type { BatchOrder } from './batch-order.ts';
import { newRecord } from './job-record.ts';
import type { JobRecord } from './job-record.ts';
import { ManifestState } from './manifest-lines.ts';
import type { ManifestHeader, ManifestLine } from './manifest-lines.ts';
import { Manifest } from './manifest.ts';

/** The directory of a new batch: lock and manifest. When this resolves it survives this process and a power cut. */
export async function createBook(
  order: BatchOrder,
  { root, side }: { root: string; side: FleetSide },
): Promise<BatchBook> {
  const header = headerOf(order);
  const directory = join(root, header.batchId);
  const jobs = order.jobs.map((job) => newRecord({ ...job, jobId: randomUUID(), inputFiles: job.inputFiles ?? [] }));
  try {
    await makeDirectory(directory, { mode: 0o700 });
    const lock = await BatchLock.acquire(directory, { pid: process.pid, client: order.client });
    if (!(lock instanceof BatchLock)) throw new Error(`the lock of the new batch ${header.batchId} is taken`);
    const lines = [header, ...jobs.map(jobLine)];
    const manifest = await Manifest.create(join(directory, 'manifest.jsonl'), lines).catch(async (error: unknown) => {
      await lock[Symbol.asyncDispose]();
      throw error;
    });
    return new BatchBook({ directory, header, jobs, manifest, lock, side, ageMs: 0, isNew: true });
  } catch (error) {
    throw notWritten(directory, error);
  }
}

/** A batch nobody works on, as its manifest tells. Undefined when another process has its lock, or when it is over. */
export async function resumeBook(
  directory: string,
  { side, holder }: { side: FleetSide; holder: LockHolder },
): Promise<BatchBook | undefined> {
  const lock = await BatchLock.acquire(directory, holder);
  if (!(lock instanceof BatchLock)) return undefined;
  try {
    const book = await readBook(directory, { side, lock });
    if (book === undefined) await lock[Symbol.asyncDispose]();
    return book;
  } catch (error) {
    await lock[Symbol.asyncDispose]();
    throw error;
  }
}

async function readBook(
  directory: string,
  { side, lock }: { side: FleetSide; lock: BatchLock },
): Promise<BatchBook | undefined> {
  const batchId = basename(directory);
  const resumed = await Manifest.resume(join(directory, 'manifest.jsonl'), { batchId });
  if (resumed === undefined) {
    side.log.warn({ event: 'manifest-unreadable', batchId });
    return undefined;
  }
  const { manifest, lines, damaged } = resumed;
  if (damaged > 0) side.log.warn({ event: 'manifest-damaged', batchId, lines: damaged });
  const state = new ManifestState();
  for (const line of lines) state.apply(line);
  const { header, jobs, repairs } = state;
  if (header === undefined || state.ended !== undefined || !state.isWhole) {
    // A process that died before its call was answered: nobody knows the batch, and nothing was sent.
    if (header !== undefined && state.ended === undefined) await manifest.append([UNANSWERED]);
    await manifest[Symbol.asyncDispose]();
    if (header === undefined) await rm(join(directory, 'manifest.jsonl'));
    return undefined;
  }
  await removeParts(directory);
  const ageMs = Math.max(0, Date.now() - Date.parse(header.createdAt));
  return new BatchBook({ directory, header, jobs, manifest, lock, side, ageMs, isNew: false, repairs });
}

const UNANSWERED: ManifestLine = { type: 'ended', state: 'cancelled', elapsedMs: 0, quality: null };

/** What a killed process left half written. Only the holder of the lock writes here. */
async function removeParts(directory: string): Promise<void> {
  const parts = (await readdir(directory)).filter((name) => name.endsWith('.part'));
  for (const name of parts) await rm(join(directory, name), { force: true });
}

/** What other processes ask for by files: an end of all, or of the jobs with these ids. */
export async function readWishes(directory: string): Promise<'cancel all' | string[]> {
  if ((await stat(join(directory, 'cancel')).catch(() => undefined)) !== undefined) return 'cancel all';
  const text = await readFile(join(directory, 'cancel-jobs'), 'utf8').catch(() => '');
  return text.slice(0, text.lastIndexOf('\n') + 1).split('\n');
}

function headerOf(order: BatchOrder): ManifestHeader {
  return {
    type: 'batch',
    version: 1,
    batchId: randomUUID(),
    kind: order.kind,
    class: order.class,
    order: order.order,
    maxConcurrent: order.maxConcurrent ?? null,
    host: order.host ?? null,
    client: order.client,
    createdAt: new Date().toISOString(),
    total: order.jobs.length,
  };
}

function jobLine(job: JobRecord): ManifestLine {
  const { jobId, index, request, inputFiles, directory, name } = job;
  return { type: 'job', jobId, index, request, inputFiles: [...inputFiles], directory, name: name ?? null };
}

function notWritten(directory: string, error: unknown): AppError {
  const { message } = toAppError(error);
  const isFull = ['ENOSPC', 'EDQUOT'].includes(errorCode(error) ?? '');
  const why = `The batch could not be written to ${directory}: ${message}. Nothing was started; free some space or mend the directory.`;
  return new AppError(isFull ? 'DISK_FULL' : 'SAVE_FAILED', why, { cause: error });
}
