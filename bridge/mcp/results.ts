import type { AppError } from '../../shared/errors.ts';
import type { Preview } from '../output/preview.ts';
import type { CallToolResult, ResourceLink } from './sdk.ts';
import { cleanDeep, cleanText } from './text.ts';

/** Some clients drop a larger answer without a word, and all close the connection at 10 MiB. */
export const MAX_RESULT_BYTES = 900_000;
const MAX_TEXT = 8_000;
const MAX_ERROR = 4_000;

export type Json = Record<string, unknown>;

export type ImageAnswer = {
  sentence: string;
  json: Json;
  previews: readonly Preview[];
  /** Of the saved files, for whom they were asked for. */
  links?: readonly ResourceLink[];
};

/** A failure as the assistant reads it: `CODE: what. Why. Next step.` Never a stack. */
export function failure(error: AppError): CallToolResult {
  return { isError: true, content: [{ type: 'text', text: `${error.code}: ${cleanText(error.message, MAX_ERROR)}` }] };
}

/** The answer of a tool that declares its output: the same JSON twice, because each client prefers one of the two. */
export function jsonResult(json: Json): CallToolResult {
  const clean = cleanDeep(json, MAX_TEXT) as Json; // cleanDeep keeps an object an object
  return small({ content: [{ type: 'text', text: JSON.stringify(clean) }], structuredContent: clean });
}

/** The answer of a tool that shows images: no structured content, because clients drop the images beside it. */
export function imageResult(answer: ImageAnswer): CallToolResult {
  const text = `${cleanText(answer.sentence, 500).replaceAll('{', '(')}\n${JSON.stringify(cleanDeep(answer.json, MAX_TEXT))}`;
  return small({
    content: [
      { type: 'text', text },
      ...answer.previews.map((preview) => ({
        type: 'image' as const,
        ...preview,
        annotations: { audience: ['user' as const, 'assistant' as const] },
      })),
      ...(answer.links ?? []),
    ],
  });
}

function small(result: CallToolResult): CallToolResult {
  const bytes = Buffer.byteLength(JSON.stringify(result));
  if (bytes < MAX_RESULT_BYTES) return result;
  throw new Error(`an answer of ${bytes} bytes is larger than clients accept`);
}
