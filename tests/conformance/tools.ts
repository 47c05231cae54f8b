import { z } from 'zod';
import type { Server, ToolListing } from '../../bridge/mcp/sdk.ts';
import type { Tool, ToolContext } from '../../bridge/mcp/tool.ts';
import { defineImageTool, defineTool, MAKES, parseArguments, READS } from '../../bridge/mcp/tool.ts';
import { AppError } from '../../shared/errors.ts';
import type { Content } from './content.ts';
import { image, JPEG, resource, text, WAV } from './content.ts';
import { askForm, askModel, DEFAULTS_FORM, ENUMS_FORM, PERSON_FORM, tell } from './client-features.ts';

/** The tools that the scenarios of the conformance suite call; they go through the wrapper that gantry's own go through. */
export function conformanceTools(server: () => Server): readonly Tool[] {
  return [
    answering('test_simple_text', [text('This is a simple text response for testing.')]),
    imageTool,
    answering('test_audio_content', [{ type: 'audio', data: WAV, mimeType: 'audio/wav' }]),
    answering('test_embedded_resource', [
      resource('test://embedded-resource', 'text/plain', 'This is an embedded resource content.'),
    ]),
    answering('test_multiple_content_types', [
      text('Multiple content types test:'),
      image(),
      resource('test://mixed-content-resource', 'application/json', '{"test":"data","value":123}'),
    ]),
    failing,
    withProgress,
    structured,
    asking('test_tool_with_logging', async () => {
      for (const part of ['started', 'processing data', 'completed']) await tell(server(), `Tool execution ${part}`);
      return 'Logged three times.';
    }),
    asking('test_sampling', async (args) => `LLM response: ${await askModel(server(), String(args['prompt']))}`, {
      prompt: z.string(),
    }),
    asking('test_elicitation', (args) => askForm(server(), PERSON_FORM, String(args['message'])), {
      message: z.string(),
    }),
    asking('test_elicitation_sep1034_defaults', () => askForm(server(), DEFAULTS_FORM)),
    asking('test_elicitation_sep1330_enums', () => askForm(server(), ENUMS_FORM)),
    answering(RICH_SCHEMA_TOOL, [text('The schema is what counts.')]),
  ];
}

/** As clients see them; one has a schema that none of gantry's own needs. */
export function listed(tools: readonly ToolListing[]): ToolListing[] {
  return tools.map((tool) => (tool.name === RICH_SCHEMA_TOOL ? { ...tool, inputSchema: RICH_SCHEMA } : tool));
}

/** The product's own kind of answer: a sentence, JSON, a preview. */
const imageTool = defineImageTool({
  ...head('test_image_content'),
  annotations: MAKES,
  input: z.strictObject({}),
  run: async () => ({
    sentence: 'One picture.',
    json: { status: 'success' },
    previews: [{ data: JPEG, mimeType: 'image/jpeg' }],
  }),
});

const failing = defineTool({
  ...head('test_error_handling'),
  input: z.strictObject({}),
  output: z.object({}),
  run: async () => {
    throw new AppError('ENGINE_FAILED', 'This tool intentionally returns an error for testing.');
  },
});

/** Ends when the client has been told three times, however long that takes. */
const withProgress = defineTool({
  ...head('test_tool_with_progress'),
  input: z.strictObject({}),
  output: z.object({ looks: z.int() }),
  run: async (_, context) => ({ looks: await threeLooks(context) }),
});

const structured = defineTool({
  ...head('test_structured_content'),
  input: z.strictObject({ value: z.string().max(100).optional() }),
  output: z.object({ value: z.string().nullable() }),
  run: async ({ value }) => ({ value: value ?? null }),
});

function threeLooks({ progress, signal }: ToolContext): Promise<number> {
  return new Promise((resolve, reject) => {
    let looks = 0;
    signal.addEventListener('abort', () => reject(new Error('cancelled')), { once: true });
    progress(() => {
      looks += 1;
      if (looks > 3) resolve(looks);
      return { message: `part ${looks} of 3`, fraction: looks / 4 };
    });
  });
}

/** Answers the same whatever it is asked. */
function answering(name: string, content: Content[]): Tool {
  return { ...head(name), input: z.strictObject({}), output: undefined, call: async () => ({ content }) };
}

/** Answers one sentence, for which it asks the client. */
function asking(
  name: string,
  answer: (args: Record<string, unknown>) => Promise<string>,
  shape: Record<string, z.ZodType> = {},
): Tool {
  const input = z.strictObject(shape);
  const call: Tool['call'] = async (args) => ({ content: [text(await answer(parseArguments(input, args)))] });
  return { ...head(name), input, output: undefined, call };
}

function head(name: string): Pick<Tool, 'name' | 'title' | 'description' | 'annotations'> {
  return { name, title: name, description: `For the scenario of ${name}.`, annotations: READS };
}

const RICH_SCHEMA_TOOL = 'json_schema_2020_12_tool';
const RICH_SCHEMA: ToolListing['inputSchema'] = {
  $schema: 'https://json-schema.org/draft/2020-12/schema',
  type: 'object',
  $defs: {
    address: {
      $anchor: 'addressDef',
      type: 'object',
      properties: { street: { type: 'string' }, city: { type: 'string' } },
    },
  },
  properties: {
    name: { type: 'string' },
    address: { $ref: '#/$defs/address' },
    contactMethod: { type: 'string', enum: ['phone', 'email'] },
    phone: { type: 'string' },
    email: { type: 'string' },
  },
  allOf: [{ anyOf: [{ required: ['phone'] }, { required: ['email'] }] }],
  if: { properties: { contactMethod: { const: 'phone' } }, required: ['contactMethod'] },
  then: { required: ['phone'] },
  else: { required: ['email'] },
  additionalProperties: false,
};
