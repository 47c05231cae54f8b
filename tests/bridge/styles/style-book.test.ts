import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { StyleBook } from '../../../bridge/styles/style-book.ts';
import { parseStyle, styleText } from '../../../bridge/styles/style-text.ts';

let base: string;
let directory: string;
let book: StyleBook;
beforeEach(async () => {
  base = await mkdtemp(join(tmpdir(), 'gantry-styles-'));
  directory = join(base, 'gantry', 'styles');
  book = new StyleBook(directory);
});
afterEach(() => rm(base, { recursive: true, force: true }));

const NEW = { overwrite: false };
const night = { head: { tags: ['neon'], aspect_ratio: '16:9' }, body: 'Wet streets.' };

test('a style is saved, listed and read; looking makes nothing', async () => {
  expect(await book.list()).toEqual([]);
  expect(await readdir(base)).toEqual([]);
  const { path } = await book.save('cyberpunk-night', night, NEW);
  expect(path).toBe(join(directory, 'cyberpunk-night.md'));
  expect(await readFile(path, 'utf8')).toBe('---\ntags:\n  - neon\naspect_ratio: 16:9\n---\n\nWet streets.\n');
  expect(await new StyleBook(directory).list()).toMatchObject([
    { name: 'cyberpunk-night', ...night, problem: undefined },
  ]);
  expect(await readdir(directory)).toEqual(['cyberpunk-night.md']);
});

describe('names', () => {
  test.each([
    ['../evil', /Use evil\./],
    ['..', /cannot be the name/],
    ['/etc/passwd', /Use etc-passwd\./],
    ['a/b', /Use a-b\./],
    ['a\\b', /Use a-b\./],
    ['.hidden', /Use hidden\./],
    ['Cyberpunk Night', /Use cyberpunk-night\./],
    ['', /cannot be the name/],
    ['list', /cannot be the name/],
    ['con', /cannot be the name/],
    ['nul\0', /cannot be the name/],
    ['a'.repeat(65), /Use a{64}\./],
    ['-a-', /Use a\./],
    ['ünïcode', /Use u-?ni-?code\./],
  ])('%j is refused', async (name, sentence) => {
    await expect(async () => book.save(name, night, NEW)).rejects.toThrow(sentence);
    await expect(book.delete(name)).rejects.toThrow(/No style is named/);
    expect(await readdir(base)).toEqual([]);
  });
});

