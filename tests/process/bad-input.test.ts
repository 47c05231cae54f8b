import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import { eventually, TestFleet, vllm } from '../helpers/fleet.ts';

const MODEL = 'black-forest-labs/FLUX.2-klein-4B';
let fleet: TestFleet;
let bridge: BridgeClient;

beforeAll(async () => {
  fleet = await TestFleet.start([{ name: 'a', models: { klein: vllm(MODEL) } }]);
  bridge = await fleet.bridge();
  await mkdir(join(fleet.directory, 'text'));
  await writeFile(join(fleet.directory, 'text', 'notes.png'), 'this is not a picture');
});
afterAll(() => fleet[Symbol.asyncDispose]());

const prompts21 = Array.from({ length: 21 }, (_, index) => `prompt ${index}`);

test.each<[string, string, Record<string, unknown>, RegExp]>([
  [
    'unknown model',
    'generate_image',
    { prompt: 'x', model: 'nobody/nothing' },
    /^MODEL_UNKNOWN: .*nobody\/nothing.*FLUX\.2-klein-4B/s,
  ],
  [
    'width no multiple',
    'generate_image',
    { prompt: 'x', width: 1000 },
    /Width 1000 is not a multiple of 16\. Nearest valid width is 1008\./,
  ],
  ['empty prompt', 'generate_image', { prompt: '   ' }, /^INVALID_ARGUMENT: /],
  ['unknown argument', 'generate_image', { prompt: 'x', stepz: 4 }, /^INVALID_ARGUMENT: .*stepz/s],
  ['unknown argument names the nearest', 'generate_image', { prompt: 'x', heigth: 512 }, /heigth.*height/s],
  ['21 prompts', 'batch_generate', { prompts: prompts21 }, /^INVALID_ARGUMENT: .*20/s],
  ['no prompts', 'batch_generate', { prompts: [] }, /^INVALID_ARGUMENT: /],
  ['seeds of the wrong length', 'batch_generate', { prompts: ['a', 'b'], seeds: [1] }, /^INVALID_ARGUMENT: .*seeds/s],
  [
    'unwritable output directory',
    'generate_image',
    { prompt: 'x', output_dir: '/proc/gantry' },
    /^PATH_DENIED: .*\/proc\/gantry/s,
  ],
  [
    'wait_seconds too long',
    'get_job',
    { id: '9b2f0c1e-0000-4000-8000-000000000000', wait_seconds: 46 },
    /^INVALID_ARGUMENT: /,
  ],
  ['unknown job', 'get_job', { id: '9b2f0c1e-0000-4000-8000-000000000000' }, /^JOB_NOT_FOUND: /],
  ['unknown batch', 'cancel_batch', { batch_id: '9b2f0c1e-0000-4000-8000-000000000000' }, /^JOB_NOT_FOUND: /],
  ['unknown host', 'gpu_status', { host: 'nowhere' }, /nowhere.*\ba\b/s],
  [
    'no model can edit',
    'edit_image',
    { image_path: 'x.png', prompt: 'y' },
    /^(MODEL_UNKNOWN|INPUT_INVALID|PATH_DENIED|NO_HOST): /,
  ],
])('%s is refused with the next step and without a trace', async (_, tool, args, expected) => {
  const answer = await bridge.call(tool, args);
  expect(answer.isError).toBe(true);
  expect(answer.text).toMatch(expected);
  expect(answer.text).not.toMatch(/\n\s+at |node:internal|\.ts:\d/);
  expect(await fleet.outputFiles()).toEqual([]);
});

test('a file that is no picture is refused by its content', async () => {
  const answer = await bridge.call('edit_image', {
    image_path: join(fleet.directory, 'text', 'notes.png'),
    prompt: 'y',
    model: MODEL,
  });
  expect(answer.text).toMatch(/^INPUT_INVALID: .*notes\.png/s);
});

test('a host that is not there is named with its address and what to do', async () => {
  await using alone = await fleet.bridge({ hosts: [{ name: 'gone', url: 'ws://127.0.0.1:9', token: 'gantry_x' }] });
  const answer = await alone.call('generate_image', { prompt: 'x' });
  expect(answer.text).toMatch(/^(NO_HOST|AGENT_UNREACHABLE): .*gone.*127\.0\.0\.1:9/s);
});

test('a wrong token is told apart from an unreachable host', async () => {
  const url = fleet.host('a').url;
  await using stranger = await fleet.bridge({ hosts: [{ name: 'a', url, token: 'gantry_wrong' }] });
  const answer = await stranger.call('generate_image', { prompt: 'x' });
  expect(answer.text).toMatch(/AUTH_FAILED/);
  expect(answer.text).not.toContain('gantry_wrong');
});

test('a host whose nvidia-smi is missing says so at once, on the laptop', async () => {
  await using blind = await TestFleet.start([
    { name: 'attic', models: { klein: vllm(MODEL) }, config: { gpu: { nvidia_smi: '/nowhere/nvidia-smi' } } },
  ]);
  await using laptop = await blind.bridge();
  const health = await eventually('the agent has looked for it', async () => {
    const answer = JSON.stringify(await laptop.ask('server_health'));
    return answer.includes('degraded') ? answer : undefined;
  });
  expect(health).toMatch(/No GPU can be read: nvidia-smi was not found.*gpu\.nvidia_smi/);
  const answer = await laptop.call('generate_image', { prompt: 'x' });
  expect(answer.text).toMatch(/^NO_HOST: .*attic: has no GPU that gantry can see: .*nvidia-smi was not found/s);
});
