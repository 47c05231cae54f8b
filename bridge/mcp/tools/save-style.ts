import { z } from 'zod';
import { styleJson } from '../style-json.ts';
import type { Annotations } from '../tool.ts';
import { defineTool, MAKES } from '../tool.ts';

const output = z.object({
  status: z.string(),
  message: z.string(),
  name: z.string(),
  uri: z.string(),
  file_path: z.string(),
  replaced: z.string().optional(),
});

/** Saying the same twice is refused the second time, and changes nothing. */
const SAVES: Annotations = { ...MAKES, idempotentHint: true };

export const saveStyle = defineTool({
  name: 'save_style',
  title: 'Save a style',
  description:
    "Save a style brief of the user's, in words, as style://NAME for later images. Only what the user asked to keep.",
  annotations: SAVES,
  input: z.strictObject({
    name: z.string().min(1).max(200).describe('Like cyberpunk-night'),
    body: z.string().min(1).max(12_000).describe('Markdown: subject, light, colours, medium, what to avoid'),
    description: z.string().max(500).optional(),
    tags: z.array(z.string().min(1).max(50)).max(20).optional(),
    aspect_ratio: z.string().max(20).optional(),
    quality: z.string().max(50).optional(),
    overwrite: z.boolean().optional().describe('Replace one of that name; the old one is kept aside'),
  }),
  output,
  run: async ({ name, body, overwrite = false, ...head }, context) => {
    const styles = await context.styles();
    const { path, replaced } = await styles.save(name, { head, body }, { overwrite });
    const message =
      replaced === undefined ? `Saved the style ${name}.` : `Replaced the style ${name}; the old one is kept.`;
    return {
      status: 'success',
      message,
      ...styleJson(name),
      file_path: path,
      ...(replaced !== undefined && { replaced }),
    };
  },
});
