import type { ManifestLine } from '../../../bridge/fleet/manifest-lines.ts';
import { contentOf } from '../world/disk.ts';
import { ownerOf } from '../world/picture.ts';
import type { Machine } from '../world/world.ts';
import { short } from './checks.ts';
import type { History } from './history.ts';

/** 45 s of silence, and two looks of the batch. */
const DETECTED_MS = 47_000;
/** All orders are given by then. */
const ORDERED_MS = 2_000;
/** A model's turn, and freeing the GPU for it. */
const EACH_TURN_MS = 11_000;

type Of<T extends ManifestLine['type']> = Extract<ManifestLine, { type: T }>;

/** What can only be said once all is over: P1, P2 and P8 from the manifests, and P4 after one more power loss. */
export function checkEnd(history: History, { isOver, endedAtMs }: { isOver: boolean; endedAtMs: number }): void {
  const { checks, laptops } = history;
  if (checks.violations.length > 0) return;
  for (const laptop of laptops.values()) {
    for (const { lines } of checks.manifests(laptop)) checkBatch(history, laptop, lines);
  }
  if (!isOver && checks.violations.length === 0) checks.fail('P1', `nothing moves any more: ${whatWaits(history)}`);
  checkLoss(history, endedAtMs);
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
    // A fourth one may fail: an attempt of a silent host that fails when the next one is under way already.
    const beforeLastSent = mine.slice(
      0,
      mine.findLastIndex(({ type }) => type === 'sent'),
    );
    const failedBefore = linesOf(beforeLastSent, 'attempt-failed').length;
    if (failedBefore >= 3) checks.fail('P8', `${name} was sent again after ${failedBefore} failed attempts`);
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

/**
 * P7: a host that dies for good costs its detection and what was lost with it, never the batch. Where nothing else
 * happens, the first host alone is done with all jobs, each with a load and a turn of its model, in that time after it.
 */
function checkLoss({ plan, checks }: History, endedAtMs: number): void {
  const [gone] = plan.faults;
  const [first] = plan.hosts;
  const jobs = plan.batches.flatMap((batch) => batch.jobs);
  if (gone?.kind !== 'host-gone' || plan.faults.length > 1 || first === undefined) return;
  if (jobs.some(({ poison }) => poison !== 'none')) return; // its retries wait for servers to start
  const turns = first.models.length > 1 ? jobs.length : 1;
  const aloneMs = jobs.reduce((sum, job) => {
    const model = first.models.find(({ id }) => id === job.model);
    const units = job.steps * (job.side / 1024) ** 2;
    return sum + (model === undefined ? 0 : (model.fixedMs + model.unitMs * units) * first.slowness * 1.2);
  }, 0);
  const loadMs = Math.max(...first.models.map((model) => model.loadMs)) * first.slowness * 1.3 + EACH_TURN_MS;
  const limitMs = Math.max(gone.atMs, ORDERED_MS) + DETECTED_MS + aloneMs + turns * loadMs;
  if (endedAtMs > limitMs) {
    checks.fail(
      'P7',
      `with ${gone.host} gone for good it took ${sinceText(endedAtMs - gone.atMs)}, not ${sinceText(limitMs - gone.atMs)}`,
    );
  }
}

function sinceText(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`;
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
