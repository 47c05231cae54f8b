import type { ModelStateKind } from '../../shared/host-snapshot.ts';
import type { VramChange } from '../../shared/protocol.ts';
import type { Moved } from './moved.ts';

/** Less than this share of what it held came free: said, because the engine claims success all the same. */
const POOR_SHARE = 0.5;

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
  if (done === undefined) return `${o.alias} is ${o.state} already; nothing was done.`;
  const sentences = [
    o.to === 'offload' && done.done === 'release' ? cannotOffload(o.alias) : `${o.alias} is ${o.state} now.`,
  ];
  if (o.vram !== undefined) {
    const { freeBeforeMiB, freeAfterMiB, heldBeforeMiB } = o.vram;
    sentences.push(`nvidia-smi shows ${mib(freeAfterMiB)} free, ${mib(freeBeforeMiB)} before.`);
    const freedMiB = freeAfterMiB - freeBeforeMiB;
    if (done.done === 'offload' && heldBeforeMiB > 0 && freedMiB < POOR_SHARE * heldBeforeMiB) {
      sentences.push(
        `The engine reports success, but only ${mib(Math.max(0, freedMiB))} of ${mib(heldBeforeMiB)} came free. ` +
          'Use release_gpu to get all of it.',
      );
    }
  }
  if (o.heldAwayMs > 0) {
    sentences.push(`Batch work leaves it away for ${Math.round(o.heldAwayMs / 60_000)} min; load_model ends that.`);
  }
  return sentences.join(' ');
}

function cannotOffload(alias: string): string {
  return `${alias} cannot be offloaded, so it was released: its process ended and all its memory came back.`;
}

function mib(value: number): string {
  return `${Math.round(value)} MiB`;
}
