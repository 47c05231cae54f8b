import { readdir, readFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { REAL_FLAGS, REAL_VALUES, SIM_FLAGS, SIM_VALUES } from '../../scripts/sim/lib/omni-command-line.ts';
import { COMMON_FLAGS, COMMON_VALUES } from '../../scripts/sim/lib/server-options.ts';
import { STEP1X_FLAGS, STEP1X_VALUES } from '../../scripts/sim/lib/step1x-options.ts';

const rows = (await readFile('scripts/sim/README.md', 'utf8'))
  .split('\n')
  .filter((line) => line.startsWith('| ') && !/^\| (flag|---)/.test(line))
  .map((line) => line.split(/(?<!\\)\|/).map((cell) => cell.trim()))
  .map(([, flags = '', , tests = '']) => ({
    flags: [...flags.matchAll(/--([a-z0-9-]+)/g)].map(([, name = '']) => name),
    tests,
  }));

test('the list in the README has every flag of the simulated engines, and no other', () => {
  const own = [SIM_FLAGS, SIM_VALUES, COMMON_FLAGS, COMMON_VALUES, STEP1X_FLAGS, STEP1X_VALUES].flat();
  const listed = rows.flatMap(({ flags }) => flags);
  expect(own.filter((name) => !listed.includes(name))).toEqual([]);
  const known: string[] = [own, REAL_FLAGS, REAL_VALUES].flat();
  expect(listed.filter((name) => !known.includes(name))).toEqual([]);
});

test('the tests that it names are there', async () => {
  const files = (await readdir('tests/sim')).filter((name) => name.endsWith('.test.ts'));
  const texts = await Promise.all(files.map((name) => readFile(`tests/sim/${name}`, 'utf8')));
  // The name of a test stands behind `test(`, behind the `])(` of a table, or first in a row of it.
  const start = /^\s*(?:test(?:\.each\(\[.*\]\))?\(|\]\)\(|\[)?['"](.+?)['"],/gm;
  const names = texts.flatMap((text) => [...text.matchAll(start)].map(([, name = '']) => name));
  const parts = rows.flatMap(({ tests }) => tests.split('; '));
  expect(parts.filter((part) => part === '' || !names.some((name) => name.includes(part)))).toEqual([]);
});
