import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { InMemoryTransport } from '@modelcontextprotocol/sdk/inMemory.js';
import { McpError } from '@modelcontextprotocol/sdk/types.js';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { createImages } from '../../../bridge/images/images.ts';
import type { PromptDesk, ResourceDesk } from '../../../bridge/mcp/desks.ts';
import { PROMPTS } from '../../../bridge/mcp/prompts.ts';
import { RESOURCES } from '../../../bridge/mcp/resources.ts';
import { createServer } from '../../../bridge/mcp/server.ts';
import { StyleBook } from '../../../bridge/styles/style-book.ts';
import { AppError } from '../../../shared/errors.ts';

let home: string;
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'gantry-desks-'));
});
afterEach(() => rm(home, { recursive: true, force: true }));

/** A server that has no host and may open no link. */
class Session implements AsyncDisposable {
  readonly client: Client;
  readonly defects: unknown[] = [];
  readonly asked: string[] = [];
  readonly styles = new StyleBook(join(home, 'styles'));

  private constructor(client: Client) {
    this.client = client;
  }

  static async start(o: { resources?: ResourceDesk; prompts?: PromptDesk } = {}): Promise<Session> {
    const client = new Client({ name: 'test', version: '1' });
    const session = new Session(client);
    const server = createServer({
      version: '0.0.0',
      listTools: async () => [],
      tools: async () => [],
      resources: async () => {
        session.asked.push('resources');
        return o.resources ?? RESOURCES;
      },
      prompts: async () => {
        session.asked.push('prompts');
        return o.prompts ?? PROMPTS;
      },
      images: async () => createImages({ stateDir: join(home, 'state') }),
      styles: async () => session.styles,
      settings: {
        outputDir: undefined,
        defaultModel: undefined,
        defaultEditModel: undefined,
        preview: 'inline',
        syncWaitMs: undefined,
      },
      roots: { home, cwd: home, configured: undefined, outputDir: undefined },
      openFleet: () => Promise.reject(new Error('nothing here needs a host')),
      onDefect: (_, error) => session.defects.push(error),
    });
    const [ours, theirs] = InMemoryTransport.createLinkedPair();
    await server.connect(ours);
    await client.connect(theirs);
    return session;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.client.close();
  }
}

async function errorOf(answer: Promise<unknown>): Promise<McpError> {
  const error: unknown = await answer.catch((one: unknown) => one);
  if (!(error instanceof McpError)) throw new Error('this was not refused');
  return error;
}

test('both are declared, and nothing of them is loaded before somebody asks', async () => {
  await using session = await Session.start();
  expect(session.client.getServerCapabilities()).toMatchObject({ resources: {}, prompts: {} });
  expect(session.asked).toEqual([]);
});

test('listing opens no link and needs no host', async () => {
  await using session = await Session.start();
  await session.styles.save('night', { head: { tags: ['dark'] }, body: 'Dark streets.\nMore.' }, { overwrite: false });
  const { resources } = await session.client.listResources();
  expect(resources.map(({ uri }) => uri)).toEqual(['image://list', 'style://list', 'gantry://hosts', 'style://night']);
  expect(resources.at(-1)?.description).toBe('Dark streets. · dark');
  expect((await session.client.listResourceTemplates()).resourceTemplates).toHaveLength(4);
  expect((await session.client.listPrompts()).prompts).toHaveLength(1);
  expect(session.defects).toEqual([]);
});

describe('a failure is one sentence with a code', () => {
  const failing = (error: Error): ResourceDesk => ({ ...RESOURCES, read: () => Promise.reject(error) });

  test.each([
    [new AppError('INVALID_ARGUMENT', 'Not so.'), -32602, /INVALID_ARGUMENT: Not so\.$/],
    [new AppError('PATH_DENIED', 'Not there.'), -32602, /PATH_DENIED: Not there\.$/],
    [new AppError('NO_HOST', 'None is up.'), -32603, /NO_HOST: None is up\.$/],
    [new AppError('JOB_NOT_FOUND', 'No such job.'), -32002, /JOB_NOT_FOUND: No such job\.$/],
  ])('%s', async (error, code, message) => {
    await using session = await Session.start({ resources: failing(error) });
    const seen = await errorOf(session.client.readResource({ uri: 'x://y' }));
    expect(seen.code).toBe(code);
    expect(seen.message).toMatch(message);
    expect(session.defects).toEqual([]);
  });

  test('a defect is logged whole and told without its insides', async () => {
    const defect = new TypeError('reading secret.path of undefined');
    await using session = await Session.start({ resources: failing(defect) });
    const seen = await errorOf(session.client.readResource({ uri: 'x://y' }));
    expect(seen.code).toBe(-32603);
    expect(seen.message).toMatch(/failed unexpectedly \(TypeError\)/);
    expect(seen.message).not.toMatch(/secret/);
    expect(session.defects).toEqual([defect]);
  });

  test('a desk that cannot be loaded is one too', async () => {
    await using session = await Session.start({
      prompts: { list: () => Promise.reject(new Error('broken')), get: PROMPTS.get },
    });
    expect((await errorOf(session.client.listPrompts())).code).toBe(-32603);
  });
});

describe('addresses', () => {
  test.each([
    'image://list/',
    'image://list?x=1',
    'image://8e0d0d33-3d3c-4f9f-a2ad-6d2c8ffb44f2/metadata?x=1',
    'image://8e0d0d33-3d3c-4f9f-a2ad-6d2c8ffb44f2/edit',
    'image://%2e%2e/view',
    'style://..%2f..%2fsecret',
    'style://NIGHT',
    'gantry://jobs/',
    'gantry://jobs/a/b',
    '__proto__://x',
    'constructor://x',
    `image://${'x'.repeat(3_000)}/view`,
  ])('%s has nothing', async (uri) => {
    await using session = await Session.start();
    const error = await errorOf(session.client.readResource({ uri }));
    expect(error.code).toBe(-32002);
    expect(error.message.length).toBeLessThan(1_000);
    expect(session.defects).toEqual([]);
  });

  test('a control character of an address comes not back', async () => {
    await using session = await Session.start();
    const error = await errorOf(session.client.readResource({ uri: 'x://\u001b[31mred' }));
    expect(error.message).toContain('x://red');
  });
});

describe('apply_style', () => {
  test.each([
    [{}, /style_name is missing/],
    [{ style_name: 'night' }, /user_request is missing/],
    [{ style_name: 'nigth', user_request: 'a cat' }, /No style is named "nigth"\. Did you mean night\?/],
    [{ style_name: '../night', user_request: 'a cat' }, /No style is named/],
    [{ style: 'night', user_request: 'a cat' }, /Unknown argument "style"\. Did you mean style_name\?/],
    [{ style_name: 'night', user_request: 'x'.repeat(8_001) }, /at most 8000 characters/],
  ])('%j', async (args, message) => {
    await using session = await Session.start();
    await session.styles.save('night', { head: {}, body: 'Dark.' }, { overwrite: false });
    const error = await errorOf(session.client.getPrompt({ name: 'apply_style', arguments: args }));
    expect(error.code).toBe(-32602);
    expect(error.message).toMatch(message);
  });

  test('another prompt there is not', async () => {
    await using session = await Session.start();
    expect((await errorOf(session.client.getPrompt({ name: 'other' }))).message).toMatch(
      /Unknown prompt "other"\. There is apply_style/,
    );
  });
});
