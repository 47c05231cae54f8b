import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { pipeline } from 'node:stream/promises';
import type { JobResult } from '../../shared/job.ts';
import { imageName } from '../output/file-names.ts';
import { saveImage } from '../output/image-file.ts';
import type { AgentLink } from './agent-link.ts';
import type { JobRecord } from './job-record.ts';
import { resultBytes } from './result-bytes.ts';

/**
 * Brings a result to its final file, and the preview into the batch's directory. The preview is best effort: an image
 * without one is saved all the same. Throws when the image is not safe on the disk.
 */
export async function fetchResult(o: {
  link: AgentLink;
  record: JobRecord;
  result: JobResult;
  batchDirectory: string;
  onSaving: (name: string) => Promise<void>;
  signal: AbortSignal;
}): Promise<{ path: string; previewPath: string | undefined }> {
  const { link, record, result, signal } = o;
  const startedMs = performance.now();
  const preview = fetchPreview(o).catch(() => undefined);
  const { sha256, bytes } = result;
  const { path } = await saveImage({
    body: resultBytes(link.transfers, { jobId: record.jobId, sha256, bytes, signal }),
    expected: { sha256, bytes },
    directory: record.directory,
    name: record.name ?? nameFor(record, result),
    onSaving: o.onSaving,
    signal,
  });
  link.transfers.note(performance.now() - startedMs);
  return { path, previewPath: await preview };
}

/** True when the file is there and has exactly these bytes. */
export async function hasContent(path: string, sha256: string): Promise<boolean> {
  const hash = createHash('sha256');
  try {
    await pipeline(createReadStream(path), hash);
  } catch {
    return false; // not there, or not readable: then it is fetched again
  }
  return hash.digest('hex') === sha256;
}

export function previewPathOf(batchDirectory: string, jobId: string): string {
  return join(batchDirectory, `${jobId}.jpg`);
}

async function fetchPreview(o: {
  link: AgentLink;
  record: JobRecord;
  batchDirectory: string;
  signal: AbortSignal;
}): Promise<string> {
  const path = previewPathOf(o.batchDirectory, o.record.jobId);
  const preview = await o.link.transfers.fetchPreview(o.record.jobId, o.signal);
  await writeFile(`${path}.part`, preview, { mode: 0o600 });
  await rename(`${path}.part`, path);
  return path;
}

function nameFor(record: JobRecord, result: JobResult): string {
  const promptSha256 = createHash('sha256').update(record.request.prompt).digest('hex');
  return imageName({ promptSha256, at: new Date(), format: result.format });
}
