import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { stringify } from 'yaml';
import { problemsBy } from '../conformance/wire.ts';
import { eventually, isAlive, TestFleet, vllm } from '../helpers/fleet.ts';
import { RawBridge } from '../helpers/raw-bridge.ts';

const MODEL = 'black-forest-labs/FLUX.2-klein-4B';
const SMALL = { prompt: 'a fox', model: MODEL, width: 256, height: 256 };
/** The promise is 2 s; a busy machine gets more. */
const ENDS_WITHIN_MS = 15_000;

let fleet: TestFleet;
let homes = 0;

beforeAll(async () => {
  fleet = await TestFleet.start([{ name: 'a', models: { klein: vllm(MODEL, { 'step-ms': 100 }) } }]);
});
afterAll(() => fleet[Symbol.asyncDispose]());

/** A laptop with this bridge.yaml; nothing else is in its home. */
async function laptop(more: Record<string, unknown> = {}): Promise<{ home: string; args: string[] }> {
  const home = join(fleet.directory, `home-${(homes += 1)}`);
  await mkdir(home);
  const hosts = fleet.hosts.map(({ name, url, token }) => ({ name, url, token }));
  const config = join(fleet.directory, `bridge-${homes}.yaml`);
  await writeFile(config, stringify({ hosts, output_dir: fleet.output, roots: [fleet.directory], ...more }), {
    mode: 0o600,
  });
  return { home, args: ['--config', config] };
}

/** Every line is a message of MCP, and each answer is what its method answers. */
const RESULTS: Record<string, string> = {
  initialize: 'InitializeResult',
  'tools/list': 'ListToolsResult',
  'tools/call': 'CallToolResult',
  'resources/list': 'ListResourcesResult',
  'resources/templates/list': 'ListResourceTemplatesResult',
  'resources/read': 'ReadResourceResult',
  'prompts/list': 'ListPromptsResult',
  'prompts/get': 'GetPromptResult',
  ping: 'EmptyResult',
};

test('every line of a whole session is right by the official schema', async () => {
  const bridge = new RawBridge(await laptop());
  const problems: string[] = [];
  const ask = async (method: string, params: Record<string, unknown> = {}): Promise<void> => {
    const { result, error } = await bridge.ask(method, params);
    if (error === undefined)
      problems.push(...problemsBy(RESULTS[method] ?? '', result).map((one) => `${method}: ${one}`));
  };
  const clientInfo = { name: 'test', version: '1' };
  await ask('initialize', { protocolVersion: '2025-11-25', capabilities: {}, clientInfo });
  bridge.send({ method: 'notifications/initialized' });
  const call = (name: string, args: Record<string, unknown> = {}) =>
    ask('tools/call', { name, arguments: args, _meta: { progressToken: name } });
  for (const method of ['ping', 'tools/list', 'resources/list', 'resources/templates/list', 'prompts/list'])
    await ask(method);
  for (const name of ['server_health', 'gpu_status', 'list_hosts', 'list_models']) await call(name);
  await call('generate_image', SMALL);
  await call('batch_generate', { prompts: ['a', 'b'], model: MODEL, width: 256, height: 256 });
  await call('generate_image', { stepz: 1 });
  await call('no_such_tool');
  await ask('resources/read', { uri: 'image://nothing' });
  await ask('resources/read', { uri: 'gantry://hosts' });
  await ask('prompts/get', { name: 'nothing' });
  await ask('no/such/method');
  bridge.child.stdin.end();
  expect(await bridge.ended()).toBe(0);
  for (const line of bridge.lines) problems.push(...problemsBy('JSONRPCMessage', JSON.parse(line)));
  expect(problems).toEqual([]);
  const notes = bridge.lines.filter((line) => line.includes('notifications/progress'));
  expect(notes.length, 'progress is among them').toBeGreaterThan(0);
  for (const note of notes) expect(problemsBy('ProgressNotification', JSON.parse(note))).toEqual([]);
});

test('lines that are no requests of MCP are survived, and answered by the schema', async () => {
  const bridge = new RawBridge(await laptop());
  await bridge.initialize();
  const lines = [
    ...['', 'no json', '[]', '{', '"text"', '1e400', 'null', '{"jsonrpc":"1.0","id":1,"method":"ping"}'],
    ...['{"jsonrpc":"2.0","id":null,"method":"ping"}', '{"jsonrpc":"2.0","id":{},"method":"ping"}'],
    ...['{"jsonrpc":"2.0","id":901,"method":"ping","params":[]}', '{"jsonrpc":"2.0","method":"tools/call"}'],
    ...['{"jsonrpc":"2.0","id":902,"method":"tools/call","params":{"name":7}}', '{"jsonrpc":"2.0","id":903}'],
    ...['{"jsonrpc":"2.0","id":904,"method":"ping","id":905}', '{"jsonrpc":"2.0","id":1e400,"method":"ping"}'],
    '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":4711}}',
    '\ufeff{"jsonrpc":"2.0","id":906,"method":"ping"}',
    `{"jsonrpc":"2.0","id":907,"method":"ping","params":{"_meta":{"progressToken":0}}}\r`,
    `{"jsonrpc":"2.0","id":908,"method":"tools/call","params":{"name":"gpu_status","arguments":${'['.repeat(50_000)}${']'.repeat(50_000)}}}`,
  ];
  for (const line of lines) bridge.child.stdin.write(`${line}\n`);
  bridge.child.stdin.write(Buffer.from([0xff, 0xfe, 0x0a]));
  expect(await bridge.call('gpu_status')).toMatchObject({ result: { structuredContent: {} } });
  bridge.child.stdin.end();
  expect(await bridge.ended()).toBe(0);
  expect(bridge.lines.flatMap((line) => problemsBy('JSONRPCMessage', JSON.parse(line)))).toEqual([]);
});

