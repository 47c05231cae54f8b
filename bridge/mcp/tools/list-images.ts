import { z } from 'zod';
import { recentJson } from '../recent-images.ts';
import { defineTool, READS } from '../tool.ts';

const ImageJson = z.object({
  id: z.string(),
  file_path: z.string(),
  missing: z.boolean().optional(),
  prompt: z.string(),
  seed: z.int(),
  model: z.string(),
  host: z.string(),
  kind: z.enum(['generate', 'edit']),
  width: z.int(),
  height: z.int(),
  format: z.string(),
  created_at: z.string(),
});

const output = z.object({
  status: z.string(),
  images: z.array(ImageJson),
  has_more: z.boolean(),
  notes: z.array(z.string()),
});

export const listImages = defineTool({
  name: 'list_images',
  title: 'List images',
  description: 'Images made before, newest first, or those whose prompt has the words of query.',
  annotations: READS,
  input: z.strictObject({
    limit: z.int().min(1).max(100).optional(),
    query: z.string().min(1).max(500).optional(),
    model: z.string().min(1).max(200).optional(),
  }),
  output,
  run: async (args, context) => ({ status: 'success', ...(await recentJson(await context.images(), args)) }),
});
