import { z } from 'zod';

/** The parts of the tools' answers that the demo reads. Parsing them is itself a check of the answers' shape. */
export const GeneratedAnswer = z.object({
  status: z.literal('success'),
  file_path: z.string(),
  generation_time_seconds: z.number(),
  parameters_used: z.object({ model: z.string(), prompt: z.string(), seed: z.int(), width: z.int(), height: z.int() }),
  host: z.string(),
  routing: z.string(),
});

export const EditedAnswer = z.object({
  status: z.literal('success'),
  output_path: z.string(),
  processing_time: z.number(),
  host: z.string(),
});

export const BatchAnswer = z.object({
  status: z.enum(['success', 'running', 'partial', 'cancelled']),
  batch_id: z.string(),
  total_time_seconds: z.number(),
  images_generated: z.int(),
  images_failed: z.int(),
  results: z.array(
    z.object({
      index: z.int(),
      file_path: z.string(),
      generation_time_seconds: z.number(),
      started_seconds: z.number(),
      finished_seconds: z.number(),
      host: z.string(),
    }),
  ),
  quality: z.object({
    makespan_seconds: z.number(),
    lower_bound_seconds: z.number(),
    ratio: z.number(),
    images_per_host: z.record(z.string(), z.int()),
  }),
});
export type BatchAnswer = z.infer<typeof BatchAnswer>;

export const RunningAnswer = z.object({ status: z.literal('running'), batch_id: z.string() });

export const JobAnswer = z.object({
  state: z.string(),
  progress: z.object({ step: z.int(), completed: z.int(), total: z.int() }),
});

export const CancelAnswer = z.object({
  batch_id: z.string(),
  completed: z.int(),
  cancelled: z.int(),
  files_saved: z.array(z.string()),
  still_running: z.array(z.object({ job_id: z.string(), host: z.string() })),
});

export const MoveAnswer = z.object({
  message: z.string(),
  hosts: z.array(
    z.object({
      host: z.string(),
      state: z.string(),
      vram: z.object({
        free_before_gb: z.number(),
        free_after_gb: z.number(),
        held_before_gb: z.number(),
        held_after_gb: z.number(),
      }),
    }),
  ),
});

export const GpuAnswer = z.object({
  hosts: z.array(
    z.object({
      host: z.string(),
      gpus: z.array(
        z.object({
          gpu_name: z.string(),
          total_vram_gb: z.number().optional(),
          used_vram_gb: z.number().optional(),
          free_vram_gb: z.number().optional(),
        }),
      ),
      models: z.array(z.object({ model: z.string(), state: z.string(), model_location: z.string() })),
    }),
  ),
});
export type GpuAnswer = z.infer<typeof GpuAnswer>;

export const SlotsAnswer = z.object({
  hosts: z.array(z.object({ models: z.array(z.object({ slots: z.array(z.object({ phase: z.string() })) })) })),
});
