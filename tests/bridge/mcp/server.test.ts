import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { InMemoryTransport } from '@modelcontextprotocol/sdk/inMemory.js';
import { CallToolResultSchema, ListRootsRequestSchema } from '@modelcontextprotocol/sdk/types.js';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, realpath, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { Fleet } from '../../../bridge/fleet/fleet.ts';
import { createImages } from '../../../bridge/images/images.ts';
import { PROMPTS } from '../../../bridge/mcp/prompts.ts';
import { RESOURCES } from '../../../bridge/mcp/resources.ts';
import { ProgressReporter, SILENT_TICKS, TICK_MS } from '../../../bridge/mcp/progress.ts';
import { createServer } from '../../../bridge/mcp/server.ts';
import type { Tool, ToolContext } from '../../../bridge/mcp/tool.ts';
import { defineImageTool, defineTool, MAKES, READS } from '../../../bridge/mcp/tool.ts';
import { toolList } from '../../../bridge/mcp/tool-list.ts';
import { TOOLS } from '../../../bridge/mcp/tools.ts';
import { StyleBook } from '../../../bridge/styles/style-book.ts';
import { AppError } from '../../../shared/errors.ts';
import { createLog } from '../../../shared/log.ts';

const TIMES = {
  pingEveryMs: 15_000,
  silenceMs: 45_000,
  offerEveryMs: 2_000,
  reconnectFirstMs: 500,
  reconnectMaxMs: 30_000,
  diskCheckMs: 30_000,
};

/** The real server over a pair of in-memory pipes, with a fleet that has the given hosts. */
class Session implements AsyncDisposable {
  readonly client: Client;
  readonly fleet: Fleet;
  readonly defects: unknown[] = [];
  opened = 0;

  private constructor(client: Client, fleet: Fleet) {
    this.client = client;
    this.fleet = fleet;
  }

  static async start(
    o: {
      tools?: readonly Tool[];
      hosts?: ConstructorParameters<typeof Fleet>[0]['hosts'];
      offered?: string[];
      clientName?: string;
    } = {},
  ) {
    const log = createLog({ name: 'test', to: 'stderr', level: 'silent' });
    const fleet = new Fleet({
      hosts: o.hosts ?? [],
      bridgeId: randomUUID(),
      clientName: () => 'test',
      stateDir: home,
      times: TIMES,
      log,
    });
    const client = new Client(
      { name: o.clientName ?? 'test', version: '1' },
      { capabilities: o.offered ? { roots: {} } : {} },
    );
    if (o.offered) {
      client.setRequestHandler(ListRootsRequestSchema, () => ({
        roots: (o.offered ?? []).map((path) => ({ uri: pathToFileURL(path).href })),
      }));
    }
    const session = new Session(client, fleet);
    const server = createServer({
      version: '0.0.0',
      listTools: toolList,
      tools: async () => o.tools ?? TOOLS,
      settings: {
        outputDir: undefined,
        defaultModel: undefined,
        defaultEditModel: undefined,
        preview: 'inline',
        syncWaitMs: undefined,
      },
      roots: { home, cwd: home, configured: undefined, outputDir: undefined },
      resources: async () => RESOURCES,
      prompts: async () => PROMPTS,
      styles: async () => new StyleBook(join(home, 'styles')),
      images: async () => createImages({ stateDir: home }),
      openFleet: async () => {
        session.opened += 1;
        fleet.open();
        return fleet;
      },
      onDefect: (_, error) => session.defects.push(error),
    });
    const [ours, theirs] = InMemoryTransport.createLinkedPair();
    await server.connect(ours);
    await client.connect(theirs);
    return session;
  }

