import { createHash } from 'node:crypto';
import { mkdtemp, rm, symlink, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import sharp from 'sharp';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { readInputImage } from '../../../bridge/output/input-image.ts';

let directory: string;
const picture = sharp({ create: { width: 8, height: 8, channels: 3, background: '#a53' } });

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'gantry-input-'));
});
afterAll(() => rm(directory, { recursive: true, force: true }));

async function file(name: string, content: Buffer | string): Promise<string> {
  const path = join(directory, name);
  await writeFile(path, content);
  return path;
}

test.each(['png', 'jpeg', 'webp'] as const)('a %s is read by its bytes, whatever its name', async (kind) => {
  const content = await picture.clone().toFormat(kind).toBuffer();
  const path = await file(`${kind}.txt`, content);
  expect(await readInputImage(path)).toEqual({
    path,
    sha256: createHash('sha256').update(content).digest('hex'),
    bytes: content.length,
    format: kind === 'jpeg' ? 'jpg' : kind,
  });
});

test.each<[string, Buffer | string, RegExp]>([
  ['photo.png', Buffer.from('\0\0\0\x18ftypheic\0\0\0\0', 'latin1'), /HEIC.*Export it as PNG, JPEG or WebP/],
  ['photo.heic', Buffer.from('\0\0\0\x18ftypmif1\0\0\0\0', 'latin1'), /HEIC/],
  ['a.png', 'GIF89a......', /GIF/],
  ['b.png', '<svg xmlns="http://www.w3.org/2000/svg"/>', /SVG/],
  ['c.png', 'II*\0........', /TIFF/],
  ['id_rsa', '-----BEGIN OPENSSH PRIVATE KEY-----', /is not an image/],
  ['empty.png', '', /is not an image/],
])('%s is refused by its content', async (name, content, why) => {
  const path = await file(name, content);
  const failing = readInputImage(path);
  await expect(failing).rejects.toMatchObject({ code: 'INPUT_INVALID' });
  await expect(failing).rejects.toThrow(why);
});

test('a file above the limit is refused unread', async () => {
  const path = await file('large.png', '');
  await truncate(path, 32 * 1024 ** 2 + 1);
  const failing = readInputImage(path);
  await expect(failing).rejects.toMatchObject({ code: 'INPUT_INVALID' });
  await expect(failing).rejects.toThrow(/32 MiB/);
});

test('what is missing, a directory, or a link put there after the check is refused', async () => {
  await expect(readInputImage(join(directory, 'nowhere.png'))).rejects.toThrow('Image file not found');
  await expect(readInputImage(directory)).rejects.toMatchObject({ code: 'INPUT_INVALID' });
  const target = await file('real.png', await picture.clone().png().toBuffer());
  await symlink(target, join(directory, 'link.png'));
  await expect(readInputImage(join(directory, 'link.png'))).rejects.toMatchObject({ code: 'INPUT_INVALID' });
});
