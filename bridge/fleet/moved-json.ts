import { z } from 'zod';

/** One host's part of a load, offload or release, in the words of the tools; the commands read the same ones. */
export const MovedJson = z.object({
  host: z.string(),
  model: z.string(),
  status: z.string(),
  state: z.string(),
  done: z.string().optional(),
  message: z.string(),
  took_seconds: z.number().optional(),
  elapsed_seconds: z.number().optional(),
  usual_seconds: z.number().optional(),
  ready_in_seconds: z.number().optional(),
  stays_away_seconds: z.number().optional(),
  vram: z
    .object({
      free_before_gb: z.number(),
      free_after_gb: z.number(),
      held_before_gb: z.number(),
      held_after_gb: z.number(),
    })
    .optional(),
});
