import { describe, expect, test } from 'vitest';
import { createServer, INSTRUCTIONS } from '../../../bridge/mcp/server.ts';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { InMemoryTransport } from '@modelcontextprotocol/sdk/inMemory.js';
import { toolList } from '../../../bridge/mcp/tool-list.ts';

const server = createServer({
  version: '0.0.0',
  listTools: toolList,
  tools: () => Promise.reject(new Error('listing tools calls none')),
  settings: {
    outputDir: undefined,
    defaultModel: undefined,
    defaultEditModel: undefined,
    preview: 'inline',
    syncWaitMs: undefined,
  },
  roots: { home: '/', cwd: '/', configured: [], outputDir: undefined },
  resources: () => Promise.reject(new Error('listing tools reads nothing')),
  prompts: () => Promise.reject(new Error('listing tools asks for no prompt')),
  images: () => Promise.reject(new Error('listing tools finds no image')),
  styles: () => Promise.reject(new Error('listing tools reads no style')),
  openFleet: () => Promise.reject(new Error('listing tools opens nothing')),
  onDefect: () => undefined,
});
const client = new Client({ name: 'test', version: '1' });
const [ours, theirs] = InMemoryTransport.createLinkedPair();
await server.connect(ours);
await client.connect(theirs);
const listed = await client.listTools();
await client.close();

test('what clients see of the tools is what was reviewed', async () => {
  await expect(`${JSON.stringify(listed.tools, null, 1)}\n`).toMatchFileSnapshot('tools-list.snap');
});

test('the whole list is small, because every conversation pays for it', () => {
  expect(Buffer.byteLength(JSON.stringify(listed))).toBeLessThan(16 * 1024);
});

test('the instructions fit where clients cut them', () => {
  expect(INSTRUCTIONS.length).toBeLessThan(2_048);
});

test('what an assistant must know is where every client still shows it', () => {
  for (const word of ['generate_image', 'batch_generate', 'edit_image', '"running"', 'get_job', 'wait_seconds'])
    expect(INSTRUCTIONS.slice(0, 500)).toContain(word);
});

describe.each(listed.tools.map((tool) => [tool.name, tool] as const))('%s', (name, tool) => {
  test('has a short name, a title and a description well under 2 KB', () => {
    expect(name).toMatch(/^[a-z_]{1,19}$/);
    expect(tool.title).toBeTruthy();
    expect(tool.description?.length).toBeGreaterThan(40);
    expect(tool.description?.length).toBeLessThan(1_024);
  });

  test('says every hint', () => {
    const [readOnly, destructive, idempotent] = HINTS[name] ?? [];
    expect(tool.annotations).toEqual({
      readOnlyHint: readOnly,
      destructiveHint: destructive,
      idempotentHint: idempotent,
      openWorldHint: false,
    });
  });

  test('takes flat arguments of one type each, and no others', () => {
    expect(tool.inputSchema).toMatchObject({ type: 'object', additionalProperties: false });
    for (const [argument, schema] of Object.entries(tool.inputSchema.properties ?? {})) {
      expect(schema, argument).toMatchObject({
        type: expect.stringMatching(/^(string|integer|number|boolean|array)$/) as string,
      });
      expect(JSON.stringify(schema), argument).not.toMatch(/anyOf|oneOf|\$ref|null/);
    }
  });

  test('declares its answer exactly if it shows no images', () => {
    expect(tool.outputSchema === undefined).toBe(
      ['generate_image', 'edit_image', 'batch_generate', 'batch_edit_images', 'get_job', 'get_image'].includes(name),
    );
  });
});

/** readOnly, destructive, idempotent. */
const HINTS: Record<string, readonly [boolean, boolean, boolean]> = {
  generate_image: [false, false, false],
  edit_image: [false, false, false],
  batch_generate: [false, false, false],
  get_job: [true, false, true],
  batch_edit_images: [false, false, false],
  list_jobs: [true, false, true],
  get_model_info: [true, false, true],
  list_presets: [true, false, true],
  estimate_generation: [true, false, true],
  cancel_batch: [false, true, true],
  list_hosts: [true, false, true],
  list_models: [true, false, true],
  gpu_status: [true, false, true],
  server_health: [true, false, true],
  load_model: [false, false, true],
  offload_gpu: [false, true, true],
  release_gpu: [false, true, true],
  get_image: [true, false, true],
  list_images: [true, false, true],
  save_style: [false, false, true],
  delete_style: [false, true, true],
};