  async call(
    name: string,
    args: Record<string, unknown> = {},
  ): Promise<{ isError: boolean; text: string; structured: unknown }> {
    const result = CallToolResultSchema.parse(await this.client.callTool({ name, arguments: args }));
    const [block] = result.content;
    return {
      isError: result.isError === true,
      text: block?.type === 'text' ? block.text : '',
      structured: result.structuredContent,
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.client.close();
    await this.fleet[Symbol.asyncDispose]();
  }
}

let home: string;
beforeEach(async () => {
  home = await realpath(await mkdtemp(join(tmpdir(), 'gantry-server-')));
});
afterEach(() => rm(home, { recursive: true, force: true }));

function probe(run: (context: ToolContext) => Promise<void>): Tool {
  return defineTool({
    name: 'probe',
    title: 'Probe',
    description: 'For tests.',
    annotations: READS,
    input: z.strictObject({ text: z.string().optional() }),
    output: z.object({ text: z.string() }),
    run: async (_, context) => {
      await run(context);
      return { text: 'done' };
    },
  });
}

describe('without any host', () => {
  test.each<[string, Record<string, unknown>, RegExp]>([
    ['generate_image', { prompt: 'x' }, /^NO_HOST: No host is configured\..*bridge\.yaml/s],
    ['batch_generate', { prompts: ['x'] }, /^NO_HOST: /],
    ['list_hosts', {}, /^NO_HOST: /],
    ['list_models', {}, /^NO_HOST: /],
    ['gpu_status', {}, /^NO_HOST: /],
    ['server_health', {}, /^NO_HOST: /],
    ['get_model_info', {}, /^NO_HOST: /],
    ['list_presets', {}, /^NO_HOST: /],
    ['estimate_generation', {}, /^NO_HOST: /],
    ['batch_edit_images', { image_paths: ['~/none.png'], prompts: ['x'] }, /^NO_HOST: /],
    ['load_model', { model: 'x' }, /^NO_HOST: /],
    ['offload_gpu', {}, /^NO_HOST: /],
    ['release_gpu', {}, /^NO_HOST: /],
    ['get_job', { id: randomUUID() }, /^JOB_NOT_FOUND: .*30 days/],
    ['cancel_batch', { batch_id: randomUUID() }, /^JOB_NOT_FOUND: /],
    ['edit_image', { image_path: '~/none.png', prompt: 'x' }, /^INPUT_INVALID: Image file not found/],
    ...[randomUUID(), `image://${randomUUID()}/view`, 'ab12cd34', '8e0d0d33-3d3c-1f9f-a2ad-6d2c8ffb44f2'].map(
      (image_path): [string, Record<string, unknown>, RegExp] => [
        'edit_image',
        { image_path, prompt: 'x' },
        /^INPUT_INVALID: No finished image has the id [\w-]+\. list_images shows those there are/,
      ],
    ),
  ])('%s says what to do', async (name, args, expected) => {
    await using session = await Session.start();
    const answer = await session.call(name, args);
    expect(answer.isError).toBe(true);
    expect(answer.text).toMatch(expected);
    expect(session.defects).toEqual([]);
  });
});

describe('arguments', () => {
  test.each<[string, Record<string, unknown>, RegExp]>([
    [
      'generate_image',
      { prompt: 'x', negativePrompt: 'y' },
      /Unknown argument "negativePrompt"\. Did you mean negative_prompt\?/,
    ],
    ['generate_image', { prompt: 'x', steps: 4 }, /Did you mean num_inference_steps\?/],
    ['list_hosts', { verbose: true }, /Unknown argument "verbose"\. This tool takes none\./],
    ['generate_image', {}, /prompt is missing\./],
    ['generate_image', { prompt: 7 }, /prompt must be a string\./],
    ['generate_image', { prompt: 'x', width: 10.5 }, /width must be a whole number\./],
    ['generate_image', { prompt: 'x', seed: -1 }, /seed must be at least 0\./],
    ['generate_image', { prompt: 'x', format: 'gif' }, /format must be one of png, jpg, webp\./],
    ['generate_image', { prompt: 'x'.repeat(8_001) }, /prompt must have at most 8000 characters\./],
    ['generate_image', { prompt: 'x', wait_seconds: 46 }, /wait_seconds must be at most 45\./],
    [
      'batch_generate',
      { prompts: Array.from({ length: 21 }, () => 'x') },
      /prompts must have at most 20 entries\. Put more of them into a prompts_file\./,
    ],
    ['batch_generate', { prompts: ['x', 1] }, /prompts\[1\] must be a string\./],
    ['batch_generate', {}, /Give either prompts \(1 to 20\) or prompts_file\./],
    ['batch_generate', { prompts: ['x'], prompts_file: 'a.txt' }, /Give either prompts/],
    ['batch_generate', { prompts: ['x', 'y'], seeds: [1] }, /seeds has 1 entries but there are 2 prompts/],
    ['edit_image', { prompt: 'x' }, /Give either image_path, or image_paths/],
    [
      'batch_edit_images',
      { image_paths: ['a', 'b', 'c'], prompts: ['x', 'y'] },
      /prompts has 2 entries but there are 3 images\. Give one prompt for all, or one for each\./,
    ],
    ['batch_edit_images', { image_paths: [], prompts: ['x'] }, /image_paths must have at least 1 entry\./],
    ['batch_generate', { prompts: [] }, /prompts must have at least 1 entry\./],
    ['edit_image', { prompt: 'x', image_path: 'a', image_paths: ['b'] }, /Give either image_path/],
    [
      'generate_image',
      { width: 'x', nonsense: 1 },
      /prompt is missing\. width must be a number\..*Unknown argument "nonsense"/s,
    ],
  ])('%s %j', async (name, args, expected) => {
    await using session = await Session.start();
    const answer = await session.call(name, args);
    expect(answer.text).toMatch(/^INVALID_ARGUMENT: /);
    expect(answer.text).toMatch(expected);
    expect(session.opened, 'nothing is opened for a call that cannot work').toBe(0);
  });

  test('null is the same as left out', async () => {
    await using session = await Session.start();
    expect((await session.call('generate_image', { prompt: 'x', negative_prompt: null, seed: null })).text).toMatch(
      /^NO_HOST/,
    );
  });

  test('one text where a list of texts is asked for is a list of one', async () => {
    await using session = await Session.start();
    expect((await session.call('batch_generate', { prompts: 'a fox' })).text).toMatch(/^NO_HOST/);
    expect((await session.call('batch_generate', { prompts: ['x'], seeds: '1' })).text).toMatch(
      /seeds must be an array/,
    );
  });

  test('a path outside the allowed directories is refused before a host is asked', async () => {
    await using session = await Session.start();
    const answer = await session.call('generate_image', { prompt: 'x', output_dir: '/etc/gantry' });
    expect(answer.text).toMatch(/^PATH_DENIED: \/etc\/gantry is outside .* Allowed are .*roots/s);
    expect(session.opened).toBe(0);
  });

  test('a directory that the client offers is allowed', async () => {
    const outside = await realpath(await mkdtemp(join(tmpdir(), 'gantry-offered-')));
    try {
      await writeFile(join(outside, 'prompts.txt'), 'a fox\n');
      await using session = await Session.start({ offered: [outside] });
      expect((await session.call('batch_generate', { prompts_file: join(outside, 'prompts.txt') })).text).toMatch(
        /^NO_HOST/,
      );
      await using other = await Session.start();
      expect((await other.call('batch_generate', { prompts_file: join(outside, 'prompts.txt') })).text).toMatch(
        /^PATH_DENIED/,
      );
    } finally {
      await rm(outside, { recursive: true });
    }
  });
});

describe('failures', () => {
  test('an unknown tool is a protocol error', async () => {
    await using session = await Session.start();
    await expect(session.client.callTool({ name: 'draw' })).rejects.toThrow('Unknown tool: draw');
  });

  test('a defect is logged whole and told without its insides', async () => {
    const secret = new TypeError('cannot read /home/me/.ssh at Object.<anonymous>');
    await using session = await Session.start({ tools: [probe(() => Promise.reject(secret))] });
    const answer = await session.call('probe');
    expect(answer).toMatchObject({ isError: true });
    expect(answer.text).toMatch(/^INTERNAL: probe failed unexpectedly \(TypeError\)/);
    expect(answer.text).not.toContain('ssh');
    expect(session.defects).toEqual([secret]);
  });

  test('text of a host cannot control a terminal', async () => {
    const text = '\u001b[31mred\u001b[0m \u001b]0;title\u0007bell\u0007 \u009b2J\r\nline';
    await using session = await Session.start({
      tools: [probe(() => Promise.reject(new AppError('ENGINE_FAILED', text)))],
    });
    expect((await session.call('probe')).text).toBe('ENGINE_FAILED: red bell \nline');
  });

  test('an answer too large for clients becomes an error', async () => {
    const tool = defineImageTool({
      name: 'large',
      title: 'Large',
      description: 'For tests.',
      annotations: MAKES,
      input: z.strictObject({}),
      run: async () => ({
        sentence: 'x',
        json: {},
        previews: [{ data: 'A'.repeat(1_000_000), mimeType: 'image/jpeg' as const }],
      }),
    });
    await using session = await Session.start({ tools: [tool] });
    expect((await session.call('large')).text).toMatch(/^INTERNAL: /);
  });
});

describe('how long a call waits before it answers running', () => {
  test.each([
    ['claude-code', Infinity],
    ['Visual Studio Code', Infinity],
    ['codex-mcp-client', 270_000],
    ['gemini-cli-mcp-client', 540_000],
    ['claude-ai', 45_000],
    ['nobody knows', 45_000],
  ])('%s: %d ms', async (clientName, expected) => {
    let seen = 0;
    const tool = probe(async ({ syncWaitMs }) => void (seen = syncWaitMs));
    await using session = await Session.start({ tools: [tool], clientName });
    await session.call('probe');
    expect(seen).toBe(expected);
  });
});

describe('a call that is taken back', () => {
  test.each([
    ['McpError: MCP error -32001: Request timed out', 'left'],
    ['AbortError: This operation was aborted', 'asked'],
    [undefined, 'asked'],
  ])('because of %s means %s', async (reason, expected) => {
    const entered = new EventTarget();
    const seen: unknown[] = [];
    const tool = probe(async (context) => {
      entered.dispatchEvent(new Event('called'));
      await once(context.signal, 'abort');
      seen.push(context.cancelReason());
      entered.dispatchEvent(new Event('ended'));
    });
    await using session = await Session.start({ tools: [tool] });
    const called = once(entered, 'called');
    const ended = once(entered, 'ended');
    // Ids of the client's requests: 0 was initialize.
    const answer = session.call('probe').catch(() => undefined);
    await called;
    await session.client.notification({
      method: 'notifications/cancelled',
      params: { requestId: 1, ...(reason !== undefined && { reason }) },
    });
    await ended;
    expect(seen).toEqual([expected]);
    await session.client.close();
    await answer;
  });

  test('because the connection closed means left', async () => {
    const entered = new EventTarget();
    let seen: unknown;
    const tool = probe(async (context) => {
      entered.dispatchEvent(new Event('called'));
      await once(context.signal, 'abort');
      seen = context.cancelReason();
      entered.dispatchEvent(new Event('ended'));
    });
    await using session = await Session.start({ tools: [tool] });
    const called = once(entered, 'called');
    const ended = once(entered, 'ended');
    const answer = session.call('probe').catch(() => undefined);
    await called;
    await session.client.close();
    await ended;
    expect(seen).toBe('left');
    await answer;
  });
});

describe('progress', () => {
  test('comes within a second, and at least every 5 s however little happens', async () => {
    expect(TICK_MS).toBeLessThan(1_000);
    expect(TICK_MS * SILENT_TICKS).toBeLessThan(5_000);
    const heard = new EventTarget();
    const notes: number[] = [];
    const thrice = once(heard, '3');
    const send = async ({ progress }: { progress: number }) => {
      heard.dispatchEvent(new Event(String(notes.push(progress))));
    };
    await using reporter = new ProgressReporter(send, { tickMs: 2 });
    reporter.follow(() => ({ message: 'the same', fraction: 0.5 }));
    await thrice;
    expect(notes.slice(0, 3)).toEqual([...new Set(notes.slice(0, 3))].sort((a, b) => a - b));
    expect(notes[2]).toBeLessThan(0.51);
  });

  test('shows what a host says as one short clean line', async () => {
    const sent = new EventTarget();
    const first = once(sent, 'note');
    await using reporter = new ProgressReporter(
      async ({ message }) => {
        sent.dispatchEvent(new CustomEvent('note', { detail: message }));
      },
      { tickMs: 2 },
    );
    reporter.follow(() => ({ message: `a: \u001b[2Jloading\u0007\nIgnore ${'all '.repeat(1_000)}` }));
    const [{ detail: message }] = (await first) as [CustomEvent<string>]; // dispatched above
    expect(message).toMatch(/^a: loading Ignore all/);
    expect(message.length).toBeLessThanOrEqual(300);
  });

  test('rises strictly, and ends with the answer', async () => {
    const heard = new EventTarget();
    const notes: { progress: number; message?: string | undefined }[] = [];
    const tool = probe(async (context) => {
      for (const step of [1, 2, 3]) {
        context.progress(() => ({ message: `step ${step}/3`, fraction: step / 3 }));
        await once(heard, `step ${step}/3`);
      }
    });
    await using session = await Session.start({ tools: [tool] });
    await session.client.callTool({ name: 'probe' }, CallToolResultSchema, {
      onprogress: ({ progress, message }) => {
        notes.push({ progress, message });
        heard.dispatchEvent(new Event(message ?? ''));
      },
    });
    expect(notes.map(({ message }) => message)).toEqual(['step 1/3', 'step 2/3', 'step 3/3']);
    for (const [index, note] of notes.entries())
      expect(note.progress).toBeGreaterThan(notes[index - 1]?.progress ?? -1);
  });

  test('is not sent where nobody asked for it', async () => {
    let sent = 0;
    await using session = await Session.start({
      tools: [probe(async (context) => context.progress(() => ({ message: 'x', fraction: 0.5 })))],
    });
    session.client.fallbackNotificationHandler = async () => {
      sent += 1;
    };
    await session.call('probe');
    expect(sent).toBe(0);
  });
});

test('a host that cannot be reached is named with its address by every tool', async () => {
  await using session = await Session.start({
    hosts: [{ name: 'gone', url: 'ws://127.0.0.1:9', token: 'gantry_secret' }],
  });
  const generate = await session.call('generate_image', { prompt: 'x' });
  expect(generate.text).toMatch(/^(NO_HOST|AGENT_UNREACHABLE): .*gone.*127\.0\.0\.1:9/s);
  const hosts = await session.call('list_hosts');
  expect(hosts.isError).toBe(false);
  expect(hosts.structured).toMatchObject({
    status: 'success',
    hosts: [{ host: 'gone', address: 'ws://127.0.0.1:9', link: 'down' }],
  });
  expect(hosts.text).toContain('AGENT_UNREACHABLE');
  const health = await session.call('server_health');
  expect(health.structured).toMatchObject({ hosts: [{ host: 'gone', status: 'unreachable' }] });
  const gpus = await session.call('gpu_status', { host: 'gon' });
  expect(gpus.text).toMatch(/Unknown host 'gon'\. Did you mean gone\? Known hosts: gone\./);
  for (const answer of [generate, hosts, health, gpus]) expect(answer.text).not.toContain('gantry_secret');
});
