import { basename, dirname } from 'node:path';
import type { JobResult } from '../../shared/job.ts';
import { writeOnce } from '../output/results-file.ts';
import type { JobRecord } from './job-record.ts';
import type { Place } from './job-state.ts';

/**
 * What a PNG says of itself in its text, beside an image whose format has no room for it: `fox.jpg.json`. The whole name of
 * the image is in it, so that it is as free as that was; a file that is there all the same stays as it is.
 */
export async function writeSideCar(
  { jobId, request, inputFiles }: JobRecord,
  saved: { place: Place; result: JobResult; path: string; createdAt: string },
): Promise<void> {
  const { place, result, path, createdAt } = saved;
  if (result.format === 'png') return;
  const { width, height, sha256, gpu, runMs } = result;
  const { host, attempt } = place;
  const about = { version: 1, jobId, attempt, request, width, height, host, gpu, runMs, sha256, createdAt };
  await writeOnce({
    directory: dirname(path),
    name: `${basename(path)}.json`,
    text: () => `${JSON.stringify({ ...about, ...(inputFiles.length > 0 && { inputFiles }) }, null, 1)}\n`,
  });
}
