import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { ImageEntry } from '../../../bridge/images/image-entry.ts';
import { locate } from '../../../bridge/images/located.ts';
import { entry } from './builders.ts';

let directory: string;
let image: ImageEntry;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'gantry-located-'));
  const path = join(directory, 'fox.png');
  await writeFile(path, '0123456789');
  image = entry({ path, sha256: createHash('sha256').update('0123456789').digest('hex') });
});
afterEach(() => rm(directory, { recursive: true, force: true }));

test('where it was saved', async () => {
  expect(await locate(image, [])).toEqual({ kind: 'there', path: image.path });
});

test('under another name beside its old place', async () => {
  await writeFile(join(directory, 'a.png'), '9876543210'); // as large, and another
  await rename(image.path, join(directory, 'z.png'));
  expect(await locate(image, [])).toEqual({ kind: 'moved', path: join(directory, 'z.png') });
});

test('in the directory where images go, and nowhere below', async () => {
  const out = join(directory, 'out');
  await mkdir(join(out, 'deep'), { recursive: true });
  await rename(image.path, join(out, 'deep', 'fox.png'));
  expect(await locate(image, [out])).toEqual({ kind: 'missing' });
  await rename(join(out, 'deep', 'fox.png'), join(out, 'fox.png'));
  expect(await locate(image, [])).toEqual({ kind: 'missing' });
  expect(await locate(image, [out])).toEqual({ kind: 'moved', path: join(out, 'fox.png') });
});

test('not where only a link or another file has its size', async () => {
  const elsewhere = join(directory, 'elsewhere');
  await mkdir(elsewhere);
  await rename(image.path, join(elsewhere, 'fox.png'));
  await symlink(join(elsewhere, 'fox.png'), join(directory, 'link.png'));
  await writeFile(join(directory, 'other.png'), '9876543210');
  expect(await locate(image, [join(directory, 'none')])).toEqual({ kind: 'missing' });
});
