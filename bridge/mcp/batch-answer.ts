import type { BatchView } from '../fleet/batch-view.ts';
import {
  plural,
  previewsFor,
  progressJson,
  qualityJson,
  resultsFileJson,
  runningAnswer,
  shownJobs,
  statusOf,
  throwIfFailed,
} from './answers.ts';
import { resultLinks } from './result-links.ts';
import type { ImageAnswer, Json } from './results.ts';
import type { ToolContext } from './tool.ts';
import { seconds } from './units.ts';

/**
 * The answer of a call for many images: all that came of them, or how far they are. If all failed, the first failure is
 * thrown. `json` is what the tool itself says, `saved` what it calls an image that is there.
 */
export async function batchAnswer(
  view: BatchView,
  o: {
    context: ToolContext;
    preview: 'inline' | 'none' | undefined;
    notes: readonly string[];
    saved: string;
    json: Json;
  },
): Promise<ImageAnswer> {
  throwIfFailed(view);
  const file = await resultsFileJson(view);
  const json = { status: statusOf(view), batch_id: view.batchId, ...o.json, ...file.json, ...qualityJson(view) };
  if (view.state === 'running') {
    return { ...runningAnswer(view), json: { ...json, ...progressJson(view), notes: o.notes } };
  }
  const { previews, notes } = await previewsFor(view.jobs, { asked: o.preview, settings: o.context.settings });
  const failed = view.failed > 0 ? `, ${view.failed} failed` : '';
  const cancelled = view.cancelled > 0 ? `, ${view.cancelled} cancelled` : '';
  return {
    sentence: `${o.saved} ${plural(view.completed, 'image')} in ${seconds(view.elapsedMs)} s${failed}${cancelled}.`,
    json: { ...json, notes: [...o.notes, ...file.notes, ...notes] },
    previews,
    links: resultLinks(shownJobs(view)),
  };
}