describe('replacing', () => {
  test('needs to be said, and keeps the old one', async () => {
    await book.save('night', night, NEW);
    await expect(book.save('night', { head: {}, body: 'Other.' }, NEW)).rejects.toThrow(/exists already/);
    const { replaced } = await book.save('night', { head: {}, body: 'Other.' }, { overwrite: true });
    expect(await readFile(replaced ?? '', 'utf8')).toContain('Wet streets.');
    expect(await book.get('night')).toMatchObject({ body: 'Other.' });
    const kept = await book.delete('night');
    expect(await readFile(kept, 'utf8')).toBe('Other.\n');
    expect(await book.list()).toEqual([]);
  });

  test('of several who create one name at once exactly one does', async () => {
    const books = Array.from({ length: 8 }, () => new StyleBook(directory));
    const saved = await Promise.allSettled(
      books.map((one, index) => one.save('same', { head: {}, body: `${index}` }, NEW)),
    );
    expect(saved.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
    const winner = saved.findIndex(({ status }) => status === 'fulfilled');
    expect((await book.get('same')).body).toBe(String(winner));
    expect(await readdir(directory)).toEqual(['same.md']);
  });

  test('of several who replace one at once the file is whole, and what each replaced is kept', async () => {
    await book.save('same', { head: {}, body: 'first' }, NEW);
    const bodies = Array.from({ length: 8 }, (_, index) => `${index} `.repeat(1_000).trim());
    await Promise.all(bodies.map((body) => book.save('same', { head: {}, body }, { overwrite: true })));
    const old = await Promise.all(
      (await readdir(join(directory, '.replaced'))).map((name) => readFile(join(directory, '.replaced', name), 'utf8')),
    );
    const texts = [...old.map((text) => text.trim()), (await book.get('same')).body];
    expect(texts.sort()).toEqual([...bodies, 'first'].sort());
  });

  test('keeps no more old ones than a hundred', async () => {
    await mkdir(join(directory, '.replaced'), { recursive: true });
    for (let n = 0; n < 105; n += 1) await writeFile(join(directory, '.replaced', `${1_000 + n}-x.md`), '');
    await book.save('a', night, NEW);
    expect((await readdir(join(directory, '.replaced'))).sort()[0]).toBe('1005-x.md');
  });
});

describe('what lies there', () => {
  test('only regular markdown files with a right name count: no link leads outside', async () => {
    await mkdir(join(directory, 'folder.md'), { recursive: true });
    await writeFile(join(base, 'secret'), 'secret');
    await symlink(join(base, 'secret'), join(directory, 'link.md'));
    await writeFile(join(directory, 'Upper.md'), 'x');
    await writeFile(join(directory, 'right.md'), 'x');
    await writeFile(join(directory, 'huge.md'), 'x'.repeat(100_000));
    expect((await book.list()).map(({ name }) => name)).toEqual(['right']);
    await expect(book.get('link')).rejects.toThrow(/No style is named "link"/);
    await book.save('link', night, { overwrite: true }); // takes the place of the link, and writes nothing through it
    expect(await readFile(join(base, 'secret'), 'utf8')).toBe('secret');
  });

  test('an unknown name is answered with the nearest', async () => {
    await book.save('cyberpunk-night', night, NEW);
    await expect(book.get('cyberpunk-nigth')).rejects.toThrow(/Did you mean cyberpunk-night\?/);
  });

  test('too large a style is refused', async () => {
    await expect(async () => book.save('big', { head: {}, body: 'x'.repeat(17_000) }, NEW)).rejects.toThrow(
      /16384 is the most/,
    );
    await expect(async () =>
      book.save('tags', { head: { tags: Array.from({ length: 21 }, () => 'x') }, body: 'x' }, NEW),
    ).rejects.toThrow(/tags of the style/);
  });
});

describe('a text', () => {
  test.each([
    ['only words', { head: {}, body: 'only words' }],
    ['---\ntags: [a, b]\nmine: 3\n---\nbody', { head: { tags: ['a', 'b'], mine: 3 }, body: 'body' }],
    ['\uFEFF---\r\nquality: high\r\n---\r\nbody\r\n', { head: { quality: 'high' }, body: 'body' }],
    ['---\n---\nbody', { head: {}, body: 'body' }],
    ['a\n---\nb\n---\n', { head: {}, body: 'a\n---\nb\n---' }],
  ])('%j', (text, expected) => {
    expect(parseStyle(text)).toMatchObject({ ...expected, problem: undefined });
  });

  test.each([
    ['---\ntags: {\n---\nbody', /not valid YAML/],
    ['---\ntags: one\n---\nbody', /front matter is not valid: tags/],
    [`---\na: &a [x]\nb: [*a, *a]\n---\nbody`, /not valid YAML/],
  ])('%j is still a style, with its problem told', (text, problem) => {
    expect(parseStyle(text)).toMatchObject({
      body: 'body',
      head: {},
      problem: expect.stringMatching(problem) as string,
    });
  });

  test('comes back as it was, whatever its words', () => {
    const style = { head: { description: 'a: "b" # c', tags: ['- x', '---'] }, body: '---\nno front matter: this' };
    expect(parseStyle(styleText(style))).toMatchObject(style);
    const bare = { head: {}, body: '---\nmine: 1\n---\nno front matter either' };
    expect(parseStyle(styleText(bare))).toMatchObject(bare);
  });
});

test('of as many styles as there may be one can be replaced, and none added', async () => {
  await mkdir(directory, { recursive: true });
  const names = Array.from({ length: 500 }, (_, index) => `style-${index}`);
  await Promise.all(names.map((name) => writeFile(join(directory, `${name}.md`), 'Old.\n')));
  await expect(book.save('more', night, NEW)).rejects.toThrow(/There are 500 styles already/);
  await book.save('style-7', night, { overwrite: true });
  expect(await book.get('style-7')).toMatchObject(night);
});
