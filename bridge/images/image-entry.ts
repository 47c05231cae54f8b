import { z } from 'zod';
import { JobRequest, JobResult, Sha256, Uuid } from '../../shared/job.ts';
import type { ManifestLine } from '../fleet/manifest-lines.ts';

/**
 * One image that was made: everything needed to show it, to make it again, and to say where it came from. Its id is that
 * of its job. This is also a line of the index file.
 */
export const ImageEntry = z.object({
  id: Uuid,
  version: z.literal(1),
  batchId: Uuid,
  createdAt: z.string(),
  /** Where it was saved. The user may have moved it since. */
  path: z.string(),
  previewPath: z.string().nullable(),
  host: z.string(),
  result: JobResult,
  request: JobRequest,
  /** The pictures an edit started from, in their order. */
  inputs: z.array(z.object({ sha256: Sha256, path: z.string() })),
});
export type ImageEntry = z.infer<typeof ImageEntry>;

export type HeaderLine = Extract<ManifestLine, { type: 'batch' }>;
export type JobLine = Extract<ManifestLine, { type: 'job' }>;
export type SavedLine = Extract<ManifestLine, { type: 'saved' }>;

/** What the lines of a manifest say about one image. */
export function toEntry(header: Pick<HeaderLine, 'batchId' | 'createdAt'>, job: JobLine, saved: SavedLine): ImageEntry {
  const { request } = job;
  const hashes = request.kind === 'edit' ? request.inputs : [];
  return {
    id: job.jobId,
    version: 1,
    batchId: header.batchId,
    createdAt: new Date(Date.parse(header.createdAt) + saved.endedInMs).toISOString(),
    path: saved.path,
    previewPath: saved.previewPath,
    host: saved.host,
    result: saved.result,
    request,
    inputs: hashes.map((sha256, index) => ({ sha256, path: job.inputFiles[index] ?? '' })),
  };
}
