import { existsSync } from 'node:fs';
import { lstat, mkdir, mkdtemp, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { parse } from 'yaml';
import { addHost, removeHost } from '../../../bridge/pairing/host-list.ts';

const HOST = { name: 'attic', url: 'ws://127.0.0.1:7801', token: 'gantry_x', certificate: undefined };
let directory: string;
let path: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'gantry-host-list-'));
  path = join(directory, 'bridge.yaml');
});
afterEach(() => rm(directory, { recursive: true }));

test('to forget a host where there is no bridge.yaml writes none', async () => {
  expect(await removeHost(path, 'attic')).toBe(false);
  expect(existsSync(path)).toBe(false);
});

test.each(['', 'null\n', '# mine\n'])('a bridge.yaml that has no settings takes a host: %j', async (text) => {
  await writeFile(path, text);
  await addHost(path, HOST);
  expect(await readFile(path, 'utf8')).toContain('- name: attic');
  expect(await removeHost(path, 'attic')).toBe(true);
});

test('one that is no map stays as it is', async () => {
  await writeFile(path, '- a\n');
  await expect(addHost(path, HOST)).rejects.toThrow('no valid configuration');
  expect(await readFile(path, 'utf8')).toBe('- a\n');
});

const host = (name: string, token = 't') => ({ name, token, url: 'ws://127.0.0.1:1', certificate: undefined });

async function hostsOf(file: string): Promise<{ name: string; token: string }[]> {
  return (parse(await readFile(file, 'utf8')) as { hosts: { name: string; token: string }[] }).hosts;
}

test('commands at the same moment each keep their host, and a name that is taken by then gets a number', async () => {
  const file = join(directory, 'bridge.yaml');
  const tokens = ['a', 'b', 'c', 'd'];
  const names = await Promise.all(tokens.map((token) => addHost(file, host('gpubox', token))));
  expect(names.sort()).toEqual(['gpubox', 'gpubox-2', 'gpubox-3', 'gpubox-4']);
  const kept = await hostsOf(file);
  expect(kept.map(({ name }) => name).sort()).toEqual(names);
  expect(kept.map(({ token }) => token).sort()).toEqual(tokens);
  expect((await stat(file)).mode & 0o777).toBe(0o600);
});

test('a link to it, as people have who keep their settings elsewhere, stays one', async () => {
  await mkdir(join(directory, 'dotfiles'));
  const real = join(directory, 'dotfiles', 'bridge.yaml');
  await writeFile(real, '# mine\n');
  await symlink(real, path);
  await addHost(path, HOST);
  expect((await lstat(path)).isSymbolicLink()).toBe(true);
  expect(await readFile(real, 'utf8')).toMatch(/^# mine\n[^]*- name: attic/);
  expect((await stat(real)).mode & 0o777).toBe(0o600);
});

test('one that is removed leaves the others, whatever stands beside them', async () => {
  const file = join(directory, 'bridge.yaml');
  for (const name of ['a', 'b']) await addHost(file, host(name));
  expect(await removeHost(file, 'a')).toBe(true);
  expect(await removeHost(file, 'a')).toBe(false);
  expect((await hostsOf(file)).map(({ name }) => name)).toEqual(['b']);
});
