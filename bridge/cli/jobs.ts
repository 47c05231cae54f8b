import { z } from 'zod';
import { pause } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import { EXIT } from '../../shared/exit-codes.ts';
import { clipped, tableLines, timeText, wrapped } from '../../shared/screen-text.ts';
import type { LockHolder } from '../fleet/batch-lock.ts';
import type { BatchState, BatchView, JobView } from '../fleet/batch-view.ts';
import type { Fleet } from '../fleet/fleet.ts';
import type { Session } from '../session.ts';
import type { Answer, Doing } from './ask.ts';
import { withProgress } from './live-progress.ts';
import type { Paper } from './screen.ts';
import { printAnswer, printLines } from './screen.ts';

/** Of what list_jobs answers, what a line shows. */
const Listed = z.object({
  jobs: z.array(
    z.object({
      batch_id: z.string(),
      kind: z.string(),
      state: z.string(),
      created_at: z.string(),
      prompt: z.string(),
      completed: z.int(),
      total: z.int(),
      elapsed_seconds: z.number(),
    }),
  ),
});

/** As many characters of an id as a person reads; `fullId` finds the rest. */
const ID_SHOWN = 8;
const LOOK_EVERY_MS = 500;
/** As of the command that made them; work under way is no failure. */
const EXIT_OF: Record<BatchState, number> = {
  running: EXIT.ok,
  success: EXIT.ok,
  partial: EXIT.partial,
  failed: EXIT.failed,
  cancelled: EXIT.interrupted,
};
/** Among so many of the newest batches an id may be shortened. */
const SEARCHED = 200;
const SHORTEST_ID = 4;

/** `gantry jobs`: batches of this machine, also those of other windows and earlier ones. No host is asked. */
export async function listJobs(args: Record<string, unknown>, session: Session): Promise<void> {
  const { screen } = session;
  const answer = await session.ask('list_jobs', args, { reach: 'records' });
  if (screen.isJson) printAnswer(screen, answer);
  else {
    const isFiltered = args['state'] !== undefined;
    printLines(screen, jobLines(answer, { out: screen.out, nowMs: Date.now(), isFiltered }));
  }
}

/** `gantry jobs ID`: one of them; `isWaiting` follows it to its end, and goes on with it if nobody else does. */
export async function showJob(
  asked: string,
  { isWaiting, session }: { isWaiting: boolean; session: Session },
): Promise<number> {
  const { screen, records } = session;
  const id = fullId(asked, records);
  if (isWaiting) await untilEnded(id, session);
  if (screen.isJson) printAnswer(screen, await session.ask('get_job', { id }, { reach: 'records' }));
  const view = records.find(id);
  if (view === undefined) throw new AppError('JOB_NOT_FOUND', `${id} was removed meanwhile.`);
  const holder = view.state === 'running' ? await records.holder(view.batchId) : undefined;
  if (!screen.isJson) printLines(screen, jobDetailLines(view, { out: screen.out, holder, nowMs: Date.now() }));
  return EXIT_OF[view.state];
}

/** `gantry cancel ID`: ends a batch or one image of it, whichever window works on it. */
export async function cancelJob(asked: string, session: Session): Promise<void> {
  const { screen, records } = session;
  const answer = await session.ask('cancel_batch', { batch_id: fullId(asked, records) }, { reach: 'work' });
  if (screen.isJson) printAnswer(screen, answer);
  else printLines(screen, [String(answer.json['message'])]);
}

async function untilEnded(id: string, session: Session): Promise<void> {
  const { screen, signal, records } = session;
  if (records.find(id)?.state !== 'running') return;
  await withProgress(screen, async (progress) => {
    const fleet = await session.work();
    const view = (): BatchView => {
      const found = fleet.find(id);
      if (found === undefined) throw new AppError('JOB_NOT_FOUND', `${id} was removed meanwhile.`);
      return found;
    };
    progress.follow({ id, view });
    progress.doing(() => doingOf(view()));
    while (view().state === 'running') {
      await pause(LOOK_EVERY_MS, signal);
      signal.throwIfAborted();
    }
  });
}

function doingOf(view: BatchView): Doing {
  const ended = view.completed + view.failed + view.cancelled;
  const hosts = new Set(
    view.jobs.flatMap(({ state, host }) => (state === 'running' && host !== undefined ? host : [])),
  );
  const at = hosts.size === 0 ? '' : `; running on ${[...hosts].sort().join(', ')}`;
  const left = view.etaMs === null ? '' : `, about ${timeText(Math.max(1_000, view.etaMs))} left`;
  return { message: `${view.completed} of ${view.total} done${left}${at}`, fraction: ended / view.total };
}

