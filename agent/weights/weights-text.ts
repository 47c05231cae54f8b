import type { WeightsState } from './weights.ts';

/** What a slot of a model without its weights says. */
export type MissingWeights = {
  text: string;
  /** Expected time until they are there. */
  leftMs: number;
  /** A person must do something first. */
  isFailed: boolean;
};

/** Before anything is known of a download; what a bridge reckons with until then. */
const UNKNOWN_LEFT_MS = 600_000;
const MIB_PER_GIB = 1024;

/** PURE. One phrase for a person; undefined when they are there. */
export function downloadText(state: WeightsState): string | undefined {
  switch (state.kind) {
    case 'present':
      return undefined;
    case 'absent':
      return 'its weights are not downloaded yet';
    case 'queued':
      return `its download waits for that of ${state.behind}`;
    case 'downloading':
      return [amountText(state), ...rateText(state)].join(', ');
    case 'failed':
      return state.error.message;
  }
}

/** Why a slot of the model gives no grants yet; undefined when its weights are there. */
export function missingWeights(state: WeightsState, nowMs: number): MissingWeights | undefined {
  const text = downloadText(state);
  if (text === undefined) return undefined;
  if (state.kind !== 'failed') {
    return { text, leftMs: ('leftMs' in state ? state.leftMs : null) ?? UNKNOWN_LEFT_MS, isFailed: false };
  }
  if (state.retry === 'never') return { text, leftMs: 0, isFailed: true };
  const retryInMs = Math.max(0, state.retry.atMs - nowMs);
  const again = retryInMs === 0 ? 'It is tried again.' : `It is tried again in ${durationText(retryInMs)}.`;
  return { text: `${text} ${again}`, leftMs: retryInMs + UNKNOWN_LEFT_MS, isFailed: false };
}

function amountText({ doneMiB, totalMiB, isEstimate }: Extract<WeightsState, { kind: 'downloading' }>): string {
  if (totalMiB === 0 || (totalMiB === null && doneMiB === 0)) return 'looking for its weights';
  if (totalMiB === null) return `downloading, ${sizeText(doneMiB)} so far`;
  // What a guess promises may be less than what has come.
  const total = Math.max(totalMiB, doneMiB);
  const [done, whole] = total < MIB_PER_GIB ? [mib(doneMiB), mib(total)] : [gib(doneMiB, total), gib(total, total)];
  const unit = total < MIB_PER_GIB ? 'MiB' : 'GiB';
  return `downloading ${done} of ${isEstimate ? 'about ' : ''}${whole} ${unit}`;
}

function rateText({ mibPerSecond, leftMs }: Extract<WeightsState, { kind: 'downloading' }>): string[] {
  if (mibPerSecond === null) return [];
  const rate = `${mibPerSecond < 10 ? mibPerSecond.toFixed(1) : mib(mibPerSecond)} MiB/s`;
  return leftMs === null ? [rate] : [rate, `${durationText(leftMs)} left`];
}

export function sizeText(sizeMiB: number): string {
  return sizeMiB < MIB_PER_GIB ? `${mib(sizeMiB)} MiB` : `${gib(sizeMiB, sizeMiB)} GiB`;
}

export function durationText(ms: number): string {
  const seconds = Math.ceil(ms / 1000);
  if (seconds < 120) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 120 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`;
}

function mib(sizeMiB: number): string {
  return String(Math.round(sizeMiB));
}

/** Tenths as long as they mean something. */
function gib(sizeMiB: number, ofMiB: number): string {
  return (sizeMiB / MIB_PER_GIB).toFixed(ofMiB < 10 * MIB_PER_GIB ? 1 : 0);
}
