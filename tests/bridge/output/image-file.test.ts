import { execa } from 'execa';
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { partPath, renameIfFree, saveImage, sweepParts } from '../../../bridge/output/image-file.ts';
import { FaultyDisk, whyNoDiskFaults } from '../../helpers/disk-faults.ts';

const PNG = Buffer.concat([Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'), Buffer.alloc(200_000, 7)]);
let directory: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'gantry-save-'));
});
afterEach(() => rm(directory, { recursive: true, force: true }));

async function* chunksOf(content: Buffer, size = 64_000): AsyncGenerator<Buffer> {
  for (let at = 0; at < content.length; at += size) yield content.subarray(at, at + size);
}

function sha256(content: Buffer): string {
  return createHash('sha256').update(content).digest('hex');
}

type Wishes = {
  content?: Buffer;
  body?: AsyncIterable<Buffer>;
  name?: string;
  signal?: AbortSignal;
  onSaving?: (name: string) => Promise<void>;
};

function save({ content = PNG, body = chunksOf(content), name = 'fox.png', signal, onSaving }: Wishes = {}) {
  return saveImage({
    body,
    expected: { sha256: sha256(content), bytes: content.length },
    directory,
    name,
    onSaving: onSaving ?? (async () => undefined),
    signal: signal ?? new AbortController().signal,
  });
}

test('a file appears whole, and nothing else stays', async () => {
  const seen: string[][] = [];
  const { path } = await save({
    onSaving: async (name) => {
      expect(name).toBe('fox.png');
      seen.push(await readdir(directory));
    },
  });
  expect(path).toBe(join(directory, 'fox.png'));
  expect(sha256(await readFile(path))).toBe(sha256(PNG));
  expect(await readdir(directory)).toEqual(['fox.png']);
  // When the manifest line was written, only the part was there.
  expect(seen).toHaveLength(1);
  expect(seen[0]).toEqual([expect.stringMatching(/^\.gantry-.*\.part$/)]);
});

test('a name that is taken, also by a link to nowhere, is never written over', async () => {
  await writeFile(join(directory, 'fox.png'), 'mine');
  await symlink(join(directory, 'nowhere'), join(directory, 'fox-2.png'));
  const { path } = await save();
  expect(path).toBe(join(directory, 'fox-3.png'));
  expect(await readFile(join(directory, 'fox.png'), 'utf8')).toBe('mine');
  expect((await readdir(directory)).sort()).toEqual(['fox-2.png', 'fox-3.png', 'fox.png']);
});

test('a name that is taken between the manifest line and the link gets the next one, with a line of its own', async () => {
  const lines: string[] = [];
  const { path } = await save({
    onSaving: async (name) => {
      lines.push(name);
      if (lines.length === 1) await writeFile(join(directory, name), 'quicker');
    },
  });
  expect(lines).toEqual(['fox.png', 'fox-2.png']);
  expect(path).toBe(join(directory, 'fox-2.png'));
  expect(await readFile(join(directory, 'fox.png'), 'utf8')).toBe('quicker');
});

test('many saves of one name at the same time all get a name of their own', async () => {
  const contents = Array.from({ length: 20 }, (_, index) => Buffer.concat([PNG, Buffer.from([index])]));
  const saved = await Promise.all(contents.map((content) => save({ content })));
  expect(new Set(saved.map(({ path }) => path)).size).toBe(20);
  for (const [index, { path }] of saved.entries())
    expect(sha256(await readFile(path))).toBe(sha256(contents[index] ?? PNG));
  expect(await readdir(directory)).toHaveLength(20);
});

test.each<[string, Buffer, RegExp]>([
  ['too short', PNG.subarray(0, 100_000), /100000 of 200008 bytes/],
  ['too long', Buffer.concat([PNG, PNG]), /more than the 200008 bytes/],
  ['changed', Buffer.concat([PNG.subarray(0, -1), Buffer.from([8])]), /SHA-256/],
])('bytes that are %s are not saved', async (_, sent, why) => {
  const failing = save({ body: chunksOf(sent) });
  await expect(failing).rejects.toMatchObject({ code: 'SAVE_FAILED' });
  await expect(failing).rejects.toThrow(why);
  expect(await readdir(directory)).toEqual([]);
});

test('bytes that are no image are not saved, whatever their hash', async () => {
  await expect(save({ content: Buffer.from('#!/bin/sh\necho hello') })).rejects.toMatchObject({ code: 'SAVE_FAILED' });
  expect(await readdir(directory)).toEqual([]);
});

test('a transfer that breaks off leaves nothing, and says why', async () => {
  async function* broken(): AsyncGenerator<Buffer> {
    yield PNG.subarray(0, 100);
    throw Object.assign(new Error('socket hang up'), { code: 'ECONNRESET' });
  }
  const failing = save({ body: broken() });
  await expect(failing).rejects.toMatchObject({ code: 'SAVE_FAILED' });
  await expect(failing).rejects.toThrow(/ECONNRESET/);
  expect(await readdir(directory)).toEqual([]);
});

test('an abort ends a body that says nothing, and leaves nothing', async () => {
  const stop = new AbortController();
  async function* silent(): AsyncGenerator<Buffer> {
    yield PNG.subarray(0, 100);
    queueMicrotask(() => stop.abort(new Error('enough')));
    await new Promise<never>(() => undefined);
  }
  await expect(save({ body: silent(), signal: stop.signal })).rejects.toThrow('enough');
  expect(await readdir(directory)).toEqual([]);
});

