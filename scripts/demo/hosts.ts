import type { SimulatedHostOptions, SimulatedModel } from '../lib/simulated-host.ts';

export const FAST_MODEL = 'black-forest-labs/FLUX.2-klein-4B';
export const ABSENT_MODEL = 'Tongyi-MAI/Z-Image-Turbo';
export const EDIT_MODEL = 'stepfun-ai/Step1X-Edit';

/**
 * One step of the slowest host in ms; the others divide it by their speed. Twelve equal pictures cannot end sooner here than
 * 1.17 times the lower bound, and pictures this long leave the rest up to 1.25 as room for a busy machine.
 */
const STEP_MS = 1_300;

/** Three hosts of speed 1, 2 and 4. The memory figures are those published for the models (docs/models.md). */
export const HOSTS: readonly Omit<SimulatedHostOptions, 'directory'>[] = [
  {
    name: 'attic',
    gpus: [{ name: 'Simulated RTX 4090', totalMiB: 24_564 }],
    models: { klein: klein(1) },
  },
  {
    name: 'desk',
    gpus: [{ name: 'Simulated RTX 6000 Ada', totalMiB: 49_140 }],
    models: { klein: klein(2), 'z-image': zImage(2) },
  },
  {
    name: 'rack',
    gpus: [{ name: 'Simulated H100 80GB HBM3', totalMiB: 81_559 }],
    models: { klein: klein(4), 'z-image': zImage(4), step1x: step1x(4) },
  },
];

function klein(speed: number): SimulatedModel {
  return {
    engine: 'vllm-omni',
    model: FAST_MODEL,
    preload: true,
    args: simulated({
      'step-ms': STEP_MS / speed,
      'load-ms': 1_500,
      'weights-mib': 15_258,
      'peak-mib': 20_480,
      'residual-mib': 1_800,
    }),
  };
}

function zImage(speed: number): SimulatedModel {
  return {
    engine: 'vllm-omni',
    model: ABSENT_MODEL,
    args: simulated({
      'step-ms': STEP_MS / speed / 4,
      'load-ms': 3_000,
      'weights-mib': 19_661,
      'peak-mib': 25_395,
      'residual-mib': 1_900,
    }),
  };
}

function step1x(speed: number): SimulatedModel {
  return {
    engine: 'step1x-edit',
    model: EDIT_MODEL,
    capabilities: ['edit'],
    args: simulated({
      'step-ms': STEP_MS / speed / 4,
      'load-ms': 1_000,
      'weights-mib': 40_960,
      'peak-mib': 45_000,
      'residual-mib': 700,
    }),
  };
}

function simulated(flags: Record<string, number>): string[] {
  return Object.entries(flags).flatMap(([flag, value]) => [`--${flag}`, String(Math.round(value))]);
}
