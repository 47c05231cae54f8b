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
 * The estimate after one more observation. The first one replaces the guess, the next ones weigh at least `ALPHA`, and the
 * average is one of log(observed / estimated). What was wrong is put down to the two terms by their share of the estimate:
 * large jobs teach the time of a unit, small ones the fixed part.
 */
export function learnServiceTime(service: ServiceTime, seen: { request: JobRequest; runMs: number }): ServiceTime {
  const estimated = estimateMs(service, seen.request);
  if (!(seen.runMs > 0) || !(estimated > 0)) return service;
  const samples = service.samples + 1;
  const change = Math.max(ALPHA, 1 / samples) * Math.log(seen.runMs / estimated);
  // One job cannot tell the two terms apart.
  const fixedShare = samples === 1 ? 0.5 : service.fixedMs / estimated;
  const unitShare = 1 - fixedShare;
  const scaled = (ms: number, share: number): number =>
    ms * Math.exp((change * share) / (fixedShare ** 2 + unitShare ** 2));
  return { fixedMs: scaled(service.fixedMs, fixedShare), unitMs: scaled(service.unitMs, unitShare), samples };
}