describe('a client that goes away during a call', () => {
  test.each<[string, (bridge: RawBridge) => void]>([
    ['ends its input', ({ child }) => child.stdin.end()],
    ['closes the output', ({ child }) => child.stdout.destroy()],
    ['sends SIGTERM', ({ child }) => child.kill('SIGTERM')],
    ['sends SIGINT', ({ child }) => child.kill('SIGINT')],
    ['sends SIGHUP', ({ child }) => child.kill('SIGHUP')],
    ['sends a line of 11 MB', ({ child }) => child.stdin.write('x'.repeat(11 * 1024 * 1024))],
  ])('and %s: the bridge exits with 0, and the accepted job is made', async (_, leave) => {
    const host = fleet.host('a');
    const bridge = new RawBridge(await laptop());
    await bridge.initialize();
    const fromLine = host.log.length;
    void bridge.call('generate_image', SMALL, { progressToken: 1 }); // nobody is left to hear its answer
    const [accepted] = await eventually('the job is accepted', async () => {
      const jobs = host.events('job-accepted', { fromLine });
      return jobs.length > 0 ? jobs : undefined;
    });
    const startedMs = performance.now();
    leave(bridge);
    expect(await bridge.ended()).toBe(0);
    expect(performance.now() - startedMs).toBeLessThan(ENDS_WITHIN_MS);
    await eventually('it runs on to its end', async () =>
      host.events('job-done', { fromLine }).some(({ jobId }) => jobId === accepted?.['jobId']),
    );
    expect(host.events('job-cancelled', { fromLine })).toEqual([]);
  });
});

describe('a start', () => {
  test('of two at once writes nothing and opens no link; each serves its client', async () => {
    const place = await laptop();
    const host = fleet.host('a');
    const fromLine = host.log.length;
    const bridges = [new RawBridge(place), new RawBridge(place)];
    for (const bridge of bridges) {
      await bridge.ask('initialize', {
        protocolVersion: '2025-11-25',
        capabilities: {},
        clientInfo: { name: 'test', version: '1' },
      }); // never `initialized`: what waits 5 s for it cannot come in between
      for (const method of ['tools/list', 'prompts/list', 'resources/templates/list', 'ping']) await bridge.ask(method);
    }
    expect(await readdir(place.home, { recursive: true })).toEqual([]);
    expect(host.events('bridge-connected', { fromLine })).toEqual([]);
    for (const bridge of bridges) {
      expect(await bridge.call('gpu_status')).toMatchObject({ result: { structuredContent: {} } });
      bridge.child.stdin.end();
      expect(await bridge.ended()).toBe(0);
    }
    expect(host.events('bridge-connected', { fromLine })).toHaveLength(2);
  });

  test('to look only, as a client does that starts it twice, leaves nothing', async () => {
    const place = await laptop();
    const bridge = new RawBridge(place);
    // What the next client asks first; the answer sends it to `initialize`.
    expect(await bridge.ask('server/discover')).toMatchObject({ error: { code: -32601 } });
    await bridge.initialize();
    bridge.child.stdin.end();
    expect(await bridge.ended()).toBe(0);
    expect(await readdir(place.home, { recursive: true })).toEqual([]);
  });
});

test('the token is in no answer, no log and no file of a run with failures', async () => {
  const token = fleet.host('a').token;
  const place = await laptop({ log_level: 'debug' });
  const bridge = new RawBridge(place);
  await bridge.initialize();
  for (const name of ['list_hosts', 'server_health', 'gpu_status', 'list_models']) await bridge.call(name);
  await bridge.call('generate_image', SMALL);
  await bridge.call('generate_image', { ...SMALL, output_dir: '/proc/gantry' });
  await bridge.call('generate_image', { [token]: token, prompt: 'x' });
  bridge.child.stdin.end();
  await bridge.ended();
  const strange = new RawBridge(await laptop({ hosts: [{ name: 'a', url: fleet.host('a').url, token: `${token}x` }] }));
  await strange.initialize();
  await strange.call('server_health');
  strange.child.stdin.end();
  await strange.ended();
  // What the assistant itself sent comes back in the refusal; it is the client's own text.
  const said = [...bridge.lines.filter((line) => !line.includes('Unknown argument')), ...strange.lines];
  const logs = [bridge.stderr, strange.stderr, ...fleet.host('a').log];
  const files = await filesBelow([place.home, fleet.output, join(fleet.host('a').directory, 'state')]);
  for (const [what, text] of [['answers', said.join('\n')], ['logs', logs.join('\n')], ...files] as const)
    expect(text.includes(token), `the token in ${what}`).toBe(false);
});

test('a dead host leaves no process behind when the bridge ends', async () => {
  const bridge = new RawBridge(await laptop({ hosts: [{ name: 'gone', url: 'ws://127.0.0.1:9', token: 'gantry_x' }] }));
  await bridge.initialize();
  await bridge.call('server_health');
  bridge.child.stdin.end();
  expect(await bridge.ended()).toBe(0);
  expect(await isAlive(bridge.child.pid ?? 0)).toBe(false);
});

async function filesBelow(directories: readonly string[]): Promise<[string, string][]> {
  const found: [string, string][] = [];
  for (const directory of directories) {
    for (const entry of await readdir(directory, { recursive: true, withFileTypes: true })) {
      const path = join(entry.parentPath, entry.name);
      if (entry.isFile()) found.push([path, await readFile(path, 'latin1')]);
    }
  }
  return found;
}
