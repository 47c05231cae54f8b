import type { Move } from './moves.ts';
import type { Job, ScenarioReport } from './run.ts';

/** What moved, when, and what every job waited for, as text for a person. Times are seconds since the first call. */
export function tablesOf({ jobs, moves, gpus, ledger, tookMs }: ScenarioReport): string {
  const zeroMs = Math.min(...jobs.map(({ askedMs }) => askedMs));
  const at = (ms: number): string => ((ms - zeroMs) / 1000).toFixed(1);
  const byAgent = moves.filter(({ isByItself }) => !isByItself);
  const swaps = byAgent.filter(({ kind }) => kind === 'load' || kind === 'wake');
  const movedGiB = moves.reduce((sum, { movedMiB }) => sum + movedMiB, 0) / 1024;
  const waits = jobs.map(waitMs).toSorted((a, b) => a - b);
  const share = (part: number): string => ((waits[Math.floor(part * (waits.length - 1))] ?? 0) / 1000).toFixed(1);
  return [
    'Jobs, in the order of their ends',
    ...table([
      ['asked', 'waited', 'for', 'ran', 'done', 'call', 'model', 'GPU', 'picture'],
      ...jobs
        .toSorted((a, b) => endMs(a) - endMs(b))
        .map((job) => [
          ...[at(job.askedMs), (waitMs(job) / 1000).toFixed(1), waitedFor(job, moves)],
          ...[((job.picture?.runMs ?? 0) / 1000).toFixed(1), at(endMs(job)), job.ask.kind, job.ask.model.alias],
          ...[job.picture?.gpu.replace(/^.* /, '') ?? '-', job.problem ?? job.prompt.replace(' of the scenario', '')],
        ]),
    ]),
    '',
    'Models that moved, by the ledger',
    ...table([
      ['at', 'what', 'model', 'GPU', 'GiB', 'took'],
      ...byAgent.map(({ atMs, kind, alias, gpu, movedMiB, tookMs: ms }) => [
        ...[at(atMs), kind, alias, gpu === 0 ? 'left' : 'right', (movedMiB / 1024).toFixed(1)],
        ms === 0 ? '' : `${(ms / 1000).toFixed(1)} s`,
      ]),
    ]),
    '',
    `${jobs.length} jobs in ${((Math.max(...jobs.map(endMs)) - zeroMs) / 1000).toFixed(1)} s (${(tookMs / 1000).toFixed(1)} s with start and end of the host)`,
    `${swaps.length} swaps (${count(swaps, 'load')} loads, ${count(swaps, 'wake')} wakes), ${count(byAgent, 'offload')} offloads and ${count(byAgent, 'release')} releases; ` +
      `${moves.length - byAgent.length} moves that Step1X-Edit makes by itself; ${movedGiB.toFixed(0)} GiB moved in all`,
    `waited: half of the jobs under ${share(0.5)} s, 9 of 10 under ${share(0.9)} s, the longest ${share(1)} s`,
    ...gpus.map(
      (gpu) => `${gpu.name}: ${gpu.mostUsedMiB} of ${gpu.canHoldMiB} MiB used at most; ${gpu.promisedMiB} are allowed`,
    ),
    `the ledger was looked at ${ledger.looks} times, ${Math.round(ledger.longestGapMs)} ms apart at most`,
  ].join('\n');
}

function endMs(job: Job): number {
  return job.doneMs ?? job.endedMs;
}

/** From the call to the moment its engine began. */
export function waitMs(job: Job): number {
  return Math.max(0, endMs(job) - (job.picture?.runMs ?? 0) - job.askedMs);
}

/** The last thing that had to happen before it could run. */
function waitedFor(job: Job, moves: readonly Move[]): string {
  const startedMs = endMs(job) - (job.picture?.runMs ?? 0);
  const isBetween = ({ atMs }: Move): boolean => atMs > job.askedMs && atMs <= startedMs + SLACK_MS;
  const mine = moves.findLast((move) => isBetween(move) && move.alias === job.ask.model.alias && !move.isByItself);
  if (mine !== undefined && (mine.kind === 'load' || mine.kind === 'wake')) return mine.kind;
  return waitMs(job) < AT_ONCE_MS ? 'nothing' : 'a free GPU';
}

/** Between the end of a move and the start of the job that it was for. */
const SLACK_MS = 200;
const AT_ONCE_MS = 300;

function count(moves: readonly Move[], kind: Move['kind']): number {
  return moves.filter((move) => move.kind === kind).length;
}

function table(rows: readonly (readonly string[])[]): string[] {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  return rows.map(
    (row) =>
      `  ${row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd()}`,
  );
}
