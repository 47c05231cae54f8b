import { AppError } from '../../shared/errors.ts';
import type { PromptDesk } from './desks.ts';
import { cleanText } from './text.ts';

/** The texts that a person picks in their client. */
export const PROMPTS: PromptDesk = {
  list: async () => [],
  get: async (name) => {
    throw new AppError('INVALID_ARGUMENT', `Unknown prompt ${JSON.stringify(cleanText(name, 100))}. There is none.`);
  },
};
