import { mkdir, mkdtemp, realpath, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { RootOptions, Roots } from '../../../bridge/output/roots.ts';
import { checkWritable } from '../../../bridge/output/disk-room.ts';
import { allowedPath, findRoots, outputDirectory } from '../../../bridge/output/roots.ts';

let base: string;
let home: string;

beforeEach(async () => {
  base = await realpath(await mkdtemp(join(tmpdir(), 'gantry-roots-')));
  home = join(base, 'home');
  await mkdir(join(home, 'project'), { recursive: true });
  await mkdir(join(home, '.ssh'));
  await mkdir(join(base, 'home2'));
  await mkdir(join(base, 'outside'));
});
afterEach(() => rm(base, { recursive: true, force: true }));

function roots(o: Partial<RootOptions> = {}): Promise<Roots> {
  return findRoots({ home, cwd: join(home, 'project'), configured: undefined, outputDir: undefined, ...o });
}

describe('allowed', () => {
  test.each([
    ['a relative path', 'a/b.png', 'project/a/b.png'],
    ['dots that stay inside', '../pictures/b.png', 'pictures/b.png'],
    ['the home sign', '~/x.png', 'x.png'],
    ['the home itself', '~', ''],
  ])('%s', async (_, asked, expected) => {
    expect(await allowedPath(asked, await roots())).toBe(join(home, expected));
  });

  test('a configured root, even one inside a hidden directory', async () => {
    const configured = [join(home, '.cache', 'images'), join(base, 'outside')];
    const wide = await roots({ configured });
    await expect(allowedPath(join(home, '.cache', 'images', 'a.png'), wide)).resolves.toBeTruthy();
    await expect(allowedPath(join(base, 'outside', 'a.png'), wide)).resolves.toBeTruthy();
    await expect(allowedPath(join(home, 'a.png'), wide)).rejects.toMatchObject({ code: 'PATH_DENIED' });
  });

  test('the configured output directory, wherever it is', async () => {
    const outputDir = join(base, 'outside', 'new');
    const all = await roots({ outputDir });
    expect(await outputDirectory({ asked: undefined, configured: outputDir, roots: all })).toBe(outputDir);
  });

  test('a directory that the client offers', async () => {
    const all = await roots({ offered: [join(base, 'outside')] });
    await expect(allowedPath(join(base, 'outside', 'a.png'), all)).resolves.toBeTruthy();
  });
});

describe('denied', () => {
  test.each([
    ['a path that climbs out', '../../outside/a.png'],
    ['a key', '~/.ssh/id_rsa'],
    ['a hidden file', '~/.netrc'],
    ['a directory of settings', '~/Library/Keychains/a'],
    ['the same on Windows', '~/AppData/Roaming/a'],
    ['a system file', '/etc/passwd'],
    ['a device', '/dev/zero'],
    ['a URL', 'https://example.org/a.png'],
    ['a file URL', 'file:///etc/passwd'],
    ['a share', '\\\\server\\share\\a.png'],
    ['a NUL', 'a\0b.png'],
    ['an escape sequence', 'a\u001b[31mb.png'],
    ['half a character', 'a\ud800b.png'],
    ['a name that no file system takes', `${'x'.repeat(300)}/a.png`],
    ['nothing', '  '],
    ['a device name', 'project/NUL.png'],
  ])('%s', async (_, asked) => {
    await expect(allowedPath(asked, await roots())).rejects.toMatchObject({ code: 'PATH_DENIED' });
  });

  test('a sibling whose name begins like a root', async () => {
    await expect(allowedPath(join(base, 'home2', 'a.png'), await roots())).rejects.toMatchObject({
      code: 'PATH_DENIED',
    });
  });

  test('a link that leads out, as a file, as a directory, and above a file that does not exist yet', async () => {
    await writeFile(join(base, 'outside', 'secret'), '');
    await symlink(join(base, 'outside', 'secret'), join(home, 'file.png'));
    await symlink(join(base, 'outside'), join(home, 'dir'));
    await symlink(join(home, '.ssh'), join(home, 'keys'));
    for (const path of ['file.png', 'dir/secret', 'dir/new/a.png', 'keys/id_rsa']) {
      await expect(allowedPath(join(home, path), await roots()), path).rejects.toMatchObject({ code: 'PATH_DENIED' });
    }
  });

  test('everything, when the client starts the bridge in the root directory', async () => {
    const all = await roots({ cwd: '/', offered: ['/', base] });
    expect(all.allowed).toEqual([home]);
  });
});

describe('the usual output directory', () => {
  test.each<[string, string, string]>([
    ['a project below home', 'project', 'project/generated_images'],
    ['home itself', '', 'Pictures/gantry'],
    ['a hidden directory', '.config/app', 'Pictures/gantry'],
    ['a directory of settings', 'Library/App', 'Pictures/gantry'],
    ['somewhere else', '../outside', 'Pictures/gantry'],
  ])('of %s', async (_, cwd, expected) => {
    const all = await roots({ cwd: join(home, cwd) });
    expect(await outputDirectory({ asked: undefined, configured: undefined, roots: all })).toBe(join(home, expected));
  });
});

describe('writable', () => {
  test('a new directory is made, and nothing is left in it', async () => {
    await expect(checkWritable(join(home, 'a', 'b'), { needBytes: 1 })).resolves.toBeUndefined();
  });

  test('a file in the way is named', async () => {
    await writeFile(join(home, 'file'), '');
    const failing = checkWritable(join(home, 'file', 'b'), { needBytes: 1 });
    await expect(failing).rejects.toMatchObject({ code: 'PATH_DENIED' });
    await expect(failing).rejects.toThrow(join(home, 'file', 'b'));
  });

  test('more than the disk has is refused before anything is made', async () => {
    await expect(checkWritable(home, { needBytes: 1e18 })).rejects.toMatchObject({ code: 'DISK_FULL' });
  });
});
