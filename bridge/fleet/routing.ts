import { seconds } from './host-forecast.ts';
import type { Refusal } from './host-forecast.ts';
import type { Finish, Placement } from './placement.ts';
import { stripStop } from './placement.ts';

/** Refusing hosts that are named beside the one that took the job. */
const MAX_REFUSED = 3;

/**
 * PURE. Why a job went to this host, for a person: what was expected of it, and of the best of the others. An estimate of
 * a host that has run nothing of the model yet says so.
 */
export function routingText(
  { ranked, refused }: Placement,
  o: { host: string; endsInMs: number; isAskedFor: boolean },
): string {
  const here = ranked.find(({ host }) => host === o.host);
  const ready = `ready in ${about(o.endsInMs, here)}`;
  if (o.isAskedFor) return `${o.host} was asked for: ${ready}.`;
  const other = best(ranked.filter(({ host }) => host !== o.host));
  if (other === undefined) return `${o.host} is the only host that can run it now: ${ready}.${others(refused)}`;
  const there = `${other.host} in ${about(other.finishMs, other)}${whySlower(other)}`;
  return other.finishMs >= o.endsInMs
    ? `${o.host} is expected to be fastest: ${ready}; ${there}.`
    : `${o.host} had a free slot: ${ready}; ${there}.`;
}

function best(finishes: readonly Finish[]): Finish | undefined {
  return finishes.reduce<Finish | undefined>(
    (first, one) => (first === undefined || one.finishMs < first.finishMs ? one : first),
    undefined,
  );
}

function about(ms: number, finish: Finish | undefined): string {
  return `about ${seconds(ms)}${finish?.isMeasured === true ? '' : ' (a guess, not measured yet)'}`;
}

/** The largest part of a finish, as far as it says something. */
function whySlower({ swap, freeMs, ownMs, runMs }: Finish): string {
  const largest = Math.max(swap.swapMs + swap.evictMs, freeMs + ownMs, runMs);
  if (largest === runMs) return '';
  if (largest === freeMs + ownMs) return ', because it is busy';
  return `, because it must ${swap.kind === 'wake' ? 'wake' : 'load'} the model${swap.evictMs > 0 ? ' and make room for it' : ''}`;
}

function others(refused: readonly Refusal[]): string {
  const named = refused.slice(0, MAX_REFUSED).map(({ host, reason }) => ` ${host}: ${stripStop(reason)}.`);
  const more = refused.length - named.length;
  return `${named.join('')}${more > 0 ? ` ${more} more cannot either.` : ''}`;
}
