import { z } from 'zod';
import { defineTool, ENDS } from '../tool.ts';

export const deleteStyle = defineTool({
  name: 'delete_style',
  title: 'Delete a style',
  description: 'Delete a saved style; its text is kept aside.',
  annotations: ENDS,
  input: z.strictObject({ name: z.string().min(1).max(200) }),
  output: z.object({ status: z.string(), message: z.string(), kept_as: z.string() }),
  run: async ({ name }, context) => {
    const kept = await (await context.styles()).delete(name);
    return { status: 'success', message: `Deleted the style ${name}; its text is kept.`, kept_as: kept };
  },
});
