import type { Eviction, Resident } from './vram-planner.ts';

/** `regret` is what all of them together cost later, in millionths of a minute. */
export type Evictions = { evict: readonly Eviction[]; regret: number };

type Option = { by: Eviction['by']; regret: number; ramMiB: number; frees: readonly number[] };
type Candidate = { resident: Resident; options: readonly Option[]; regretPerMiB: number };
type Chosen = { at: number; option: Option };

/**
 * PURE. Those whose leaving costs least among all that give each GPU what it is short of; nobody of them could stay.
 * `short` has the GPUs and their missing MiB. Undefined where not even all of `from` would do.
 * The search begins with the least regret per MiB and then looks for something cheaper, for at most `maxSteps`.
 */
export function cheapestEvictions(
  short: ReadonlyMap<string, number>,
  { from, hostRamFreeMiB, maxSteps }: { from: readonly Resident[]; hostRamFreeMiB: number; maxSteps: number },
): Evictions | undefined {
  const uuids = [...short.keys()];
  const candidates = from
    .map((resident) => candidate(resident, uuids))
    .filter(({ options }) => options.some(({ frees }) => frees.some((mib) => mib > 0)))
    .sort((a, b) => a.regretPerMiB - b.regretPerMiB);
  const mostFrom = mostFreedFrom(candidates, uuids.length);
  let best: { chosen: readonly Chosen[]; regret: number } | undefined;
  let steps = 0;

  const search = (at: number, missing: readonly number[], so: { chosen: readonly Chosen[]; ramMiB: number }): void => {
    steps += 1;
    const missingMiB = missing.reduce((sum, mib) => sum + Math.max(0, mib), 0);
    if (missingMiB === 0) {
      const chosen = withoutSpare(so.chosen, missing);
      const regret = regretOf(chosen);
      if (best === undefined || regret < best.regret) best = { chosen, regret };
      return;
    }
    const next = candidates[at];
    if (next === undefined || missing.some((mib, gpu) => mib > (mostFrom[at]?.[gpu] ?? 0))) return;
    // Whoever is left costs at least as much per MiB as the next one.
    if (best !== undefined && (steps > maxSteps || regretOf(so.chosen) + missingMiB * next.regretPerMiB >= best.regret))
      return;
    for (const option of next.options) {
      if (option.ramMiB > so.ramMiB) continue;
      const left = missing.map((mib, gpu) => mib - (option.frees[gpu] ?? 0));
      search(at + 1, left, { chosen: [...so.chosen, { at, option }], ramMiB: so.ramMiB - option.ramMiB });
    }
    search(at + 1, missing, so);
  };
  search(0, [...short.values()], { chosen: [], ramMiB: hostRamFreeMiB });

  if (best === undefined) return undefined;
  const { chosen, regret } = best;
  return {
    regret,
    evict: chosen.flatMap(({ at, option }) => {
      const slotId = candidates[at]?.resident.slotId;
      return slotId === undefined ? [] : [{ slotId, by: option.by }];
    }),
  };
}

/** What each GPU of a server is left with when it goes. Rounded down: less than a MiB is nobody's. */
export function freedOnEach({ heldMiB, offloadedMiB, gpus }: Resident, by: Eviction['by']): number {
  return Math.floor((heldMiB - (by === 'offload' ? offloadedMiB : 0)) / gpus.length);
}

/** Offload first: as long as host RAM allows it, nobody has to start again from the disk. */
function candidate(resident: Resident, uuids: readonly string[]): Candidate {
  const { state, canOffload, heldMiB, offloadedMiB, wakeMs, reloadMs } = resident;
  const option = (by: Eviction['by'], backMs: number, ramMiB: number): Option => ({
    by,
    ramMiB,
    regret: regret(resident, backMs),
    frees: uuids.map((uuid) => (resident.gpus.includes(uuid) ? freedOnEach(resident, by) : 0)),
  });
  const toRamMiB = heldMiB - offloadedMiB;
  const release = option('release', reloadMs, 0);
  const options =
    state === 'ready' && canOffload && toRamMiB > 0
      ? [option('offload', Math.min(wakeMs, reloadMs), toRamMiB), release]
      : [release];
  return { resident, options, regretPerMiB: Math.min(...options.map(perMiB)) };
}

/** What an eviction costs later: a model that is offered work counts as used this moment. Whole numbers add up exactly. */
function regret({ idleMs, isOffered }: Resident, backMs: number): number {
  return Math.round((1e6 * backMs) / (60_000 + (isOffered ? 0 : idleMs)));
}

function perMiB({ regret: cost, frees }: Option): number {
  const freesMiB = frees.reduce((sum, mib) => sum + mib, 0);
  return freesMiB > 0 ? cost / freesMiB : Infinity;
}

function regretOf(chosen: readonly Chosen[]): number {
  return chosen.reduce((sum, { option }) => sum + option.regret, 0);
}

/** Per candidate: what it and all behind it could free on each GPU. */
function mostFreedFrom(candidates: readonly Candidate[], gpus: number): readonly (readonly number[])[] {
  let most: readonly number[] = Array.from({ length: gpus }, () => 0);
  return [...candidates]
    .reverse()
    .map(({ options }) => {
      most = most.map((mib, gpu) => mib + Math.max(...options.map(({ frees }) => frees[gpu] ?? 0)));
      return most;
    })
    .reverse();
}

/** Nobody goes in vain: a later, larger one may have made an earlier one unnecessary. The most regretted may stay first. */
function withoutSpare(chosen: readonly Chosen[], missing: readonly number[]): readonly Chosen[] {
  let kept = chosen;
  let over = missing.map((mib) => -mib);
  for (const each of [...chosen].sort((a, b) => b.option.regret - a.option.regret)) {
    const without = over.map((mib, gpu) => mib - (each.option.frees[gpu] ?? 0));
    if (without.some((mib) => mib < 0)) continue;
    kept = kept.filter((other) => other !== each);
    over = without;
  }
  return kept;
}
