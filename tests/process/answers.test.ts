import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { TOOLS } from '../../bridge/mcp/tools.ts';
import type { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import { readTextChunks } from '../../shared/png-text.ts';
import { IMAGE_ANSWERS } from '../../scripts/lib/image-answers.ts';
import { eventually, TestFleet, vllm } from '../helpers/fleet.ts';

const KLEIN = 'black-forest-labs/FLUX.2-klein-4B';
const STEP1X = 'stepfun-ai/Step1X-Edit';
const SMALL = { width: 256, height: 256 };
const EDITOR = ['--load-ms', '100', '--step-ms', '5', '--weights-mib', '30000', '--peak-mib', '34000'];

let fleet: TestFleet;
let bridge: BridgeClient;
let photo: string;

beforeAll(async () => {
  fleet = await TestFleet.start([
    {
      name: 'a',
      gpuMiB: [81_559],
      models: {
        klein: { ...vllm(KLEIN, { 'step-ms': 100 }), offload_after: '5m' },
        step1x: { engine: 'step1x-edit', model: STEP1X, capabilities: ['edit'], args: EDITOR },
      },
    },
  ]);
  const { name, url, token } = fleet.host('a');
  bridge = await fleet.bridge({
    hosts: [
      { name, url, token },
      { name: 'gone', url: 'ws://127.0.0.1:9', token: 'gantry_x' },
    ],
  });
  // From then on the client holds every answer against the schema that was published for it.
  const { tools } = await bridge.client.listTools();
  expect(tools.map(({ name }) => name)).toEqual(TOOLS.map(({ name }) => name));
  photo = join(fleet.output, 'photo.png');
  await sharp({ create: { width: 64, height: 64, channels: 3, background: '#355' } })
    .png()
    .toFile(photo);
});
afterAll(() => fleet[Symbol.asyncDispose]());

const ANSWERS = new Map<string, z.ZodType>([
  ...Object.entries(IMAGE_ANSWERS),
  ...TOOLS.flatMap(({ name, output }) => (output === undefined ? [] : [[name, output] as const])),
]);

const called = new Set<string>();

/** A good answer of the tool, with no field that its schema does not know. */
async function good(name: string, args: Record<string, unknown> = {}): Promise<Record<string, unknown>> {
  called.add(name);
  const answer = await bridge.call(name, args);
  expect(answer.isError, answer.text).toBe(false);
  const schema = ANSWERS.get(name);
  expect(schema?.parse(answer.json)).toEqual(answer.json);
  return answer.json;
}

test('every tool has a schema here', () => {
  expect(TOOLS.map(({ name }) => name).filter((name) => !ANSWERS.has(name))).toEqual([]);
});

describe('tools that look', () => {
  test.each<[string, Record<string, unknown>]>([
    ['list_hosts', {}],
    ['list_models', {}],
    ['list_jobs', {}],
    ['list_jobs', { state: 'failed', limit: 1 }],
    ['get_model_info', {}],
    ['get_model_info', { model: 'step1x' }],
    ['list_presets', {}],
    ['list_presets', { model: STEP1X }],
    ['estimate_generation', {}],
    ['estimate_generation', { num_images: 50, width: 512, height: 512, num_inference_steps: 8, model: KLEIN }],
    ['estimate_generation', { model: 'step1x', width: 512 }],
    ['gpu_status', {}],
    ['gpu_status', { host: 'gone' }],
    ['server_health', {}],
    ['server_health', { host: 'a' }],
  ])('%s %j', async (name, args) => {
    await good(name, args);
  });

  test('gpu_status says when an idle model goes, and how often it came back', async () => {
    const { hosts } = z
      .object({ hosts: z.array(z.object({ host: z.string(), models: z.array(z.record(z.string(), z.unknown())) })) })
      .parse(await good('gpu_status', { host: 'a' }));
    expect(hosts[0]?.models.find(({ alias }) => alias === 'klein')).toMatchObject({
      idle_timeout: 300,
      statistics: { cpu_to_gpu: 0, gpu_to_cpu: 0 },
    });
  });
});

test('tools that move models: nothing to do, under way, done', async () => {
  await good('offload_gpu', { model: KLEIN });
  await good('load_model', { model: KLEIN, host: 'a', wait_seconds: 0 });
  await good('load_model', { model: KLEIN });
  await good('offload_gpu');
  await good('load_model', { model: 'klein' });
  await good('release_gpu', { model: KLEIN, wait_seconds: 0 });
  await good('release_gpu');
});

test('one image: done, under way, and stopped', async () => {
  await good('generate_image', { prompt: 'a fox', ...SMALL });
  const running = await good('generate_image', { prompt: 'a fox', negative_prompt: 'dogs', ...SMALL, wait_seconds: 0 });
  await good('get_job', { id: running['job_id'] });
  await good('get_job', { id: running['job_id'], wait_seconds: 45 });
  const stopped = await good('generate_image', { prompt: 'an owl', ...SMALL, wait_seconds: 0 });
  await good('cancel_batch', { batch_id: stopped['job_id'] });
  expect(await good('get_job', { id: stopped['job_id'] })).toMatchObject({ state: 'cancelled', results: [] });
});

test('an edit: done and under way', async () => {
  await good('edit_image', { image_path: photo, prompt: 'add a kite', model: STEP1X, size_level: 512 });
  const running = await good('edit_image', {
    image_path: photo,
    prompt: 'add a hat',
    model: 'step1x',
    wait_seconds: 0,
  });
  await good('get_job', { id: running['batch_id'], wait_seconds: 45 });
});

test('an edit of an image made here knows what it comes from', async () => {
  const made = await good('generate_image', { prompt: 'a fox', ...SMALL });
  const parent = made['job_id'];
  const byId = await good('edit_image', { image_path: parent, prompt: 'add a kite', model: 'step1x' });
  expect(byId['metadata']).toMatchObject({ parents: [parent] });
  const byPath = await good('batch_edit_images', {
    image_paths: [made['file_path']],
    prompts: ['a hat'],
    model: 'step1x',
  });
  expect(byPath['results']).toMatchObject([{ input: made['file_path'], result: { metadata: { parents: [parent] } } }]);
  const text = readTextChunks(await readFile(String(byId['output_path']))).find(({ keyword }) => keyword === 'gantry');
  expect(JSON.parse(text?.text ?? '{}')).toMatchObject({ request: { kind: 'edit', parents: [parent] } });
});

test('images and styles: shown, listed, saved and deleted', async () => {
  const made = await good('generate_image', { prompt: 'a heron in the reeds', ...SMALL });
  await good('get_image', { id: made['job_id'] });
  await good('get_image', { path: photo, width: 32, crop: [0, 0, 40, 40], format: 'webp', quality: 50 });
  const listed = await good('list_images', { query: 'heron', limit: 5 });
  expect(listed['images']).toMatchObject([{ id: made['job_id'], file_path: made['file_path'] }]);
  await good('save_style', { name: 'night', body: 'Dark blue, few lights.', tags: ['dark'], aspect_ratio: '16:9' });
  await good('save_style', { name: 'night', body: 'Darker.', overwrite: true });
  await good('delete_style', { name: 'night' });
});

test('a batch of edits: partial, with one that cannot be read, and under way', async () => {
  const gone = join(fleet.output, 'gone.png');
  const args = { image_paths: [photo, gone, photo], prompts: ['a', 'b', 'c'], model: 'step1x', size_level: 512 };
  const partial = await good('batch_edit_images', args);
  expect(partial).toMatchObject({
    status: 'partial',
    message: 'Processed 3 images: 2 succeeded, 1 failed',
    summary: { total: 3, successes: 2, failures: 1 },
    results: [
      { input: photo, result: { status: 'success', metadata: { prompt: 'a' } } },
      {
        input: gone,
        result: { status: 'error', error: `INPUT_INVALID: Image file not found: ${gone}. Check the path.` },
      },
      { input: photo, result: { status: 'success', metadata: { prompt: 'c' } } },
    ],
  });
  const running = await good('batch_edit_images', { ...args, prompts: ['a'], wait_seconds: 0 });
  await good('get_job', { id: running['batch_id'], wait_seconds: 45 });
  const listed = await good('list_jobs', { limit: 2 });
  expect(listed['jobs']).toMatchObject([
    { batch_id: running['batch_id'], kind: 'edit', state: 'success', total: 2 },
    {},
  ]);
});

test('a batch: done, under way, one job of it, stopped, and again', async () => {
  const done = await good('batch_generate', { prompts: ['a', 'b'], images_per_prompt: 2, seeds: [1, 2], ...SMALL });
  expect(done['images_generated']).toBe(4);
  await good('get_job', { id: done['batch_id'] });
  const args = { prompts: Array.from({ length: 6 }, (_, n) => `picture ${n}`), ...SMALL };
  const running = await good('batch_generate', { ...args, wait_seconds: 0 });
  const id = running['batch_id'];
  const one = await eventually('one is done', async () => {
    const seen = await good('get_job', { id });
    return z.array(z.object({ job_id: z.string() })).parse(seen['results'])[0];
  });
  expect(await good('get_job', { id: one.job_id })).toMatchObject({ state: 'success', queue_position: null });
  const stopped = await good('cancel_batch', { batch_id: id });
  expect(stopped['message']).toMatch(/^\d images? stopped\. \d finished images? kept\./);
  expect(await good('get_job', { id })).toMatchObject({ state: 'cancelled' });
  const again = await good('cancel_batch', { batch_id: id });
  expect(again['message']).toMatch(/^It had already ended; nothing was stopped\./);
});

test('a call whose batch somebody else stops answers what was made', async () => {
  const before = await batchIds();
  const call = good('batch_generate', { prompts: Array.from({ length: 9 }, (_, n) => `picture ${n}`), ...SMALL });
  const id = await eventually('the batch is there', async () =>
    (await batchIds()).find((name) => !before.includes(name)),
  );
  await eventually('one is done', async () => (await bridge.ask('get_job', { id }))['results']?.toString() !== '');
  await good('cancel_batch', { batch_id: id });
  expect(await call).toMatchObject({ status: 'cancelled' });
});

test('every tool was called', () => {
  expect(TOOLS.map(({ name }) => name).filter((name) => !called.has(name))).toEqual([]);
});

/** Every batch of this laptop is a directory. */
async function batchIds(): Promise<string[]> {
  return readdir(join(fleet.directory, 'laptop-0', '.local', 'state', 'gantry', 'batches'));
}
