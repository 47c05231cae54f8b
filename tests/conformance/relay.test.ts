import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { CreateMessageRequestSchema, LoggingMessageNotificationSchema } from '@modelcontextprotocol/sdk/types.js';
import type { ChildProcessByStdio } from 'node:child_process';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { buildConformanceServer } from '../../scripts/judge/conformance-server.mjs';

let directory: string;
let relay: ChildProcessByStdio<Writable, Readable, null>;
let url: URL;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'gantry-relay-'));
  const program = await buildConformanceServer(join(directory, 'server.cjs'));
  relay = spawn(process.execPath, ['tests/conformance/relay.mjs', '0', process.execPath, program], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const [line] = (await once(createInterface({ input: relay.stdout }), 'line')) as [string];
  url = new URL(line);
}, 60_000);

afterAll(async () => {
  relay.stdin.end(); // as when the judge ends
  await once(relay, 'exit');
  await rm(directory, { recursive: true, force: true });
});

/** The status and the error code of a bare request. */
async function post(headers: Record<string, string>): Promise<{ status: number; code: number }> {
  const asked = request(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    agent: false,
  });
  asked.end('{"jsonrpc":"2.0","id":1,"method":"ping"}');
  const [response] = (await once(asked, 'response')) as [Readable & { statusCode: number }];
  let text = '';
  for await (const piece of response) text += String(piece);
  return { status: response.statusCode, code: (JSON.parse(text) as { error: { code: number } }).error.code };
}

test.each([
  ['a host of another name', { host: 'evil.example' }],
  ['a page of another site', { origin: 'https://evil.example' }],
  ['an origin that is none', { origin: 'null' }],
])('%s is refused', async (_, headers) => {
  expect(await post(headers)).toMatchObject({ status: 403 });
});

test('an unknown session is told so', async () => {
  expect(await post({ 'mcp-session-id': 'none' })).toEqual({ status: 404, code: -32001 });
});

test('a session carries answers, progress, log lines and questions to the client', async () => {
  const client = new Client({ name: 'test', version: '1' }, { capabilities: { sampling: {} } });
  const logged: unknown[] = [];
  client.setNotificationHandler(LoggingMessageNotificationSchema, ({ params }) => void logged.push(params.data));
  client.setRequestHandler(CreateMessageRequestSchema, () => ({
    model: 'm',
    role: 'assistant',
    content: { type: 'text', text: 'a model said this' },
  }));
  // The SDK's own types disagree about an optional property.
  await client.connect(new StreamableHTTPClientTransport(url));
  const told: number[] = [];
  await client.callTool({ name: 'test_tool_with_progress', arguments: {} }, undefined, {
    onprogress: ({ progress }) => told.push(progress),
  });
  expect(told.length).toBeGreaterThanOrEqual(3);
  expect(told).toEqual([...told].sort((a, b) => a - b));
  await client.callTool({ name: 'test_tool_with_logging', arguments: {} });
  expect(logged).toHaveLength(3);
  const asked = await client.callTool({ name: 'test_sampling', arguments: { prompt: 'x' } });
  expect(JSON.stringify(asked.content)).toContain('a model said this');
  expect(await client.callTool({ name: 'test_error_handling', arguments: {} })).toMatchObject({ isError: true });
  expect((await client.readResource({ uri: 'test://template/123/data' })).contents).toMatchObject([
    { mimeType: 'application/json' },
  ]);
  await client.close();
}, 60_000);
