import type { BatchView, JobView } from '../fleet/batch-view.ts';

/** PURE. What a batch is doing, in a few words for a person. */
export function activityOf(view: BatchView): string {
  const [only] = view.jobs;
  if (view.total === 1 && only !== undefined) return jobActivity(only);
  const running = view.jobs.filter((job) => isOnHost(job));
  const hosts = [...new Set(running.map((job) => job.host))].join(', ');
  const failed = view.failed > 0 ? `, ${view.failed} failed` : '';
  const left = view.state !== 'running' || view.etaMs === null ? '' : `, about ${Math.ceil(view.etaMs / 1_000)} s left`;
  const where = hosts === '' ? waitingBecause(view) : `; running on ${hosts}`;
  return `${view.completed} of ${view.total} done${failed}${left}${where}`;
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
      return job.progress.detail === '' ? 'waiting for a free host' : job.progress.detail;
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
