import type { DamagedFiles } from './damaged-files.ts';
import type { GpuSampler } from './gpu/gpu-sampler.ts';
import type { Readiness } from './http/health.ts';
import type { Exchange } from './job/exchange.ts';
import type { Residency } from './model/residency.ts';

type Model = Pick<ReturnType<Residency['modelStatus']>[number], 'isAttached' | 'state' | 'detail'>;

type Facts = {
  exchange: Pick<Exchange, 'refusal'>;
  sampler: Pick<GpuSampler, 'readings' | 'problem'>;
  residency: Pick<Residency, 'slots' | 'gpuStatus' | 'problems'> & { modelStatus(): readonly Model[] };
  damaged: Pick<DamagedFiles, 'sentences'>;
};

/**
 * What is in the way of work, and will be until somebody does something, and damage that somebody should know of; in sentences,
 * from what is known already.
 */
export function hostProblems(facts: Facts): string[] {
  const all = [
    ...blocking(facts),
    ...gpuProblems(facts.residency),
    ...facts.residency.problems(),
    ...awayProblems(facts.residency),
    ...facts.damaged.sentences(),
  ];
  // Where no GPU is left, what is wrong with the last one is in both of the first two.
  return all.filter((problem) => !all.some((other) => other !== problem && other.includes(problem)));
}

/** Why no job would be granted at all: the first moments of a start count too, what only some of the GPUs have does not. */
export function readiness(facts: Facts): Readiness {
  const { sampler, residency } = facts;
  return () => {
    const gpus = residency.gpuStatus();
    const isWaiting = needsGpu(residency) && gpus.length === 0 && sampler.problem === undefined;
    const areAllOut = gpus.length > 0 && gpus.every(({ health, isDegraded }) => health !== 'ok' || isDegraded);
    return [
      ...blocking(facts),
      ...(needsGpu(residency) && areAllOut ? gpuProblems(residency) : []),
      ...(isWaiting ? ['No GPU can be read: nvidia-smi has not answered yet.'] : []),
    ];
  };
}

function blocking({ exchange, sampler, residency }: Facts): string[] {
  const problems: string[] = [];
  if (residency.slots.length === 0) problems.push('No model is configured.');
  if (exchange.refusal !== undefined) problems.push(exchange.refusal);
  if (needsGpu(residency) && !hasGpu(sampler) && sampler.problem !== undefined) {
    problems.push(`No GPU can be read: ${sampler.problem.reason.replace(/\.$/, '')}.`);
  }
  return problems;
}

/** Servers that somebody else runs, and somebody has to see to. */
function awayProblems(residency: Facts['residency']): string[] {
  return residency
    .modelStatus()
    .flatMap(({ isAttached, state, detail }) => (isAttached && state === 'failed' ? (detail ?? []) : []));
}

/** GPUs that are out of service. What other programs cost the models here, the residency knows. */
function gpuProblems(residency: Facts['residency']): string[] {
  return residency
    .gpuStatus()
    .flatMap(({ index, health, note, isDegraded, degraded }) => [
      ...(health === 'lost' ? [ofGpu(index, note ?? 'its driver does not see it any more. Restart the host.')] : []),
      ...(isDegraded ? [ofGpu(index, degraded ?? 'memory of an ended server has not come back.')] : []),
    ]);
}

/** Some notes of the driver begin with the GPU. */
function ofGpu(index: number, text: string): string {
  const name = `GPU ${index}`;
  return new RegExp(`^${name}\\b`).test(text) ? text : `${name}: ${text}`;
}

function needsGpu({ slots }: Pick<Residency, 'slots'>): boolean {
  return slots.some(({ model }) => model.launch.kind === 'owned');
}

function hasGpu(sampler: Pick<GpuSampler, 'readings'>): boolean {
  return sampler.readings().some(({ health }) => health === 'ok');
}
