import type { ManifestHeader, ManifestLine, ManifestMend } from './manifest-lines.ts';

/**
 * PURE. What to go on with when lines of a manifest were damaged: those that are left, a header in place of a lost one, and
 * a line that says so. Undefined when no job is left.
 */
export function mend(
  lines: readonly ManifestLine[],
  o: { damaged: number; keptAs: string; batchId: string; nowMs: number },
): ManifestLine[] | undefined {
  const jobs = lines.flatMap((line) => (line.type === 'job' ? [line] : []));
  const [first] = jobs;
  if (first === undefined) return undefined;
  const known = lines.find((line) => line.type === 'batch');
  const header: ManifestHeader = known ?? {
    type: 'batch',
    version: 1,
    batchId: o.batchId,
    kind: first.request.kind,
    class: 'batch',
    order: 'longest-first',
    maxConcurrent: null,
    host: null,
    client: 'unknown',
    createdAt: new Date(o.nowMs).toISOString(),
    total: jobs.length,
  };
  const lostJobs = Math.max(0, header.total - new Set(jobs.map(({ jobId }) => jobId)).size);
  const mended: ManifestMend = { type: 'mended', damagedLines: o.damaged, lostJobs, keptAs: o.keptAs };
  return [header, ...lines.filter((line) => line !== known), mended];
}

/** PURE. For the notes of an answer. */
export function mendNote({ damagedLines, lostJobs, keptAs }: ManifestMend): string {
  const lines = linesOf(damagedLines);
  const jobs = lostJobs === 1 ? '1 image' : `${lostJobs} images`;
  const lost =
    lostJobs === 0 ? 'No image is lost.' : `${jobs} of this batch can no longer be made: ask for them again.`;
  return `${lines} of the record of this batch could not be read. ${lost} The record as it was is in ${keptAs}.`;
}

/** PURE. Of lines that are still in it: of a batch that is over, which nobody mends, or in which its holder has not looked yet. */
export function damageNotes(damaged: number): string[] {
  if (damaged === 0) return [];
  return [
    `${linesOf(damaged)} of the record of this batch could not be read, so what is said here may lack something.`,
  ];
}

function linesOf(count: number): string {
  return count === 1 ? '1 line' : `${count} lines`;
}
