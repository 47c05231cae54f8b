import { EXIT } from '../../shared/exit-codes.ts';
import type { BatchView } from '../fleet/batch-view.ts';
import type { Session } from '../session.ts';
import type { Answer, RunningBatch } from './ask.ts';
import { Interrupted } from './interrupts.ts';
import { withProgress } from './live-progress.ts';
import type { Screen } from './screen.ts';
import { printAnswer, printJson } from './screen.ts';

export type Making = {
  /** The tool that does the same for an assistant. */
  tool: string;
  args: Record<string, unknown>;
  /** Files and directories that the person named. */
  places: readonly string[];
};

/**
 * `gantry generate`, `edit` and `batch`: makes images and waits for them. Ctrl-C cancels the work; a terminal that goes away
 * does not, it goes on as far as the hosts have it. Returns the exit code.
 */
export async function make({ tool, args, places }: Making, session: Session): Promise<number> {
  const { screen, signal } = session;
  const work: { batch?: RunningBatch } = {};
  try {
    const answer = await withProgress(screen, (progress) => {
      signal.addEventListener('abort', () =>
        progress.doing(() => ({ message: 'stopping; Ctrl-C again leaves at once' })),
      );
      return session.ask(tool, args, {
        reach: 'work',
        places,
        onDoing: (look) => progress.doing(look),
        onBatch: (batch) => {
          work.batch = batch;
          progress.follow(batch);
        },
      });
    });
    return ended(answer, screen);
  } catch (error) {
    if (!(signal.reason instanceof Interrupted) || work.batch === undefined) throw error;
    return interrupted(signal.reason, { view: work.batch.view(), screen });
  }
}

function ended({ sentence, json }: Answer, screen: Screen): number {
  if (screen.isJson) printAnswer(screen, { sentence, json });
  const notes = Array.isArray(json['notes']) ? json['notes'].map(String) : [];
  screen.talk.write(`${sentence}\n${notes.map((note) => `note: ${note}\n`).join('')}`);
  if (json['status'] === 'success') return EXIT.ok;
  return json['status'] === 'cancelled' ? EXIT.interrupted : EXIT.partial;
}

function interrupted(reason: Interrupted, { view, screen }: { view: BatchView; screen: Screen }): number {
  const kept = `${view.completed} of ${view.total} ${view.total === 1 ? 'image' : 'images'} saved`;
  const status = reason.cause === 'asked' ? 'cancelled' : 'running';
  if (screen.isJson) {
    const files = view.jobs.flatMap(({ filePath }) => filePath ?? []);
    printJson(screen, {
      schema: 1,
      status,
      batch_id: view.batchId,
      images_generated: view.completed,
      images_failed: view.failed,
      files_saved: files,
    });
  }
  if (reason.cause === 'asked') {
    screen.complain(`gantry: Cancelled: ${kept}.\n`);
    return EXIT.interrupted;
  }
  screen.complain(
    `gantry: ${kept}; what the hosts have begun goes on there. To fetch it and make the rest: ` +
      `gantry jobs ${view.batchId} --wait. Your assistant does the same when it starts.\n`,
  );
  return reason.exitCode === EXIT.ok ? EXIT.ioError : reason.exitCode;
}
