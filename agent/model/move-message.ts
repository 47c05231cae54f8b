import type { ModelStateKind } from '../../shared/host-snapshot.ts';
import type { VramChange } from '../../shared/protocol.ts';
import type { Moved } from './moved.ts';

/** Less than this share of what it held came free: said, because the engine claims success all the same. */
const POOR_SHARE = 0.5;
/** Less than this share after a release: the driver, or somebody else, has the rest. */
const BACK_SHARE = 0.8;
/** Less than this is the driver's own coming and going. */
const NOISE_MIB = 256;

/** VRAM before and after over all replicas; undefined where nvidia-smi did not answer. */
export function sumVram(moved: readonly Moved[]): VramChange | undefined {
  const measured = moved.filter(({ before, after }) => before !== undefined && after !== undefined);
  if (measured.length === 0) return undefined;
  const sum = (of: (one: Moved) => number | undefined): number =>
    measured.reduce((total, one) => total + (of(one) ?? 0), 0);
  return {
    freeBeforeMiB: sum(({ before }) => before?.freeMiB),
    freeAfterMiB: sum(({ after }) => after?.freeMiB),
    heldBeforeMiB: sum(({ heldBeforeMiB }) => heldBeforeMiB),
    heldAfterMiB: sum(({ heldAfterMiB }) => heldAfterMiB),
  };
}

/** One or two sentences for a person: what was done, what nvidia-smi shows, and what follows from it. */
export function movedMessage(o: {
  alias: string;
  state: ModelStateKind;
  to: 'load' | 'offload' | 'release';
  moved: readonly Moved[];
  vram: VramChange | undefined;
  heldAwayMs: number;
}): string {
  const done = o.moved.find((one) => one.done !== 'nothing');
  if (done === undefined) return `${o.alias} is ${o.state} already; nothing was done.${stillHeld(o)}`;
  const sentences = [
    o.to === 'offload' && done.done === 'release' ? cannotOffload(o.alias, done.why) : `${o.alias} is ${o.state} now.`,
  ];
  if (o.vram === undefined) {
    sentences.push('nvidia-smi did not answer, so what that changed in GPU memory is not known.');
  } else {
    const { freeBeforeMiB, freeAfterMiB, heldBeforeMiB } = o.vram;
    sentences.push(`nvidia-smi shows ${mib(freeAfterMiB)} free, ${mib(freeBeforeMiB)} before.`);
    const freedMiB = freeAfterMiB - freeBeforeMiB;
    if (done.done === 'offload' && heldBeforeMiB > 0 && freedMiB < POOR_SHARE * heldBeforeMiB) {
      sentences.push(
        `The engine reports success, but only ${mib(Math.max(0, freedMiB))} of ${mib(heldBeforeMiB)} came free. ` +
          'Use release_gpu to get all of it.',
      );
    }
    if (done.done === 'release' && freedMiB < BACK_SHARE * heldBeforeMiB) {
      sentences.push('Not all of its memory is back yet; until it is, that GPU gets no work.');
    }
    // Of somebody else's server it is not known what it held.
    if (done.done === 'offload' && heldBeforeMiB === 0 && freedMiB < NOISE_MIB) {
      sentences.push('So the engine did nothing, whatever it says. vLLM-Omni needs --enable-sleep-mode for it.');
    }
  }
  if (o.heldAwayMs > 0) {
    sentences.push(`Batch work leaves it away for ${Math.round(o.heldAwayMs / 60_000)} min; load_model ends that.`);
  }
  return sentences.join(' ');
}

function cannotOffload(alias: string, why: string | undefined): string {
  const because = why === undefined ? '' : ` (${why})`;
  return `${alias} cannot be offloaded${because}, so it was released: its process ended.`;
}

/** An engine that sleeps and yet keeps its memory. */
function stillHeld({ to, state, moved }: { to: string; state: ModelStateKind; moved: readonly Moved[] }): string {
  const heldMiB = moved.reduce((sum, { heldAfterMiB }) => sum + heldAfterMiB, 0);
  if (to !== 'offload' || state !== 'offloaded' || heldMiB < NOISE_MIB) return '';
  return ` It still holds ${mib(heldMiB)} of GPU memory; release_gpu gets all of it.`;
}

function mib(value: number): string {
  return `${Math.round(value)} MiB`;
}
