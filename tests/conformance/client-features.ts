import {
  CompleteRequestSchema,
  CreateMessageResultSchema,
  ElicitResultSchema,
  SetLevelRequestSchema,
  SubscribeRequestSchema,
  UnsubscribeRequestSchema,
} from '@modelcontextprotocol/sdk/types.js';
import type { Server } from '../../bridge/mcp/sdk.ts';

// What MCP has and gantry does not use: logging, completion, subscriptions, sampling, forms. The suite has scenarios for
// them; they are put on the server from outside, so that those judge how gantry's server and transport carry them.

export function addUnusedFeatures(server: Server): void {
  server.registerCapabilities({ logging: {}, completions: {}, resources: { subscribe: true } });
  server.setRequestHandler(SetLevelRequestSchema, () => ({}));
  server.setRequestHandler(SubscribeRequestSchema, () => ({}));
  server.setRequestHandler(UnsubscribeRequestSchema, () => ({}));
  server.setRequestHandler(CompleteRequestSchema, () => ({ completion: { values: [], total: 0, hasMore: false } }));
}

export async function tell(server: Server, data: string): Promise<void> {
  await server.notification({ method: 'notifications/message', params: { level: 'info', data } });
}

export async function askModel(server: Server, prompt: string): Promise<string> {
  const messages = [{ role: 'user' as const, content: { type: 'text' as const, text: prompt } }];
  const params = { messages, maxTokens: 100 };
  const { content } = await server.request({ method: 'sampling/createMessage', params }, CreateMessageResultSchema);
  return JSON.stringify(content);
}

type Form = { type: 'object'; properties: Record<string, Record<string, unknown>>; required?: string[] };

/** Asked by the bare request: gantry's server has no validator for what people answer. */
export async function askForm(server: Server, form: Form, message = 'Please fill in the form.'): Promise<string> {
  const params = { message, requestedSchema: form };
  // The SDK's types of forms know fewer keys than the specification.
  const request = { method: 'elicitation/create', params } as never;
  const { action, content } = await server.request(request, ElicitResultSchema);
  return `User response: action=${action}, content=${JSON.stringify(content)}`;
}

export const PERSON_FORM: Form = {
  type: 'object',
  properties: {
    username: { type: 'string', description: "User's response" },
    email: { type: 'string', description: "User's email address" },
  },
  required: ['username', 'email'],
};

export const DEFAULTS_FORM: Form = {
  type: 'object',
  properties: {
    name: { type: 'string', default: 'John Doe' },
    age: { type: 'integer', default: 30 },
    score: { type: 'number', default: 95.5 },
    status: { type: 'string', enum: ['active', 'inactive', 'pending'], default: 'active' },
    verified: { type: 'boolean', default: true },
  },
};

const OPTIONS = ['option1', 'option2', 'option3'];
const TITLED = [1, 2, 3].map((number) => ({ const: `value${number}`, title: `Choice ${number}` }));

export const ENUMS_FORM: Form = {
  type: 'object',
  properties: {
    untitledSingle: { type: 'string', enum: OPTIONS },
    titledSingle: { type: 'string', oneOf: TITLED },
    legacyEnum: { type: 'string', enum: ['opt1', 'opt2', 'opt3'], enumNames: ['One', 'Two', 'Three'] },
    untitledMulti: { type: 'array', items: { type: 'string', enum: OPTIONS } },
    titledMulti: { type: 'array', items: { anyOf: TITLED } },
  },
};