test('a manifest line that cannot be written prevents the file', async () => {
  const failing = save({ onSaving: () => Promise.reject(new Error('manifest lost')) });
  await expect(failing).rejects.toThrow('manifest lost');
  expect(await readdir(directory)).toEqual([]);
});

test('without hard links the rename still takes free names only', async () => {
  const part = partPath(directory);
  await writeFile(part, 'new');
  await writeFile(join(directory, 'a.png'), 'old');
  expect(renameIfFree(part, join(directory, 'a.png'))).toBe(false);
  await symlink('nowhere', join(directory, 'b.png'));
  expect(renameIfFree(part, join(directory, 'b.png'))).toBe(false);
  expect(renameIfFree(part, join(directory, 'c.png'))).toBe(true);
  expect(await readFile(join(directory, 'a.png'), 'utf8')).toBe('old');
  expect(await readFile(join(directory, 'c.png'), 'utf8')).toBe('new');
});

test('a directory that is a file is refused with its path', async () => {
  await writeFile(join(directory, 'file'), '');
  directory = join(directory, 'file');
  await expect(save()).rejects.toMatchObject({ code: 'SAVE_FAILED' });
  directory = join(directory, '..');
});

test('parts of dead processes are swept, those of living ones and files of others stay', async () => {
  const dead = execFile(process.execPath, ['-e', '']);
  await once(dead, 'exit');
  const living = partPath(directory);
  const samePid = join(directory, `.gantry-${process.pid}-000000-00000000.part`);
  const ofDead = join(directory, `.gantry-${dead.pid}-abcdef-00000000.part`);
  for (const path of [living, samePid, ofDead, join(directory, '.gantry-x.part'), join(directory, 'fox.png')])
    await writeFile(path, '');
  await sweepParts(directory);
  expect((await readdir(directory)).sort()).toEqual(
    ['.gantry-x.part', living.slice(directory.length + 1), 'fox.png'].sort(),
  );
  await expect(sweepParts(join(directory, 'not-there'))).resolves.toBeUndefined();
});

test('a process killed at any moment of a save leaves the whole file or none, and its part is swept', async () => {
  const program = join(directory, 'save.mts');
  const source = resolve('bridge/output/image-file.ts');
  await mkdir(join(directory, 'out'));
  await writeFile(
    program,
    `import { saveImage } from ${JSON.stringify(source)};
     import { createHash } from 'node:crypto';
     const image = Buffer.concat([Buffer.from('\\x89PNG\\r\\n\\x1a\\n', 'latin1'), Buffer.alloc(300_000, 9)]);
     async function* body() {
       for (let at = 0; at < image.length; at += 1_000) { yield image.subarray(at, at + 1_000); await new Promise(setImmediate); }
     }
     process.stdout.write('go');
     for (let n = 0; ; n += 1)
       await saveImage({ body: body(), expected: { sha256: createHash('sha256').update(image).digest('hex'), bytes: image.length },
         directory: ${JSON.stringify(join(directory, 'out'))}, name: 'fox.png', onSaving: async () => {}, signal: new AbortController().signal });`,
  );
  const child = execFile(process.execPath, ['--import', 'tsx', program]);
  await once(child.stdout ?? child, 'data');
  // Killed once a file is there and the next one is under way: a part, or a name just linked.
  for (let files: string[] = []; files.filter((name) => name.endsWith('.png')).length < 2;)
    files = await readdir(join(directory, 'out'));
  child.kill('SIGKILL');
  await once(child, 'exit');
  await sweepParts(join(directory, 'out'));
  const files = await readdir(join(directory, 'out'));
  expect(files.length).toBeGreaterThanOrEqual(2);
  for (const file of files) expect((await readFile(join(directory, 'out', file))).length, file).toBe(300_008);
});

test.skipIf((await whyNoDiskFaults()) !== undefined)(
  'a part on a disk that became read-only in the middle of a save is removed by the next one',
  async () => {
    const disk = await FaultyDisk.make(directory);
    const output = join(directory, 'out');
    const program = `
      import { createHash } from 'node:crypto';
      import { rmSync, readdirSync, writeFileSync } from 'node:fs';
      import { saveImage } from '${resolve('bridge/output/image-file.ts')}';
      const image = Buffer.concat([Buffer.from('89504e470d0a1a0a', 'hex'), Buffer.alloc(1000)]);
      const expected = { sha256: createHash('sha256').update(image).digest('hex'), bytes: image.length };
      const save = (onSaving) => saveImage({ body: (async function* () { yield image; })(), expected,
        directory: '${output}', name: 'fox.png', onSaving, signal: new AbortController().signal });
      const left = () => readdirSync('${output}').map((name) => name.replace(/.*\\.part$/, 'part')).join();
      const disk = process.env.GANTRY_DISK_FAULT;
      const said = await save(async () => writeFileSync(disk, 'rofs ${output} 0')).catch(({ code }) => code);
      const during = left();
      rmSync(disk);
      await save(async () => undefined);
      console.log(said, during, left());`;
    const start = ['--import', 'tsx', '--input-type=module', '-e', program];
    const { stdout } = await execa(process.execPath, start, { env: disk.env });
    expect(stdout).toBe('SAVE_FAILED part fox.png');
  },
);
