import type { Options } from './options.ts';

/** The flags that both simulated engines know. */
export const COMMON_FLAGS = ['ignore-sigterm', 'fork', 'setsid', 'orphan'] as const;
export const COMMON_VALUES = [
  'load-ms',
  'generate-ms',
  'step-ms',
  'ledger',
  'weights-mib',
  'peak-mib',
  'residual-mib',
  'exit-delay-ms',
  'exit-after',
  'exit-code',
  'crash-on',
  'garbage',
  'truncate',
  'vram-linger-ms',
] as const;

/** How a simulated engine behaves, whichever engine it is. */
export type Behaviour = {
  loadMs: number;
  /** An image takes `generateMs` plus `stepMs` for each step. */
  generateMs: number;
  stepMs: number;
  weightsMiB: number;
  peakMiB: number;
  residualMiB: number;
  vramLingerMs: number;
  ignoresSigterm: boolean;
  exitDelayMs: number;
  /** Ends by itself after this many images, 0 = during start. */
  exitAfter: number | undefined;
  exitCode: number;
  crashWord: string | undefined;
  /** The number of the image that comes out as undecodable bytes, or cut short. */
  garbage: number | undefined;
  truncate: number | undefined;
  worker: { isOwnSession: boolean; outlivesParent: boolean } | undefined;
};

export function behaviourOf(options: Options, defaults: { weightsMiB: number; residualMiB: number }): Behaviour {
  const weightsMiB = options.integer('weights-mib') ?? defaults.weightsMiB;
  // A session or an orphan of its own needs a worker: those flags mean --fork too.
  const hasWorker = ['fork', 'setsid', 'orphan'].some((flag) => options.has(flag));
  return {
    loadMs: options.integer('load-ms') ?? 300,
    generateMs: options.integer('generate-ms') ?? (options.text('step-ms') === undefined ? 300 : 0),
    stepMs: options.integer('step-ms') ?? 0,
    weightsMiB,
    peakMiB: Math.max(weightsMiB, options.integer('peak-mib') ?? Math.round(weightsMiB * 1.1)),
    residualMiB: options.integer('residual-mib') ?? defaults.residualMiB,
    vramLingerMs: options.integer('vram-linger-ms') ?? 0,
    ignoresSigterm: options.has('ignore-sigterm'),
    exitDelayMs: options.integer('exit-delay-ms') ?? 0,
    exitAfter: options.integer('exit-after'),
    exitCode: options.integer('exit-code') ?? 1,
    crashWord: options.text('crash-on'),
    garbage: options.integer('garbage'),
    truncate: options.integer('truncate'),
    worker: hasWorker ? { isOwnSession: options.has('setsid'), outlivesParent: options.has('orphan') } : undefined,
  };
}

/** The nth image as it leaves the engine: whole, unless the flags say otherwise. */
export function damaged(
  image: Buffer,
  nth: number,
  { garbage, truncate }: Pick<Behaviour, 'garbage' | 'truncate'>,
): Buffer {
  if (nth === garbage) return Buffer.alloc(image.length, 'not an image ');
  return nth === truncate ? image.subarray(0, Math.floor(image.length / 2)) : image;
}
