import type { PromptDesk, ResourceDesk } from '../../bridge/mcp/desks.ts';
import { noSuchResource } from '../../bridge/mcp/desks.ts';
import { AppError } from '../../shared/errors.ts';
import { image, PNG, resource, text } from './content.ts';

const TEMPLATE = /^test:\/\/template\/([^/]+)\/data$/;

export const conformanceResources: ResourceDesk = {
  list: async () => [
    { uri: 'test://static-text', name: 'text', description: 'A text that never changes.', mimeType: 'text/plain' },
    { uri: 'test://static-binary', name: 'picture', description: 'A red dot.', mimeType: 'image/png' },
    { uri: 'test://watched-resource', name: 'watched', description: 'May be watched.', mimeType: 'text/plain' },
  ],
  templates: () => [
    {
      uriTemplate: 'test://template/{id}/data',
      name: 'data',
      description: 'The data of an id.',
      mimeType: 'application/json',
    },
  ],
  read: async (uri) => {
    const [, id] = TEMPLATE.exec(uri) ?? [];
    if (id !== undefined) {
      const data = { id, templateTest: true, data: `Data for ID: ${id}` };
      return [{ uri, mimeType: 'application/json', text: JSON.stringify(data) }];
    }
    if (uri === 'test://static-binary') return [{ uri, mimeType: 'image/png', blob: PNG }];
    if (uri === 'test://static-text' || uri === 'test://watched-resource')
      return [{ uri, mimeType: 'text/plain', text: 'This is the content of the static text resource.' }];
    throw noSuchResource(uri, 'There are test://static-text and test://static-binary.');
  },
};

type Message = Awaited<ReturnType<PromptDesk['get']>>['messages'][number];
type Said = Message['content'];

const PROMPTS: Record<string, { takes: readonly string[]; says: (args: Record<string, string>) => Said[] }> = {
  test_simple_prompt: { takes: [], says: () => [text('This is a simple prompt for testing.')] },
  test_prompt_with_arguments: {
    takes: ['arg1', 'arg2'],
    says: ({ arg1, arg2 }) => [text(`Prompt with arguments: arg1='${arg1}', arg2='${arg2}'`)],
  },
  test_prompt_with_embedded_resource: {
    takes: ['resourceUri'],
    says: ({ resourceUri = '' }) => [
      resource(resourceUri, 'text/plain', 'Embedded resource content for testing.'),
      text('Please process the embedded resource above.'),
    ],
  },
  test_prompt_with_image: { takes: [], says: () => [image(), text('Please analyze the image above.')] },
};

export const conformancePrompts: PromptDesk = {
  list: async () =>
    Object.entries(PROMPTS).map(([name, { takes }]) => ({
      name,
      description: `For the scenario of ${name}.`,
      arguments: takes.map((argument) => ({ name: argument, description: 'Any text.', required: true })),
    })),
  get: async (name, args) => {
    const prompt = PROMPTS[name];
    if (prompt === undefined) throw new AppError('INVALID_ARGUMENT', `No prompt is called ${name}.`);
    return { messages: prompt.says(args).map((content) => ({ role: 'user', content })) };
  },
};
