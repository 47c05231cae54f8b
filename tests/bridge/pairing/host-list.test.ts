import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
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
