import { pause } from '../../shared/abort.ts';
import type { VramLook, VramMeasure } from './vram-measure.ts';
import { freedMiB, measureVram } from './vram-measure.ts';

/** Whose memory, and where. `heldMiB` is what it held at `before`. */
export type VramClaim = {
  gpus: readonly string[];
  pids: readonly number[];
  before: VramMeasure;
  heldMiB: number;
};

export type VramVerdict = { isBack: boolean; freedMiB: number; after: VramMeasure | undefined };

const POLL_MS = 250;
/** Drivers round, and contexts of others breathe: this much back counts as all of it. */
const BACK_SHARE = 0.8;
/** An offload leaves a residue, so it counts as settled at this share once two samples agree. */
const OFFLOADED_SHARE = 0.5;
const SETTLED_SAMPLES = 2;
/** Where little came free, a slow copy may still be under way for so many equal samples. */
const HOPELESS_SAMPLES = 8;
const NOISE_MIB = 64;
/** What drivers keep for themselves and list for nobody. */
const DRIVER_MIB = 2_048;

/** How often to look while VRAM is on its way; tests, which scale all times, look more often. */
export function pollMsFor({ healthPollMs }: { healthPollMs: number }): number {
  return Math.min(POLL_MS, healthPollMs);
}

/** nvidia-smi now. Undefined where it does not answer: then nothing is known, and no transition hangs on it. */
export type Look = (signal: AbortSignal) => Promise<VramLook | undefined>;

type Limits = { look: Look; deadlineMs: number; pollMs: number; signal: AbortSignal };

/**
 * The memory of dead processes is back: none of them is listed any more, and at least 80 % came free. Or, where the driver
 * lists processes, those that live explain what is in use: a wrong baseline must not keep a GPU from work for ever.
 */
export function isBack({ before, heldMiB }: VramClaim, after: VramMeasure): boolean {
  if (after.isPresent) return false;
  if (freedMiB(before, after) >= BACK_SHARE * heldMiB - NOISE_MIB) return true;
  // A worker that died before its leader may have been listed at the baseline, and counted there as somebody else.
  if (heldMiB <= NOISE_MIB && after.freeMiB >= before.freeMiB - NOISE_MIB) return true;
  if (!before.isListed || after.unexplainedMiB === null) return false;
  return after.unexplainedMiB <= Math.max(DRIVER_MIB, (1 - BACK_SHARE) * heldMiB);
}

/**
 * Polls until the memory of dead processes is back, or the deadline: then it is missing, and that is the answer. `lives`:
 * one of the tree could not be ended, and as long as it lives nothing of it is back.
 */
export async function untilBack(
  claim: VramClaim,
  { look, deadlineMs, pollMs, signal, lives = () => false }: Limits & { lives?: () => boolean },
): Promise<VramVerdict> {
  const endMs = performance.now() + deadlineMs;
  for (;;) {
    const seen = await look(signal);
    const after = seen && measureVram(seen, claim);
    const freed = after === undefined ? 0 : freedMiB(claim.before, after);
    if (after !== undefined && isBack(claim, after) && !lives()) return { isBack: true, freedMiB: freed, after };
    if (performance.now() >= endMs || signal.aborted) return { isBack: false, freedMiB: freed, after };
    await pause(pollMs, signal);
  }
}

/** What an offload freed, once the readings settled. The engine's own word has no part in it. */
export async function untilSettled(
  claim: VramClaim,
  { look, deadlineMs, pollMs, signal }: Limits,
): Promise<VramVerdict> {
  const endMs = performance.now() + deadlineMs;
  let equal = 0;
  let last = Number.NaN;
  for (;;) {
    const seen = await look(signal);
    const after = seen && measureVram(seen, claim);
    const freed = after === undefined ? 0 : freedMiB(claim.before, after);
    equal = Math.abs(freed - last) <= NOISE_MIB ? equal + 1 : 1;
    last = freed;
    const share = claim.heldMiB > 0 ? freed / claim.heldMiB : 1;
    const isSettled =
      share >= BACK_SHARE || (share >= OFFLOADED_SHARE ? equal >= SETTLED_SAMPLES : equal >= HOPELESS_SAMPLES);
    if (isSettled || after === undefined || performance.now() >= endMs || signal.aborted) {
      return { isBack: share >= OFFLOADED_SHARE, freedMiB: freed, after };
    }
    await pause(pollMs, signal);
  }
}
