import type { ModelStateKind } from '../../shared/host-snapshot.ts';

export type IdleFacts = {
  state: ModelStateKind;
  inFlight: number;
  isPinned: boolean;
  /** It is ours to end: we started it, or its owner named a program that stops it. */
  canEnd: boolean;
  /** Since the end of the last job, or since it became ready. */
  idleMs: number;
  canOffload: boolean;
  offloadAfterMs: number | null;
  releaseAfterMs: number | null;
};

/** What to do with an idle server now. Nothing while a job runs, nothing with a pinned one. */
export function idleAction(facts: IdleFacts): 'offload' | 'release' | undefined {
  if (facts.inFlight > 0 || facts.isPinned) return undefined;
  if (facts.state !== 'ready' && facts.state !== 'offloaded') return undefined;
  const isOver = (limitMs: number | null): boolean => limitMs !== null && facts.idleMs >= limitMs;
  if (isOver(facts.releaseAfterMs) && facts.canEnd) return 'release';
  if (!isOver(facts.offloadAfterMs) || facts.state === 'offloaded') return undefined;
  if (facts.canOffload) return 'offload';
  return facts.canEnd ? 'release' : undefined;
}
