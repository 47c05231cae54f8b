import type { BatchAnswer } from './answers.ts';

type Result = BatchAnswer['results'][number];

/** Time between two jobs that is hand-over, not idleness: the host's slot waited for the next picture's request. */
const HANDOVER_SECONDS = 0.35;

/** A host must have ended a picture this share of the batch before its end to have really helped; less is noise. */
const GAIN_SHARE = 0.1;

/**
 * Hosts that stood still while a picture waited that they could have finished before the batch ended, with the time.
 * A slow host that is left out at the very end, because it would end last, does not count: that is the plan at work.
 */
export function idleHosts(results: readonly Result[]): { host: string; idleSeconds: number }[] {
  const lastStart = Math.max(...results.map((result) => result.started_seconds));
  const end = Math.max(...results.map((result) => result.finished_seconds));
  return [...new Set(results.map((result) => result.host))].map((host) => {
    const own = results.filter((result) => result.host === host).sort((a, b) => a.started_seconds - b.started_seconds);
    const takes = Math.min(...own.map((result) => result.finished_seconds - result.started_seconds));
    const edges = [0, ...own.flatMap((result) => [result.started_seconds, result.finished_seconds]), end];
    let idleSeconds = 0;
    for (let at = 0; at < edges.length; at += 2) {
      const from = edges[at] ?? 0;
      const until = Math.min(edges[at + 1] ?? end, lastStart);
      const couldHaveHelped = from + takes + HANDOVER_SECONDS < end * (1 - GAIN_SHARE);
      if (couldHaveHelped) idleSeconds += Math.max(0, until - from - HANDOVER_SECONDS);
    }
    return { host, idleSeconds };
  });
}
