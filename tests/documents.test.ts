import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';

const ROOT = fileURLToPath(new URL('..', import.meta.url));

/** Tracked files and those that would be: what a clone gets. */
const files = (await git('ls-files', '--cached', '--others', '--exclude-standard'))
  .split('\n')
  .filter((name) => name !== '' && existsSync(join(ROOT, name)));
const documents = files.filter((name) => name.endsWith('.md'));

/** Places that exist only where gantry is written. Split in two so that this file does not find itself. */
const ELSEWHERE = ['/wo' + 'rk/', '/tmp/' + 'gantry/', '../.lib' + 'rary', 'predeces' + 'sors/', 'npx -y ' + 'gantry'];

test('no shipped file points to a place outside the repository', async () => {
  const found: string[] = [];
  for (const name of files.filter((each) => each !== 'package-lock.json')) {
    const path = join(ROOT, name);
    if (!(await stat(path)).isFile()) continue;
    const text = await readFile(path, 'latin1');
    for (const place of ELSEWHERE) if (text.includes(place)) found.push(`${name}: ${place}`);
    const above = /(?:\.\.\/)+/g;
    for (const [climb] of text.matchAll(above)) {
      const levels = climb.length / 3;
      if (levels > name.split('/').length - 1) found.push(`${name}: ${climb} leaves the repository`);
    }
  }
  expect(found).toEqual([]);
});

describe('links', () => {
  test.each(documents)('of %s resolve', async (name) => {
    const text = withoutCode(await readFile(join(ROOT, name), 'utf8'));
    const broken: string[] = [];
    for (const [, target = ''] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target)) continue;
      const [path = '', anchor] = target.split('#');
      const file = path === '' ? name : join(dirname(name), path);
      if (!existsSync(join(ROOT, file))) broken.push(target);
      else if (anchor !== undefined && !(await anchorsOf(file)).includes(anchor)) broken.push(target);
    }
    expect(broken).toEqual([]);
  });
});

describe('names in', () => {
  test.each(documents)('%s are those of npm scripts and source files that exist', async (document) => {
    const text = await readFile(join(ROOT, document), 'utf8');
    const { scripts } = JSON.parse(await readFile(join(ROOT, 'package.json'), 'utf8')) as {
      scripts: Record<string, string>; // JSON.parse is `any`
    };
    const unknownScripts = [...text.matchAll(/npm run ([a-z:]+)/g)].filter(([, name = '']) => !(name in scripts));
    expect(unknownScripts.map(([command]) => command)).toEqual([]);
    const sources = [...text.matchAll(/`([a-z0-9/.-]+\.ts)`/g)].map(([, name = '']) => name);
    expect(sources.filter((name) => !files.some((file) => `/${file}`.endsWith(`/${name}`)))).toEqual([]);
  });
});

async function anchorsOf(file: string): Promise<string[]> {
  const headings = withoutCode(await readFile(join(ROOT, file), 'utf8')).matchAll(/^#+ (.+)$/gm);
  return Array.from(headings, ([, heading = '']) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, '')
      .replace(/ /g, '-'),
  );
}

function withoutCode(text: string): string {
  return text.replace(/^```[\s\S]*?^```/gm, '').replace(/`[^`\n]*`/g, (code) => code.replaceAll(/[[\]()]/g, ''));
}

async function git(...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)('git', args, { cwd: ROOT, maxBuffer: 16 * 1024 * 1024 });
  return stdout;
}
