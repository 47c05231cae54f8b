import type { SimulatedModel } from '../lib/simulated-host.ts';

/** What one model of the scenario is, for the plan, for the host, and for whoever checks the ledger. */
export type ScenarioModel = {
  alias: string;
  model: string;
  engine: SimulatedModel['engine'];
  capability: 'generate' | 'edit';
  weightsMiB: number;
  /** At one megapixel. */
  peakMiB: number;
  residualMiB: number;
  loadMs: number;
  stepMs: number;
  steps: number;
  /** Its engine was started without sleep mode: to make room it must be ended. */
  cannotSleep?: true;
};

export const GPUS = [
  { name: 'Simulated RTX 4090 left', totalMiB: 24_564 },
  { name: 'Simulated RTX 4090 right', totalMiB: 24_564 },
] as const;

/** Five models of 10 to 20 GiB, 72 GiB in all, on two cards of 24: two at a time fit, and of some only one. */
export const MODELS: readonly ScenarioModel[] = [
  {
    ...{ alias: 'klein', model: 'black-forest-labs/FLUX.2-klein-4B', engine: 'vllm-omni', capability: 'generate' },
    ...{ weightsMiB: 10_240, peakMiB: 12_800, residualMiB: 1_200, loadMs: 600, stepMs: 80, steps: 4 },
  },
  {
    ...{ alias: 'schnell', model: 'black-forest-labs/FLUX.1-schnell', engine: 'vllm-omni', capability: 'generate' },
    ...{ weightsMiB: 12_288, peakMiB: 14_500, residualMiB: 0, loadMs: 700, stepMs: 90, steps: 4, cannotSleep: true },
  },
  {
    ...{ alias: 'z-image', model: 'Tongyi-MAI/Z-Image-Turbo', engine: 'vllm-omni', capability: 'generate' },
    ...{ weightsMiB: 14_336, peakMiB: 17_000, residualMiB: 1_500, loadMs: 800, stepMs: 50, steps: 9 },
  },
  {
    ...{ alias: 'step1x', model: 'stepfun-ai/Step1X-Edit', engine: 'step1x-edit', capability: 'edit' },
    ...{ weightsMiB: 16_384, peakMiB: 19_500, residualMiB: 600, loadMs: 700, stepMs: 40, steps: 8 },
  },
  {
    ...{ alias: 'qwen', model: 'Qwen/Qwen-Image', engine: 'vllm-omni', capability: 'generate' },
    ...{ weightsMiB: 20_480, peakMiB: 22_300, residualMiB: 1_800, loadMs: 1_000, stepMs: 60, steps: 10 },
  },
];

/** As it stands in agent.yaml. The figures are those an owner would copy from a model card; the agent measures its own. */
export function configOf(model: ScenarioModel): SimulatedModel {
  const { engine, weightsMiB, peakMiB, residualMiB, loadMs, stepMs } = model;
  const flags = {
    ...{ 'load-ms': loadMs, 'step-ms': stepMs },
    ...{ 'weights-mib': weightsMiB, 'peak-mib': peakMiB, 'residual-mib': residualMiB },
  };
  return {
    engine,
    model: model.model,
    capabilities: [model.capability],
    vram: `${weightsMiB}MiB`,
    profile: { weightsMiB, peakMiB },
    ...(model.cannotSleep && { offload: 'none' }),
    args: Object.entries(flags).flatMap(([flag, value]) => [`--${flag}`, String(value)]),
  };
}
