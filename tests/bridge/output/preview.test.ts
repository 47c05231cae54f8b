import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import sharp from 'sharp';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { contactSheet } from '../../../bridge/output/contact-sheet.ts';
import { previewsOf } from '../../../bridge/output/preview.ts';

let directory: string;
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'gantry-preview-'));
});
afterAll(() => rm(directory, { recursive: true, force: true }));

async function files(
  count: number,
  side: number,
  options: { noise?: boolean; format?: 'jpeg' | 'png' } = {},
): Promise<string[]> {
  const picture = sharp(
    options.noise
      ? {
          create: {
            width: side,
            height: side,
            channels: 3,
            background: '#000',
            noise: { type: 'gaussian', mean: 128, sigma: 60 },
          },
        }
      : { create: { width: side, height: side, channels: 3, background: '#357' } },
  );
  const content = await picture.toFormat(options.format ?? 'jpeg').toBuffer();
  const paths = Array.from({ length: count }, (_, index) => join(directory, `${side}-${count}-${index}.jpg`));
  await Promise.all(paths.map((path) => writeFile(path, content)));
  return paths;
}

async function sizeOf({ data }: { data: string }) {
  const { width = 0, height = 0, format } = await sharp(Buffer.from(data, 'base64')).metadata();
  return { width, height, format };
}

test.each([1, 3, 4])('%i small previews are shown as they are', async (count) => {
  const { previews, notes } = await previewsOf(await files(count, 256));
  expect(previews).toHaveLength(count);
  expect(notes).toEqual([]);
});

test.each([5, 12, 100])('%i become one sheet of at most 1024 pixels', async (count) => {
  const { previews, notes } = await previewsOf(await files(count, 64));
  expect(previews).toHaveLength(1);
  const [sheet = { data: '' }] = previews;
  const { width, height, format } = await sizeOf(sheet);
  expect(Math.max(width, height)).toBeLessThanOrEqual(1024);
  expect(format).toBe('jpeg');
  expect(notes[0]).toMatch(/contact sheet/);
});

test('four large ones become a sheet within the budget', async () => {
  const { previews } = await previewsOf(await files(4, 1024, { noise: true }));
  expect(previews).toHaveLength(1);
  expect(previews[0]?.data.length).toBeLessThanOrEqual(300 * 1024);
});

test('one that is too large, or an original, is made smaller', async () => {
  for (const path of [await files(1, 2000, { noise: true }), await files(1, 300, { format: 'png' })]) {
    const { previews } = await previewsOf(path);
    expect(previews).toHaveLength(1);
    const [one = { data: '' }] = previews;
    expect(one.data.length).toBeLessThanOrEqual(300 * 1024);
    expect((await sizeOf(one)).format).toBe('jpeg');
  }
});

test('files that are gone, or are none, leave an answer without preview', async () => {
  expect((await previewsOf([join(directory, 'gone.jpg')])).previews).toEqual([]);
  await writeFile(join(directory, 'text.jpg'), 'no picture');
  expect((await previewsOf([join(directory, 'text.jpg')])).previews).toEqual([]);
});

test('a sheet can also be a PNG', async () => {
  const sheet = await contactSheet(await files(3, 90), { side: 500, format: 'png' });
  expect((await sharp(sheet).metadata()).format).toBe('png');
});
