import { execa } from 'execa';
import { readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { expect, test } from 'vitest';
import { EXIT } from '../../../shared/exit-codes.ts';

const PROGRAM = resolve('dist/gantry.cjs');

test('docs/commands.md has every command, and each has an example', async () => {
  const { stdout } = await execa(process.execPath, [PROGRAM, '--help']);
  const names = [...stdout.matchAll(/^ {2}([a-z]+) {2,}\S/gm)].map(([, name = '']) => name);
  expect(names.length).toBeGreaterThan(14);
  const page = await readFile('docs/commands.md', 'utf8');
  for (const name of names.filter((one) => one !== 'help')) {
    expect(page, name).toMatch(new RegExp(`^\\| (.*, )?\`${name}[ \`]`, 'm'));
    if (name === 'config') continue; // its own commands have
    const help = await execa(process.execPath, [PROGRAM, name, '--help']);
    expect(help.stdout, name).toMatch(new RegExp(`Example:\\n {2}\\$ gantry ${name}`));
  }
});

test('a word too few is named as the usage names it, with the way to the help', async () => {
  const { exitCode, stderr } = await execa(process.execPath, [PROGRAM, 'generate'], { reject: false });
  expect(exitCode).toBe(EXIT.usage);
  expect(stderr).toBe("gantry: missing required argument 'prompt'\nAdd --help to see what it takes.");
});

test('docs/commands.md has every exit code', async () => {
  const page = await readFile('docs/commands.md', 'utf8');
  const codes = [...page.matchAll(/^\| (\d+) /gm)].map(([, code]) => Number(code));
  expect(codes).toEqual(Object.values(EXIT));
});
