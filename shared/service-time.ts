import { z } from 'zod';
import type { JobRequest } from './job.ts';
import { megapixelsOf } from './job.ts';

/**
 * Time one job takes on one host: `fixedMs + unitMs * workUnits(request)`.
 * `samples` 0 means that both are first guesses from the model's profile.
 */
export const ServiceTime = z.object({
  fixedMs: z.number().nonnegative(),
  unitMs: z.number().positive(),
  samples: z.int().nonnegative(),
});
export type ServiceTime = z.infer<typeof ServiceTime>;

/** Weight of the newest observation: old enough to ride out noise, young enough to follow a throttled GPU. */
const ALPHA = 0.2;

/** Work of a request in steps x megapixels; classifier-free guidance runs the network twice per step. */
export function workUnits(request: JobRequest): number {
  const passes = request.guidance.field === 'true_cfg_scale' && request.guidance.value > 1 ? 2 : 1;
  return request.steps * megapixelsOf(request) * passes;
}

export function estimateMs(service: ServiceTime, request: JobRequest): number {
  return service.fixedMs + service.unitMs * workUnits(request);
}

/**
 * The estimate after one more observation: both terms are scaled by an average of log(observed / estimated).
 * The first observation replaces the guess, the next ones weigh at least `ALPHA`.
 */
export function learnServiceTime(service: ServiceTime, seen: { request: JobRequest; runMs: number }): ServiceTime {
  const estimated = estimateMs(service, seen.request);
  if (!(seen.runMs > 0) || !(estimated > 0)) return service;
  const weight = Math.max(ALPHA, 1 / (service.samples + 1));
  const scale = Math.exp(weight * Math.log(seen.runMs / estimated));
  return { fixedMs: service.fixedMs * scale, unitMs: service.unitMs * scale, samples: service.samples + 1 };
}
