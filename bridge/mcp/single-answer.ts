import type { BatchView } from '../fleet/batch-view.ts';
import type { MadeImage } from './answers.ts';
import { isMade, previewsFor, runningAnswer, throwIfFailed } from './answers.ts';
import { resultLinks } from './result-links.ts';
import type { ImageAnswer, Json } from './results.ts';
import type { ToolContext } from './tool.ts';

/**
 * The answer of a call for one image: made, still under way, or stopped by somebody. A failure is thrown. What was frozen
 * is told in each of them, because nobody else knows what will be made.
 */
export async function singleAnswer(
  view: BatchView,
  o: {
    context: ToolContext;
    preview: 'inline' | 'none' | undefined;
    notes: readonly string[];
    frozen: Json;
    made: (job: MadeImage) => { sentence: string; json: Json };
  },
): Promise<ImageAnswer> {
  throwIfFailed(view);
  if (view.state === 'running') {
    const running = runningAnswer(view);
    return { ...running, json: { ...running.json, ...o.frozen, notes: o.notes } };
  }
  const [job] = view.jobs;
  if (job === undefined || !isMade(job)) {
    return {
      sentence: 'Cancelled before the image was finished; nothing was saved.',
      json: { status: 'cancelled', job_id: job?.jobId, batch_id: view.batchId },
      previews: [],
    };
  }
  const { previews, notes } = await previewsFor(view.jobs, { asked: o.preview, settings: o.context.settings });
  const { sentence, json } = o.made(job);
  return {
    sentence,
    json: {
      status: 'success',
      ...json,
      host: job.host,
      routing: job.routing ?? `${job.host ?? 'the host'} was free.`,
      notes: [...o.notes, ...job.result.notes, ...notes],
    },
    previews,
    links: resultLinks(view.jobs),
  };
}
