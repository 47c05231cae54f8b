import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { parse } from 'yaml';
import { addHost, removeHost } from '../../../bridge/pairing/host-list.ts';

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-hosts-'));
});
afterEach(() => rm(dir, { recursive: true, force: true }));

const host = (name: string, token = 't') => ({ name, token, url: 'ws://127.0.0.1:1', certificate: undefined });

async function hostsOf(file: string): Promise<{ name: string; token: string }[]> {
  return (parse(await readFile(file, 'utf8')) as { hosts: { name: string; token: string }[] }).hosts;
}

test('commands at the same moment each keep their host, and a name that is taken by then gets a number', async () => {
  const file = join(dir, 'bridge.yaml');
  const tokens = ['a', 'b', 'c', 'd'];
  const names = await Promise.all(tokens.map((token) => addHost(file, host('gpubox', token))));
  expect(names.sort()).toEqual(['gpubox', 'gpubox-2', 'gpubox-3', 'gpubox-4']);
  const kept = await hostsOf(file);
  expect(kept.map(({ name }) => name).sort()).toEqual(names);
  expect(kept.map(({ token }) => token).sort()).toEqual(tokens);
  expect((await stat(file)).mode & 0o777).toBe(0o600);
});

test('one that is removed leaves the others, whatever stands beside them', async () => {
  const file = join(dir, 'bridge.yaml');
  for (const name of ['a', 'b']) await addHost(file, host(name));
  expect(await removeHost(file, 'a')).toBe(true);
  expect(await removeHost(file, 'a')).toBe(false);
  expect((await hostsOf(file)).map(({ name }) => name)).toEqual(['b']);
});