export function jobLines(
  { json }: Answer,
  { out, nowMs, isFiltered }: { out: Paper; nowMs: number; isFiltered: boolean },
): string[] {
  const { jobs } = Listed.parse(json);
  if (jobs.length === 0 && isFiltered) return [String(json['message'])];
  if (jobs.length === 0) return ['No job is known on this machine. Make an image: gantry generate "a red fox".'];
  const rows = jobs.map((job) => [
    job.batch_id.slice(0, ID_SHOWN),
    job.kind,
    job.state,
    `${job.completed}/${job.total}`,
    `${timeText(Math.max(0, nowMs - Date.parse(job.created_at)))} ago`,
    timeText(job.elapsed_seconds * 1_000),
    job.prompt,
  ]);
  const [head = '', ...lines] = tableLines([['ID', 'KIND', 'STATE', 'IMAGES', 'STARTED', 'TOOK', 'PROMPT'], ...rows]);
  return [out.paint('faint', head), ...lines.map((line) => clipped(line, out.columns))];
}

/** One batch with each of its images. `holder` is who works on it. */
export function jobDetailLines(
  view: BatchView,
  { out, holder, nowMs }: { out: Paper; holder: LockHolder | undefined; nowMs: number },
): string[] {
  const columns = out.columns;
  const counts = [
    `${view.completed} of ${view.total} saved`,
    ...(view.failed > 0 ? [`${view.failed} failed`] : []),
    ...(view.cancelled > 0 ? [`${view.cancelled} cancelled`] : []),
  ].join(', ');
  const started = `${timeText(Math.max(0, nowMs - Date.parse(view.createdAt)))} ago`;
  return [
    `${view.batchId}  ${view.kind}, ${view.state}, ${counts}`,
    `  started ${started} (${view.createdAt}), ${view.state === 'running' ? 'so far' : 'took'} ${timeText(view.elapsedMs)}`,
    ...(view.state === 'running' ? wrapped(holderText(view, holder), { columns, indent: '  ' }) : []),
    ...view.notes.flatMap((note) => wrapped(note, { columns, indent: '  ' })),
    ...view.jobs.flatMap((job) => imageLines(job, out)),
  ];
}

/**
 * The whole id of a batch or job that may be shortened; refused when it is nobody's or several batches'. Everything a
 * person may want to know of is on this machine, so no host is asked.
 */
export function fullId(asked: string, fleet: Pick<Fleet, 'find' | 'list'>): string {
  if (fleet.find(asked) !== undefined) return asked;
  const prefix = asked.toLowerCase();
  const all = fleet.list(SEARCHED);
  const batches = all.map(({ batchId }) => batchId).filter((id) => id.startsWith(prefix));
  const jobs = all.flatMap((view) => view.jobs.map(({ jobId }) => jobId)).filter((id) => id.startsWith(prefix));
  const found = batches.length > 0 ? batches : jobs;
  const [only] = found;
  if (prefix.length >= SHORTEST_ID && only !== undefined && found.length === 1) return only;
  if (prefix.length >= SHORTEST_ID && found.length > 1) {
    throw new AppError('JOB_NOT_FOUND', `${found.length} ids begin with ${asked}. Give more of it.`);
  }
  throw new AppError('JOB_NOT_FOUND', `No job or batch has the id ${asked}. Look for it with: gantry jobs.`);
}

function holderText(view: BatchView, holder: LockHolder | undefined): string {
  if (view.isOurs) return 'this command works on it';
  if (holder === undefined) {
    return `nobody works on it now; it goes on when your assistant starts, or with: gantry jobs ${view.batchId.slice(0, ID_SHOWN)} --wait`;
  }
  return `${holder.client} works on it (process ${holder.pid})`;
}

function imageLines(job: JobView, out: Paper): string[] {
  const at = job.host === undefined ? '' : ` on ${job.host}`;
  const took = job.result === undefined ? '' : ` in ${timeText(job.result.runMs)}`;
  const head = clipped(`  ${job.state}${at}${took}  ${job.prompt}`, out.columns);
  const error = job.error === undefined ? [] : [`${job.error.code}: ${job.error.message}`];
  return [
    job.state === 'failed' ? out.paint('bad', head) : head,
    ...(job.filePath === undefined ? [] : [`    ${job.filePath}`]),
    ...error.flatMap((text) => wrapped(text, { columns: out.columns, indent: '    ' })),
  ];
}
