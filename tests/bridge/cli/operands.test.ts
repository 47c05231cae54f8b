import { Command } from 'commander';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { describe, expect, test } from 'vitest';
import { batchOperands, editOperands, generateOperands, placesOf } from '../../../bridge/cli/operands.ts';
import { addToolFlags, optionValues } from '../../../bridge/cli/tool-flags.ts';
import { flagList } from '../../../bridge/mcp/flag-list.ts';
import { TOOLS } from '../../../bridge/mcp/tools.ts';

describe('the words of a command', () => {
  test('generate takes one prompt', () => {
    expect(generateOperands(['a red fox']).args).toEqual({ prompt: 'a red fox' });
    expect(() => generateOperands(['a', 'red', 'fox'])).toThrow(/takes one prompt, and got 3\. Write it in quotes/);
  });

  test('edit takes pictures and, last, the prompt', () => {
    expect(editOperands(['a.png', 'snow']).args).toEqual({ image_path: 'a.png', prompt: 'snow' });
    expect(editOperands(['a.png', 'b.png', 'join']).args).toEqual({ image_paths: ['a.png', 'b.png'], prompt: 'join' });
    expect(() => editOperands(['snow'])).toThrow(/an image and a prompt/);
  });

  test('batch takes a file by its name or because it is there, else prompts', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'gantry-operands-'));
    try {
      const file = join(directory, 'mine');
      await writeFile(file, 'a fox\n');
      expect(batchOperands([file]).args).toEqual({ prompts_file: file });
      expect(batchOperands(['none.CSV']).args).toEqual({ prompts_file: 'none.CSV' });
      expect(batchOperands([directory]).args).toEqual({ prompts: [directory] });
      expect(batchOperands(['a fox', 'x.txt']).args).toEqual({ prompts: ['a fox', 'x.txt'] });
    } finally {
      await rm(directory, { recursive: true });
    }
  });

  test('what is named is a place that was meant', () => {
    expect(placesOf({ args: { output_dir: 'out', width: 3 }, files: ['in/a.png'] })).toEqual([
      resolve('in/a.png'),
      resolve('in'),
      resolve('out'),
      dirname(resolve('out')),
    ]);
  });
});

describe('flags', () => {
  const LEFT_OUT = ['preview', 'wait_seconds', 'prompt', 'prompts', 'prompts_file', 'image_path', 'image_paths'];

  test.each(['generate_image', 'edit_image', 'batch_generate'])(
    '%s: each argument of the tool is one, with its meaning or its range, and comes out under its name',
    async (name) => {
      const tool = (await flagList()).find((one) => one.name === name);
      const names = Object.keys(TOOLS.find((one) => one.name === name)?.input.shape ?? {});
      const wanted = names.filter((one) => !LEFT_OUT.includes(one));
      expect(wanted.length).toBeGreaterThan(5);
      const command = new Command();
      if (tool !== undefined) addToolFlags(command, tool, { but: LEFT_OUT });
      expect(command.options.map(({ long }) => long)).toEqual(wanted.map((one) => `--${one.replaceAll('_', '-')}`));
      expect(command.options.filter(({ description }) => description === '').map(({ long }) => long)).toEqual([]);
      command.parse(
        wanted.flatMap((one) => [`--${one.replaceAll('_', '-')}`, '7']),
        { from: 'user' },
      );
      expect(Object.keys(optionValues(command.opts())).sort()).toEqual([...wanted].sort());
    },
  );

  test('numbers are numbers, lists are split, and what is neither is left for the tool to refuse', async () => {
    const tool = (await flagList()).find((one) => one.name === 'batch_generate');
    const command = new Command().option('--json');
    if (tool !== undefined) addToolFlags(command, tool, { but: LEFT_OUT });
    const words = ['--seeds', '1,2, 3', '--width', 'wide', '--guidance-scale', '3.5', '--format', 'png', '--json'];
    command.parse(words, { from: 'user' });
    expect(optionValues(command.opts())).toEqual({
      seeds: [1, 2, 3],
      width: 'wide',
      guidance_scale: 3.5,
      format: 'png',
    });
  });
});
