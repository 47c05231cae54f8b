import { z } from 'zod';
import { styleJson } from '../style-json.ts';
import type { Annotations } from '../tool.ts';
import { defineTool, MAKES } from '../tool.ts';

const output = z.object({
  status: z.string(),
  message: z.string(),
  file_path: z.string(),
  replaced: z.string().optional(),
});

/** Saying the same twice is refused the second time, and changes nothing. */
const SAVES: Annotations = { ...MAKES, idempotentHint: true };

export const saveStyle = defineTool({
  name: 'save_style',
  title: 'Save a style',
  description: 'Save a style brief that the user wants to keep, for later images; read it as style://NAME.',
  annotations: SAVES,
  input: z.strictObject({
    name: z.string().min(1).max(200),
    body: z.string().min(1).max(12_000).describe('Markdown'),
    tags: z.array(z.string()).optional(),
    aspect_ratio: z.string().max(20).optional(),
    quality: z.string().max(50).optional(),
    overwrite: z.boolean().optional(),
  }),
  output,
  run: async ({ name, body, overwrite = false, ...head }, context) => {
    const styles = await context.styles();
    const { path, replaced } = await styles.save(name, { head, body }, { overwrite });
    const { uri } = styleJson(name);
    const message =
      replaced === undefined ? `Saved the style as ${uri}.` : `Replaced the style ${uri}; the old one is kept aside.`;
    return { status: 'success', message, file_path: path, ...(replaced !== undefined && { replaced }) };
  },
});
