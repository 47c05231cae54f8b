import type { ManifestLine } from '../../../bridge/fleet/manifest-lines.ts';
import { contentOf } from '../world/disk.ts';
import { ownerOf } from '../world/picture.ts';
import type { Machine } from '../world/world.ts';
import { short } from './checks.ts';
import type { History } from './history.ts';

type Of<T extends ManifestLine['type']> = Extract<ManifestLine, { type: T }>;

/** What can only be said once all is over: P1, P2 and P8 from the manifests, and P4 after one more power loss. */
export function checkEnd(history: History, { isOver }: { isOver: boolean }): void {
  const { checks, laptops } = history;
  if (checks.violations.length > 0) return;
  for (const laptop of laptops.values()) {
    for (const { lines } of checks.manifests(laptop)) checkBatch(history, laptop, lines);
  }
  if (!isOver && checks.violations.length === 0) checks.fail('P1', `nothing moves any more: ${whatWaits(history)}`);
  for (const laptop of laptops.values()) {
    laptop.disk.losePower();
    checks.lookAtOutput(laptop);
    for (const { lines } of checks.manifests(laptop)) checkSaved(history, laptop, lines);
  }
}

function checkBatch(history: History, laptop: Machine, lines: readonly ManifestLine[]): void {
  const { checks, poison, plan } = history;
  for (const job of linesOf(lines, 'job')) {
    const { jobId } = job;
    const name = job.request.prompt;
    const mine = lines.filter((line) => 'jobId' in line && line.jobId === jobId);
    const saved = linesOf(mine, 'saved');
    const [failed] = linesOf(mine, 'failed');
    const isCancelled = linesOf(mine, 'cancelled').length > 0;
    const failures = linesOf(mine, 'attempt-failed');
    const kind = poison.get(name) ?? 'none';
    if (saved.length > 1) checks.fail('P2', `${name} was saved ${saved.length} times`);
    if (kind !== 'none' && saved.length > 0) checks.fail('defect', `${name} is poison, and was saved`);
    if (failures.length > 3) checks.fail('P8', `${name} failed ${failures.length} times before it was given up`);
    if (failed === undefined) {
      if (linesOf(lines, 'ended').length > 0 && saved.length === 0 && !isCancelled) {
        checks.fail('P1', `the batch of ${name} has ended without it`);
      }
      continue;
    }
    if (failures.length < 3 && !(failed.error.code === 'QUARANTINED' && failures.length === 2)) {
      const why = `${failed.error.code} ${failed.error.message}`;
      if (!checks.wasFull.has(laptop.name)) {
        checks.fail('P8', `${name} was given up after ${failures.length} failed attempts: ${why}`);
      }
    }
    const able = plan.hosts.filter(({ models }) => models.some(({ id }) => id === job.request.model));
    const tried = new Set(failures.map(({ host }) => host));
    if (kind !== 'none' && able.length > 1 && tried.size < 2 && plan.faults.length === 0) {
      checks.fail('P8', `${name} failed for good on ${[...tried].join()} alone, and there are ${able.length} hosts`);
    }
  }
}

/** P2 and P3: what the manifest calls saved is there, also after a power loss now. */
function checkSaved(history: History, laptop: Machine, lines: readonly ManifestLine[]): void {
  for (const { jobId, path } of linesOf(lines, 'saved')) {
    const node = laptop.disk.find(path);
    const owner = node?.kind === 'file' ? ownerOf(contentOf(node)) : undefined;
    if (owner?.jobId !== jobId) history.checks.fail('P3', `${short(jobId)} is saved, and ${path} is not its file`);
  }
}

function whatWaits({ bridges }: History): string {
  const views = [...bridges.values()].flatMap((bridge) => bridge.fleet?.list() ?? []);
  const open = views.filter(({ state }) => state === 'running');
  if (open.length === 0) return 'the links are not up';
  const jobs = open.flatMap((view) => view.jobs.filter(({ state }) => !OVER.has(state)));
  return jobs
    .map(({ prompt, state, host }) => `${prompt} is ${state}${host === undefined ? '' : ` on ${host}`}`)
    .join(', ');
}

const OVER: ReadonlySet<string> = new Set(['done', 'failed', 'cancelled']);

function linesOf<T extends ManifestLine['type']>(lines: readonly ManifestLine[], type: T): Of<T>[] {
  return lines.filter((line): line is Of<T> => line.type === type);
}
