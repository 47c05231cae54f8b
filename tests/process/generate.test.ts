import { readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import sharp from 'sharp';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { readTextChunks } from '../../shared/png-text.ts';
import type { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import { STEP1X_EDIT, TestFleet, vllm } from '../helpers/fleet.ts';

const MODEL = 'Tongyi-MAI/Z-Image-Turbo';
const SMALL = { model: MODEL, width: 256, height: 256 };

let fleet: TestFleet;
let bridge: BridgeClient;

beforeAll(async () => {
  fleet = await TestFleet.start([{ name: 'a', gpuMiB: [81_559], models: { z: vllm(MODEL), step1x: STEP1X_EDIT } }]);
  bridge = await fleet.bridge();
});
afterAll(() => fleet[Symbol.asyncDispose]());

test('an image is generated, saved whole with its parameters in the file, and shown as a small preview', async () => {
  const answer = await bridge.call('generate_image', { prompt: 'a red fox', seed: 42, ...SMALL });
  expect(answer.json, answer.text).toMatchObject({
    status: 'success',
    host: 'a',
    parameters_used: {
      model: MODEL,
      prompt: 'a red fox',
      width: 256,
      height: 256,
      steps: 9,
      guidance_scale: 0,
      seed: 42,
    },
  });
  const image = await readFile(String(answer.json['file_path']));
  expect(await sharp(image).metadata()).toMatchObject({ format: 'png', width: 256, height: 256 });
  const chunks = Object.fromEntries(readTextChunks(image).map(({ keyword, text }) => [keyword, text]));
  expect(chunks['parameters']).toContain('Seed: 42');
  expect(chunks['gantry']).toContain('"simulated":true');
  expect(answer.images).toHaveLength(1);
  expect(answer.images[0]?.mimeType).toBe('image/jpeg');
  expect(await fleet.outputFiles()).toHaveLength(1);
});

test('the same name is never overwritten, and an existing file of the user stays as it is', async () => {
  await writeFile(join(fleet.output, 'fox.png'), 'mine');
  const first = await bridge.ask('generate_image', { prompt: 'a fox', filename: 'fox.png', ...SMALL });
  const second = await bridge.ask('generate_image', { prompt: 'a fox', filename: 'fox.png', ...SMALL });
  expect(new Set([first['file_path'], second['file_path']]).size).toBe(2);
  expect(await readFile(join(fleet.output, 'fox.png'), 'utf8')).toBe('mine');
  expect((await stat(String(second['file_path']))).size).toBeGreaterThan(1_000);
});

test.each(['jpg', 'webp'])('the format %s is the one that was asked for', async (format) => {
  const answer = await bridge.ask('generate_image', { prompt: 'a fox', format, ...SMALL });
  const path = String(answer['file_path']);
  expect(path).toMatch(new RegExp(`\\.${format}$`));
  expect((await sharp(path).metadata()).format).toBe(format === 'jpg' ? 'jpeg' : format);
});

test('the lines of a prompts file may each have a size and a seed; the longest is made first', async () => {
  const lines = [
    { prompt: 'a small fox' },
    { prompt: 'a large fox', width: 512, height: 384, seed: 7 },
    { prompt: 'a middle fox', height: 320, id: 'mine' },
  ];
  const path = join(fleet.directory, 'foxes.jsonl');
  await writeFile(path, lines.map((line) => JSON.stringify(line)).join('\n'));
  const answer = await bridge.ask('batch_generate', { prompts_file: path, ...SMALL, preview: 'none' });
  expect(answer['notes'], JSON.stringify(answer)).toEqual([expect.stringMatching(/says as id was ignored/)]);
  const results = answer['results'] as { file_path: string; seed: number }[]; // shape of the tool's answer
  const sizes = await Promise.all(results.map(async (one) => sharp(one.file_path).metadata()));
  expect(sizes.map(({ width, height }) => `${width}x${height}`)).toEqual(['256x256', '512x384', '256x320']);
  expect(results[1]?.seed).toBe(7);
  const writtenMs = await Promise.all(results.map(async (one) => (await stat(one.file_path)).mtimeMs));
  expect(Math.min(...writtenMs)).toBe(writtenMs[1]);
});

test('an edit takes a picture from disk and leaves the original alone', async () => {
  const original = join(fleet.output, 'photo.jpg');
  await sharp({ create: { width: 320, height: 200, channels: 3, background: '#355' } })
    .jpeg()
    .toFile(original);
  const before = await readFile(original);
  const answer = await bridge.call('edit_image', {
    image_path: original,
    prompt: 'add a kite',
    seed: 5,
    size_level: 512,
  });
  expect(answer.json, answer.text).toMatchObject({
    status: 'success',
    host: 'a',
    metadata: { num_steps: 28, guidance_scale: 6, size_level: 512, seed: 5 },
  });
  expect(await sharp(String(answer.json['output_path'])).metadata()).toMatchObject({ width: 320, height: 200 });
  expect(await readFile(original)).toEqual(before);
});
