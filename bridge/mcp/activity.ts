import type { BatchView, JobView } from '../fleet/batch-view.ts';

/** PURE. What a batch is doing, in a few words for a person. */
export function activityOf(view: BatchView): string {
  const [only] = view.jobs;
  const elsewhere = 'another window on this machine works on it';
  const paused = view.pausedBy === undefined ? undefined : `paused: ${view.pausedBy}`;
  if (view.total === 1 && only !== undefined) {
    if (!view.isOurs && only.state === 'waiting') return `waiting; ${elsewhere}`;
    return paused ?? jobActivity(only);
  }
  const failed = view.failed > 0 ? `, ${view.failed} failed` : '';
  const done = `${view.completed} of ${view.total} done${failed}`;
  if (view.state !== 'running') return done;
  if (paused !== undefined) return `${done}; ${paused}`;
  const left = view.etaMs === null ? '' : `, about ${timeLeft(view.etaMs)} left`;
  return `${done}${left}${whereabouts(view) || (view.isOurs ? waitingBecause(view) : `; ${elsewhere}`)}`;
}

/** Done work as a share of all, counting steps of running jobs. */
export function fractionOf(view: BatchView): number {
  const ended = view.completed + view.failed + view.cancelled;
  const steps = view.jobs.reduce((sum, job) => sum + (isOnHost(job) ? stepShare(job) : 0), 0);
  return view.total === 0 ? 0 : (ended + steps) / view.total;
}

function jobActivity(job: JobView): string {
  const at = job.host === undefined ? '' : ` on ${job.host}`;
  switch (job.state) {
    case 'waiting':
    case 'taking':
      return `${job.progress.detail === '' ? 'waiting for a free host' : job.progress.detail}${aheadText(job)}`;
    case 'unsure':
      return `connection to ${job.host ?? 'its host'} lost; waiting for it to come back`;
    case 'accepted':
    case 'running':
      if (job.progress.steps > 0) return `step ${job.progress.step}/${job.progress.steps}${at}`;
      return job.progress.detail === '' ? `starting${at}` : `${at.slice(' on '.length)}: ${job.progress.detail}`;
    case 'fetching':
    case 'saving':
      return `fetching the image from ${job.host ?? 'its host'}`;
    case 'done':
      return 'done';
    case 'failed':
      return 'failed';
    case 'cancelled':
      return 'cancelled';
  }
}

function aheadText({ ahead }: JobView): string {
  return ahead === null || ahead === 0 ? '' : `; ${ahead} of yours ahead`;
}

/** Which hosts are at it; one that still loads the model, or makes room for it, says so. */
function whereabouts(view: BatchView): string {
  const atWork = view.jobs.filter((job) => isOnHost(job));
  const busy = new Set(atWork.filter((job) => startingDetail(job) === '').map(({ host }) => host ?? 'a host'));
  const starting = atWork.flatMap((job) => {
    const detail = startingDetail(job);
    return detail === '' || busy.has(job.host ?? 'a host') ? [] : [`; ${job.host ?? 'a host'}: ${detail}`];
  });
  return `${busy.size === 0 ? '' : `; running on ${[...busy].sort().join(', ')}`}${[...new Set(starting)].join('')}`;
}

function startingDetail({ state, progress }: JobView): string {
  return (state === 'accepted' || state === 'running') && progress.steps === 0 ? progress.detail : '';
}

/** Whole seconds, and minutes above two: nobody plans by more. */
function timeLeft(ms: number): string {
  if (ms >= 120_000) return `${Math.round(ms / 60_000)} min`;
  return `${Math.max(1, Math.round(ms / 1_000))} s`;
}

function waitingBecause(view: BatchView): string {
  const detail = view.jobs.find((job) => job.state === 'waiting' && job.progress.detail !== '')?.progress.detail;
  return detail === undefined ? '' : `; ${detail}`;
}

function isOnHost(job: JobView): boolean {
  return job.state === 'accepted' || job.state === 'running' || job.state === 'fetching' || job.state === 'saving';
}

function stepShare({ progress, state }: JobView): number {
  if (state === 'fetching' || state === 'saving') return 1;
  return progress.steps === 0 ? 0 : Math.min(1, progress.step / progress.steps);
}
