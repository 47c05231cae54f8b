import { execFileSync } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { z } from 'zod';
import type { DeskContext } from '../bridge/mcp/desks.ts';
import { PROMPTS } from '../bridge/mcp/prompts.ts';
import { RESOURCES } from '../bridge/mcp/resources.ts';
import { TOOLS } from '../bridge/mcp/tools.ts';
import { IMAGE_ANSWERS } from '../scripts/lib/image-answers.ts';

/** docs/compared.md claims that names of other servers are somewhere here: what it names must be there. */
const text = await readFile(fileURLToPath(new URL('../docs/compared.md', import.meta.url)), 'utf8');

const everything = {
  images: async () => ({ recent: async () => ({ entries: [] }) }),
  styles: async () => ({ list: async () => [] }),
} as unknown as DeskContext; // nothing was made or saved yet: what is listed then is what is always there
const addresses = [
  ...(await RESOURCES.list(everything)).map(({ uri }) => uri),
  ...RESOURCES.templates().map(({ uriTemplate }) => uriTemplate),
];
const prompts = (await PROMPTS.list(everything)).map(({ name }) => name);

type Row = { there: string; here: string; remark: string };
const rows = [...text.matchAll(/^\| (.+?) *\| (.*?) *\| (.*?) *\|$/gm)]
  .map(([, there = '', here = '', remark = '']): Row => ({ there, here, remark }))
  .filter(({ there }) => there !== 'there' && !/^-+$/.test(there));

/** What has the name in the second column; undefined for a form that nobody can check. */
function isHere(name: string): boolean | undefined {
  const argument = /^([a-z_]+)\.([a-z_]+)$/.exec(name);
  if (argument !== null) return Object.hasOwn(toolNamed(argument[1])?.input.shape ?? {}, argument[2] ?? '');
  const flag = /^gantry ([a-z]+) (--[a-z-]+)$/.exec(name);
  if (flag !== null) return flagsOf(flag[1] ?? '').includes(flag[2] ?? '');
  const field = /^([a-z_]+) → ([a-z_.]+)$/.exec(name);
  if (field !== null) return hasField(answerOf(field[1]), (field[2] ?? '').split('.'));
  if (name.includes('://')) return addresses.includes(name);
  if (/^[a-z_]+$/.test(name)) return toolNamed(name) !== undefined || prompts.includes(name);
  return undefined;
}

const claims = rows.flatMap(({ here, remark }) =>
  namesIn(here).map((name) => ({ name, isPromised: /\bnot yet\b/i.test(remark) })),
);

describe('what docs/compared.md says is here', () => {
  test.each(claims.filter(({ isPromised }) => !isPromised).map(({ name }) => name))('%s', (name) => {
    expect(isHere(name)).toBe(true);
  });
});

test('what it says is not here yet is not here', () => {
  const promised = claims.filter(({ isPromised }) => isPromised).map(({ name }) => name);
  expect(promised.filter((name) => isHere(name) === true)).toEqual([]);
});

test('every row says where a thing is, that it is not yet, or why it is left out', () => {
  const silent = rows.filter(({ here, remark }) => namesIn(here).length === 0 && remark === '');
  expect(silent).toEqual([]);
  expect(rows.length).toBeGreaterThan(100);
});

test('the flags of the system that has any are there', () => {
  const flags = rows.filter(({ there }) => there.startsWith('`--'));
  expect(flags.map(({ here }) => namesIn(here).length)).toEqual([1, 1, 1, 1]);
});

test('every tool of ours that earlier servers had is named', () => {
  const named = new Set(claims.map(({ name }) => name.split(/[. ]/, 1)[0]));
  const ours = ['list_hosts', 'load_model', 'list_jobs'];
  expect(TOOLS.map(({ name }) => name).filter((name) => !named.has(name) && !ours.includes(name))).toEqual([]);
});

/** As the program itself lists them. */
function flagsOf(command: string): string[] {
  const help = execFileSync(process.execPath, [resolve('dist/gantry.cjs'), command, '--help'], { encoding: 'utf8' });
  return [...help.matchAll(/^ {2}(?:-\w, )?(--[a-z-]+)/gm)].map(([, flag = '']) => flag);
}

function namesIn(cell: string): string[] {
  return [...cell.matchAll(/`([^`]+)`/g)].map(([, name = '']) => name);
}

function toolNamed(name: string | undefined) {
  return TOOLS.find((tool) => tool.name === name);
}

function answerOf(name: string | undefined): z.core.$ZodType | undefined {
  return toolNamed(name)?.output ?? IMAGE_ANSWERS[name ?? ''];
}

/** Through lists, unions and optional fields. */
function hasField(schema: z.core.$ZodType | undefined, path: readonly string[]): boolean {
  const [first, ...rest] = path;
  if (first === undefined) return schema !== undefined;
  if (schema instanceof z.ZodUnion) return schema.options.some((option) => hasField(option, path));
  if (schema instanceof z.ZodArray) return hasField(schema.element, path);
  if (schema instanceof z.ZodOptional || schema instanceof z.ZodNullable || schema instanceof z.ZodNonOptional)
    return hasField(schema.unwrap(), path);
  if (!(schema instanceof z.ZodObject) || !Object.hasOwn(schema.shape, first)) return false;
  return hasField(schema.shape[first] as z.core.$ZodType, rest); // the shape of any object is untyped
}
