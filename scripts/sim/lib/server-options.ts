import type { Options } from './options.ts';
import type { WorkerPlan } from './workers.ts';

/** The flags that both simulated engines know. Those of FORKING need a worker and so mean --fork too. */
const FORKING_FLAGS = ['setsid', 'orphan', 'retitle', 'worker-ignore-sigterm', 'worker-death-unnoticed'] as const;
export const COMMON_FLAGS = ['ignore-sigterm', 'fork', ...FORKING_FLAGS] as const;
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
  'join-ms',
  'log-flood',
  'request-log',
] as const;

/** How a simulated engine behaves, whichever engine it is. */
export type Behaviour = {
  loadMs: number;
  /** An image takes `generateMs` plus `stepMs` for each step. */
  generateMs: number;
  stepMs: number;
  weightsMiB: number;
  /** The peak of a picture of 1024 x 1024; see peakOf. */
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
  /** Megabytes of log per second. */
  logFlood: number | undefined;
  /** The file that gets a line for each request. */
  requestLog: string | undefined;
  worker: WorkerPlan | undefined;
  noticesWorkerDeath: boolean;
};

export function behaviourOf(
  options: Options,
  defaults: {
    weightsMiB: number;
    residualMiB: number;
    hasWorker: boolean;
    outlivesParent: boolean;
    killsInTheEnd: boolean;
  },
): Behaviour {
  const weightsMiB = options.integer('weights-mib') ?? defaults.weightsMiB;
  const hasWorker = defaults.hasWorker || ['fork', ...FORKING_FLAGS].some((flag) => options.has(flag));
  const worker = {
    isOwnSession: options.has('setsid'),
    outlivesParent: options.has('orphan') || defaults.outlivesParent,
    ignoresSigterm: options.has('worker-ignore-sigterm'),
    isRetitled: options.has('retitle'),
    joinMs: options.integer('join-ms') ?? 5_000,
    killsInTheEnd: defaults.killsInTheEnd,
  };
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
    logFlood: options.integer('log-flood'),
    requestLog: options.text('request-log'),
    worker: hasWorker ? worker : undefined,
    noticesWorkerDeath: !options.has('worker-death-unnoticed'),
  };
}

/** Activations grow with the picture: nothing on top of the weights at 0 pixels, --peak-mib at 1024 x 1024, and so on. */
export function peakOf({ weightsMiB, peakMiB }: Behaviour, pixels: number): number {
  return Math.round(weightsMiB + (peakMiB - weightsMiB) * (pixels / 1024 ** 2));
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
