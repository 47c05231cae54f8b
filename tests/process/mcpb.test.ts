import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { stringify } from 'yaml';
import { layOutMcpb } from '../../scripts/build/mcpb.mjs';
import { problemsBy } from '../conformance/wire.ts';
import { TestFleet, vllm } from '../helpers/fleet.ts';
import { RawBridge } from '../helpers/raw-bridge.ts';

const MODEL = 'black-forest-labs/FLUX.2-klein-4B';
const SMALL = { model: MODEL, width: 256, height: 256 };

type Block = { type: string; text?: string; mimeType?: string };
type Result = { content: Block[]; isError?: boolean };

let fleet: TestFleet;
/** What a client unpacked, where no package of ours is in reach. */
let unpacked: string;
let bridge: RawBridge;

beforeAll(async () => {
  fleet = await TestFleet.start([{ name: 'a', models: { klein: vllm(MODEL) } }]);
  unpacked = await mkdtemp(join(tmpdir(), 'gantry-unpacked-'));
  await layOutMcpb(unpacked);
  const home = join(unpacked, 'home');
  const config = join(home, '.config', 'gantry');
  await mkdir(config, { recursive: true });
  const hosts = fleet.hosts.map(({ name, url, token }) => ({ name, url, token }));
  await writeFile(join(config, 'bridge.yaml'), stringify({ hosts, roots: [fleet.directory] }), { mode: 0o600 });
  bridge = new RawBridge({
    home,
    program: join(unpacked, 'server', 'gantry.cjs'),
    // As a client sets it whose user chose a folder and left the hosts empty.
    env: { GANTRY_OUTPUT_DIR: fleet.output, GANTRY_HOSTS: '${user_config.hosts}' },
  });
  await bridge.initialize();
});
afterAll(async () => {
  bridge.child.stdin.end();
  expect(await bridge.ended()).toBe(0);
  await rm(unpacked, { recursive: true, force: true });
  await fleet[Symbol.asyncDispose]();
});

async function call(
  name: string,
  args: Record<string, unknown>,
): Promise<{ json: Record<string, unknown>; result: Result }> {
  const answer = await bridge.call(name, args);
  expect(problemsBy('CallToolResult', answer.result)).toEqual([]);
  const result = answer.result as Result; // as the line above says
  const text = result.content[0]?.text ?? '';
  expect(result.isError, text).not.toBe(true);
  return { json: JSON.parse(text.slice(text.indexOf('{'))) as Record<string, unknown>, result };
}

test('the bundle lists its tools and makes an image with its preview, without any package beside it', async () => {
  const { result } = await bridge.ask('tools/list');
  expect(problemsBy('ListToolsResult', result)).toEqual([]);
  const made = await call('generate_image', { ...SMALL, prompt: 'a fox' });
  expect(String(made.json['file_path']).startsWith(fleet.output)).toBe(true);
  expect(made.result.content).toContainEqual(expect.objectContaining({ type: 'image', mimeType: 'image/jpeg' }));
});

test('what needs sharp answers what was stored, and says so', async () => {
  const prompts = Array.from({ length: 6 }, (_, index) => `picture ${index}`);
  const batch = await call('batch_generate', { ...SMALL, prompts });
  expect(batch.json).toMatchObject({ status: 'success', images_generated: 6 });
  const previews = batch.result.content.filter(({ type }) => type === 'image');
  expect(previews, 'the first four in place of one sheet').toHaveLength(4);
  const { json } = await call('generate_image', { ...SMALL, prompt: 'a fox' });
  const shown = await call('get_image', { path: json['file_path'], width: 64 });
  expect(shown.result.content).toContainEqual(expect.objectContaining({ type: 'image', mimeType: 'image/jpeg' }));
  expect(JSON.stringify(shown.json)).toMatch(/sharp/);
});
