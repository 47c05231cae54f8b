import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { PromptLine } from '../../../bridge/output/prompts-file.ts';
import { readPromptsFile } from '../../../bridge/output/prompts-file.ts';
import { writeOnce } from '../../../bridge/output/results-file.ts';

let directory: string;
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'gantry-prompts-'));
});
afterAll(() => rm(directory, { recursive: true, force: true }));

async function read(name: string, content: string | Buffer): Promise<PromptLine[]> {
  await writeFile(join(directory, name), content);
  return readPromptsFile(join(directory, name));
}

test.each<[string, string, string[]]>([
  ['lines.txt', 'a fox\r\n\r\n  an owl  \n', ['a fox', 'an owl']],
  ['mark.txt', '\ufeffa fox', ['a fox']],
  ['one-column.csv', 'a fox\nan owl\n', ['a fox', 'an owl']],
  ['quoted.csv', 'id,prompt\n1,"a fox, red"\n2,"said ""hi""\nand left"\n', ['a fox, red', 'said "hi"\nand left']],
  ['header.CSV', 'Prompt,seed\na fox,1\n', ['a fox']],
  ['texts.jsonl', '"a fox"\n{"prompt":"an owl","seed":3}\n\n', ['a fox', 'an owl']],
])('%s', async (name, content, expected) => {
  expect((await read(name, content)).map(({ prompt }) => prompt)).toEqual(expected);
});

test('a line keeps what else it says, as it stands there', async () => {
  expect(await read('more.csv', 'Seed, Prompt ,width,note\n1,a fox, 512 ,\n,an owl,,mine\n')).toEqual([
    { prompt: 'a fox', values: { seed: '1', width: '512' } },
    { prompt: 'an owl', values: { note: 'mine' } },
  ]);
  expect(await read('more.jsonl', '{"seed":3,"prompt":"an owl"}\n"a fox"\n')).toEqual([
    { prompt: 'an owl', values: { seed: 3 } },
    { prompt: 'a fox', values: {} },
  ]);
});

test.each<[string, string | Buffer, RegExp]>([
  ['unclosed.csv', 'prompt\na fox\n"an owl\na cat\n', /line 3 has a quote that is not closed/],
  ['inner.csv', 'prompt\na "red" fox\nan owl\n', /line 2 has a quote/],
  ['wrong.json', '[]', /only \.txt, \.csv and \.jsonl/],
  ['empty.txt', '\n \n', /no prompts/],
  ['columns.csv', 'a,b\n1,2\n', /none is called prompt/],
  ['broken.jsonl', '"ok"\n{"text":"x"}\n', /line 2/],
  ['latin.txt', Buffer.from([0x66, 0xfc, 0x63]), /not UTF-8/],
  ['many.txt', 'x\n'.repeat(10_001), /10001 prompts and 10000/],
  ['large.txt', 'x'.repeat(10 * 1024 ** 2 + 1), /larger than 10 MiB/],
])('%s is refused with the reason', async (name, content, why) => {
  const failing = read(name, content);
  await expect(failing).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  await expect(failing).rejects.toThrow(why);
});

test('a results file is written whole, once', async () => {
  const target = await mkdtemp(join(directory, 'results-'));
  const first = await writeOnce({ directory: target, name: 'batch.jsonl', text: () => 'one\n' });
  await writeOnce({ directory: target, name: 'batch.jsonl', text: () => 'two\n' });
  expect(await readFile(first, 'utf8')).toBe('one\n');
  expect(await readdir(target)).toEqual(['batch.jsonl']);
});
