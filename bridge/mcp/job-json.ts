import type { BatchView } from '../fleet/batch-view.ts';
import { progressJson, qualityJson, resultsJson } from './answers.ts';
import type { Json } from './results.ts';
import { seconds } from './units.ts';

/** A batch, or one job of it, as a resource: also a failed one, which as an answer of a tool would be an error. */
export function jobJson(view: BatchView, id: string): Json {
  const job = view.jobs.find(({ jobId }) => jobId === id);
  return {
    ...(job !== undefined && { job_id: job.jobId }),
    batch_id: view.batchId,
    kind: view.kind,
    state: job?.state ?? view.state,
    created_at: view.createdAt,
    ...progressJson(view, job),
    elapsed_seconds: seconds(view.elapsedMs),
    results: resultsJson(job === undefined ? view : { ...view, jobs: [job] }),
    ...(job === undefined ? qualityJson(view) : { routing: job.routing }),
    notes: [...(job?.result?.notes ?? []), ...view.notes],
  };
}
