import { randomUUID } from 'node:crypto';
import type { Job } from '../../../shared/job.ts';

/** The first attempt of a job that nobody has seen before. */
export function job(prompt = 'a red fox'): Job {
  return {
    jobId: randomUUID(),
    attempt: 1,
    class: 'batch',
    request: {
      kind: 'generate',
      model: 'M',
      prompt,
      steps: 4,
      guidance: { field: 'guidance_scale', value: 0 },
      seed: 7,
      format: 'png',
      width: 64,
      height: 64,
    },
  };
}
