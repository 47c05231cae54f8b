import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { CallToolResultSchema, ErrorCode, McpError } from '@modelcontextprotocol/sdk/types.js';
import { randomUUID } from 'node:crypto';
import { cp, mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import { readTextChunks } from '../../shared/png-text.ts';
import { STEP1X_EDIT, TestFleet, vllm } from '../helpers/fleet.ts';

const MODEL = 'Tongyi-MAI/Z-Image-Turbo';
const SMALL = { model: MODEL, width: 256, height: 192 };

let fleet: TestFleet;
let bridge: BridgeClient;
/** The generated image, then the one that was edited from it by its id. */
let made: { id: string; path: string };
let edited: { id: string; path: string };

beforeAll(async () => {
  fleet = await TestFleet.start([{ name: 'a', gpuMiB: [81_559], models: { z: vllm(MODEL), step1x: STEP1X_EDIT } }]);
  bridge = await fleet.bridge();
  const first = await bridge.ask('generate_image', { prompt: 'a red fox in the snow', seed: 42, ...SMALL });
  made = { id: await newestId(), path: String(first['file_path']) };
  const second = await bridge.ask('edit_image', {
    image_path: made.id,
    prompt: 'add a kite',
    seed: 5,
    size_level: 512,
  });
  edited = { id: await newestId(), path: String(second['output_path']) };
}, 120_000);
afterAll(() => fleet[Symbol.asyncDispose]());

async function newestId(): Promise<string> {
  const { images } = await bridge.ask('list_images', { limit: 1 });
  return String((images as { id: string }[])[0]?.id); // shape of the tool's answer
}

async function readJson(uri: string, client = bridge): Promise<Record<string, unknown>> {
  const { contents } = await client.client.readResource({ uri });
  const [first] = contents;
  expect(first).toMatchObject({ uri, mimeType: 'application/json' });
  return JSON.parse(first !== undefined && 'text' in first ? first.text : '') as Record<string, unknown>;
}

async function readBlob(uri: string): Promise<{ mimeType: string | undefined; bytes: Buffer }> {
  const { contents } = await bridge.client.readResource({ uri });
  const [first] = contents;
  return {
    mimeType: first?.mimeType,
    bytes: Buffer.from(first !== undefined && 'blob' in first ? first.blob : '', 'base64'),
  };
}

async function refusal(uri: string): Promise<McpError> {
  const error: unknown = await bridge.client.readResource({ uri }).catch((one: unknown) => one);
  if (!(error instanceof McpError)) throw new Error(`${uri} was not refused`);
  return error;
}

describe('resources', () => {
  test('are listed: images, styles, hosts, and the newest images themselves', async () => {
    const { resources } = await bridge.client.listResources();
    expect(resources.map(({ uri }) => uri)).toEqual([
      'image://list',
      'style://list',
      'gantry://hosts',
      `image://${edited.id}/view`,
      `image://${made.id}/view`,
    ]);
    const { resourceTemplates } = await bridge.client.listResourceTemplates();
    expect(resourceTemplates.map(({ uriTemplate }) => uriTemplate)).toEqual([
      'image://{id}/view{?format,width,height,crop_x,crop_y,crop_w,crop_h,quality}',
      'image://{id}/metadata',
      'style://{name}',
      'gantry://jobs/{id}',
    ]);
  });

  test('image://list has both, newest first', async () => {
    const { images } = await readJson('image://list');
    expect(images).toMatchObject([
      { id: edited.id, file_path: edited.path, kind: 'edit', host: 'a' },
      { id: made.id, file_path: made.path, kind: 'generate', seed: 42, prompt: 'a red fox in the snow' },
    ]);
  });

  test('metadata of an edit names the image it came from', async () => {
    const { parents, prompt, seed } = await readJson(`image://${edited.id}/metadata`);
    expect({ prompt, seed }).toEqual({ prompt: 'add a kite', seed: 5 });
    const original = await readJson(`image://${made.id}/metadata`);
    expect(parents).toEqual([{ id: made.id, path: made.path, sha256: original['sha256'] }]);
    expect(original).toMatchObject({ id: made.id, model: MODEL, width: 256, height: 192, host: 'a', parents: [] });
  });

  test('the file says the same of itself: the id, and the image it came from', async () => {
    const chunks = readTextChunks(await readFile(edited.path));
    const own = JSON.parse(chunks.find(({ keyword }) => keyword === 'gantry')?.text ?? '{}') as Record<string, unknown>;
    expect(own).toMatchObject({
      jobId: edited.id,
      request: { parents: [made.id], seed: 5 },
      hostname: expect.any(String) as string,
    });
  });

  test('a view is scaled, cut and converted as its address says', async () => {
    const view = await readBlob(`image://${made.id}/view?format=webp&width=64&crop_x=16&crop_y=8&crop_w=128&crop_h=64`);
    expect(view.mimeType).toBe('image/webp');
    expect(await sharp(view.bytes).metadata()).toMatchObject({ format: 'webp', width: 64, height: 32 });
    const plain = await readBlob(`image://${made.id}/view`);
    expect(plain.mimeType).toBe('image/jpeg');
    expect(await sharp(plain.bytes).metadata()).toMatchObject({ format: 'jpeg', width: 256, height: 192 });
  });

  test('hosts and jobs', async () => {
    expect(await readJson('gantry://hosts')).toMatchObject({ hosts: [{ host: 'a', link: 'up' }] });
    expect(await readJson(`gantry://jobs/${made.id}`)).toMatchObject({ job_id: made.id, state: 'done' });
  });

  test.each([
    ['image://nonsense', /No resource has the address.*image:\/\/list/],
    [`image://${randomUUID()}/view`, /No finished image has the id/],
    [`image://../../etc/passwd/view`, /No resource has the address/],
    ['style://../secret', /No resource has the address/],
    [`gantry://jobs/${randomUUID()}`, /No job or batch has this id/],
    ['file:///etc/passwd', /No resource has the address/],
    ['', /No resource has the address/],
  ])('%s is not found', async (uri, sentence) => {
    const error = await refusal(uri);
    expect(error.code).toBe(-32002);
    expect(error.message).toMatch(sentence);
    expect(error.message).not.toMatch(/\n\s+at /);
  });

  test('a wrong parameter is refused with the nearest right one', async () => {
    const error = await refusal(`image://${made.id}/view?widht=3`);
    expect(error.code).toBe(ErrorCode.InvalidParams);
    expect(error.message).toMatch(/Unknown parameter "widht"\. Did you mean width\?/);
  });
});

describe('tools', () => {
  test('get_image shows an image by id and by path, and says how it was made', async () => {
    const byId = await bridge.call('get_image', { id: made.id, width: 100, crop: [0, 0, 128, 128] });
    expect(byId.json, byId.text).toMatchObject({
      id: made.id,
      file_path: made.path,
      seed: 42,
      shown: { width: 100, height: 100 },
    });
    expect(byId.images).toHaveLength(1);
    const byPath = await bridge.call('get_image', { path: edited.path, format: 'png' });
    expect(byPath.json, byPath.text).toMatchObject({ id: edited.id, parents: [{ id: made.id }] });
    expect(byPath.images[0]?.mimeType).toBe('image/png');
  });

  test('list_images finds words of a prompt in any order', async () => {
    const { images } = await bridge.ask('list_images', { query: 'SNOW fox' });
    expect(images).toMatchObject([{ id: made.id }]);
    expect((await bridge.ask('list_images', { query: 'snow bear' }))['images']).toEqual([]);
    expect((await bridge.ask('list_images', { model: 'step1x' }))['images']).toMatchObject([{ id: edited.id }]);
  });

  test.each([
    ['get_image', {}, /Give either id/],
    ['get_image', { id: 'x', path: 'y' }, /Give either id/],
    ['get_image', { id: randomUUID() }, /No finished image has the id/],
    ['get_image', { path: '/etc/passwd' }, /outside the allowed directories/],
    ['get_image', { path: 'bridge.yaml' }, /it is not an image/],
    ['save_style', { name: '../evil', body: 'x' }, /cannot be the name of a style.*Use evil\./],
  ])('%s %j is refused', async (name, args, sentence) => {
    const answer = await bridge.call(name, args);
    expect(answer.isError).toBe(true);
    expect(answer.text).toMatch(sentence);
  });
});

describe('styles', () => {
  test('are saved, read, applied and deleted', async () => {
    const saved = await bridge.ask('save_style', {
      name: 'cyberpunk-night',
      body: 'Neon on wet streets.',
      tags: ['neon'],
      aspect_ratio: '16:9',
    });
    expect(saved).toMatchObject({ status: 'success' });
    const { contents } = await bridge.client.readResource({ uri: 'style://cyberpunk-night' });
    expect(contents).toMatchObject([
      { mimeType: 'text/markdown', text: await readFile(String(saved['file_path']), 'utf8') },
    ]);
    const again = await bridge.call('save_style', { name: 'cyberpunk-night', body: 'Other.' });
    expect(again.text).toMatch(/exists already.*overwrite/);
    const { prompts } = await bridge.client.listPrompts();
    expect(prompts).toMatchObject([{ name: 'apply_style' }]);
    const prompt = await bridge.client.getPrompt({
      name: 'apply_style',
      arguments: { style_name: 'cyberpunk-night', user_request: 'a cat' },
    });
    expect(JSON.stringify(prompt.messages)).toMatch(/a cat.*aspect_ratio 16:9.*Neon on wet streets/);
    await bridge.ask('delete_style', { name: 'cyberpunk-night' });
    expect(await readJson('style://list')).toEqual({ styles: [] });
  });
});

describe('what is shown', () => {
  test('more than four images come as one sheet, and the whole answer fits', async () => {
    const prompts = Array.from({ length: 6 }, (_, index) => `fox ${index}`);
    const answer = await bridge.call('batch_generate', { prompts, ...SMALL });
    expect(answer.images).toHaveLength(1);
    expect(answer.text).toMatch(/contact sheet of 6 of 6 images/);
    expect(answer.text.length + (answer.images[0]?.base64Bytes ?? 0)).toBeLessThan(700_000);
  });

  test('without sharp the stored preview is shown, and the answer says so', async () => {
    const bare = join(fleet.directory, 'bare');
    await cp('dist', join(bare, 'dist'), { recursive: true });
    const transport = new StdioClientTransport({
      command: process.execPath,
      args: [join(bare, 'dist/gantry.cjs'), 'bridge', '--config', join(fleet.directory, 'laptop-0/bridge.yaml')],
      env: { PATH: process.env['PATH'] ?? '', HOME: join(fleet.directory, 'laptop-0') },
      cwd: bare,
    });
    const client = new Client({ name: 'bare', version: '1' });
    await client.connect(transport);
    try {
      const shown = CallToolResultSchema.parse(
        await client.callTool({ name: 'get_image', arguments: { id: made.id, width: 8 } }),
      );
      expect(shown.content).toMatchObject([
        { text: expect.stringMatching(/the stored preview.*no sharp/s) as string },
        { mimeType: 'image/jpeg' },
      ]);
      const read = await client.readResource({ uri: `image://${made.id}/view?width=8` });
      expect(read.contents).toMatchObject([
        { mimeType: 'image/jpeg', _meta: { 'gantry/shown': 'the stored preview' } },
      ]);
      const many = await client.callTool({
        name: 'batch_generate',
        arguments: { prompts: ['1', '2', '3', '4', '5'], ...SMALL },
      });
      expect(CallToolResultSchema.parse(many).content.filter(({ type }) => type === 'image')).toHaveLength(4);
    } finally {
      await client.close();
    }
  });

  test('a JPEG, which has no room for text, has it in a file beside it', async () => {
    const answer = await bridge.ask('generate_image', {
      prompt: 'a fox',
      seed: 3,
      format: 'jpg',
      filename: 'side',
      ...SMALL,
    });
    const path = String(answer['file_path']);
    expect(JSON.parse(await readFile(`${path}.json`, 'utf8'))).toMatchObject({
      version: 1,
      host: 'a',
      request: { prompt: 'a fox', seed: 3 },
    });
    await using other = await fleet.bridge({ side_car: false });
    const without = await other.ask('generate_image', { prompt: 'a fox', format: 'webp', filename: 'side', ...SMALL });
    await expect(readFile(`${String(without['file_path'])}.json`)).rejects.toThrow(/ENOENT/);
  });
});

describe('what outlives', () => {
  test('another bridge knows the images, also when the batches are gone, and finds a file that was renamed', async () => {
    const home = 'laptop-0';
    const batches = join(fleet.directory, home, '.local/state/gantry/batches');
    for (const name of await readdir(batches)) await rm(join(batches, name), { recursive: true });
    await using second = await fleet.bridge({}, home);
    const renamed = join(fleet.output, 'fox of the year.png');
    await rename(made.path, renamed);
    expect((await second.ask('list_images', { query: 'red fox snow' }))['images']).toMatchObject([
      { id: made.id, missing: true },
    ]);
    expect(await readJson(`image://${made.id}/metadata`, second)).toMatchObject({
      file_path: renamed,
      moved_from: made.path,
    });
    const edit = await second.ask('edit_image', { image_path: made.id, prompt: 'add a hat', seed: 6, size_level: 512 });
    expect(edit).toMatchObject({ status: 'success' });
    await mkdir(join(fleet.directory, 'elsewhere'));
    await rename(renamed, join(fleet.directory, 'elsewhere', basename(renamed)));
    expect(await readJson(`image://${made.id}/metadata`, second)).toMatchObject({ missing: true });
    const gone = await second.call('get_image', { id: made.id });
    expect(gone.text).toMatch(/is not at .* any more/);
  });

  test('a picture of the user that changed under the same path is shown as it is now, and said to be', async () => {
    await writeFile(
      edited.path,
      await sharp({ create: { width: 9, height: 9, channels: 3, background: '#fff' } })
        .png()
        .toBuffer(),
    );
    const answer = await bridge.call('get_image', { id: edited.id });
    expect(JSON.stringify(answer.json['notes'])).toMatch(/was changed since it was made/);
  });
});
