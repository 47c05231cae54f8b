import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { settingsOf } from '../../bridge/config-origins.ts';
import { BridgeFile, colourWish, loadConfig } from '../../bridge/config.ts';

let directory: string;
let path: string;
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'gantry-origins-'));
  path = join(directory, 'bridge.yaml');
  const lines = [
    '# mine',
    'hosts:',
    '  - name: attic',
    '    url: ws://127.0.0.1:7801',
    '    token: gantry_secret',
    'output_dir: /pics',
    'times: { silence: 90s }',
  ];
  await writeFile(path, `${lines.join('\n')}\n`, { mode: 0o600 });
});
afterAll(() => rm(directory, { recursive: true }));

function settings(flags: { outputDir?: string } = {}, env: NodeJS.ProcessEnv = {}) {
  const all = { config: path, ...flags };
  return settingsOf(loadConfig(all, env), all, env);
}

function setting(key: string, ...from: Parameters<typeof settings>) {
  return settings(...from).find((one) => one.key === key);
}

test('a flag is stronger than the environment, that than the file, and that than the default', () => {
  const env = { GANTRY_OUTPUT_DIR: '/env' };
  const file = { value: '/pics', origin: 'file', where: `${path}:6` };
  expect(setting('output_dir')).toMatchObject(file);
  expect(setting('output_dir', {}, env)).toMatchObject({
    value: '/env',
    origin: 'environment',
    where: 'GANTRY_OUTPUT_DIR',
  });
  expect(setting('output_dir', {}, { GANTRY_OUTPUT_DIR: '' })).toMatchObject(file);
  expect(setting('output_dir', { outputDir: '/flag' }, env)).toMatchObject({
    value: '/flag',
    origin: 'flag',
    where: '--output-dir',
  });
  expect(setting('times.silence')).toMatchObject({ value: '90s', origin: 'file', where: `${path}:7` });
  expect(setting('times.ping_every')).toMatchObject({ value: '15s', origin: 'default' });
  expect(setting('default_model')).toMatchObject({ value: null, origin: 'default' });
  expect(setting('file')).toMatchObject({ value: path, origin: 'flag', where: '--config' });
});

test('every key of bridge.yaml is there, and no token', () => {
  const all = settings();
  const keys = all.map(({ key }) => key.split('.')[0]);
  for (const key of Object.keys(BridgeFile.shape)) expect(keys).toContain(key);
  expect(setting('hosts.attic.url')).toMatchObject({ value: 'ws://127.0.0.1:7801', where: `${path}:4` });
  expect(setting('hosts.attic.token')).toMatchObject({ origin: 'file', where: `${path}:5` });
  expect(JSON.stringify(all)).not.toContain('secret');
});

test('colour is for terminals, unless somebody says otherwise', () => {
  expect(colourWish({})).toBe('auto');
  expect(colourWish({ TERM: 'dumb' })).toBe('never');
  expect(colourWish({ NO_COLOR: '1', FORCE_COLOR: '1' })).toBe('never');
  expect(colourWish({ FORCE_COLOR: '1' })).toBe('always');
  expect(colourWish({ FORCE_COLOR: '0' })).toBe('never');
});

test('what a server without an agent may take, and side cars, are shown as they hold', () => {
  expect(setting('vllm_timeout')).toMatchObject({ value: '5m', origin: 'default' });
  expect(setting('vllm_linger')).toMatchObject({ value: '30s', origin: 'default' });
  expect(setting('side_car')).toMatchObject({ value: true, origin: 'default' });
  expect(setting('max_concurrent')).toMatchObject({ value: null, words: '(auto: every free slot)' });
  expect(setting('vllm_urls', {}, { GANTRY_VLLM_URLS: 'http://127.0.0.1:8000' })).toMatchObject({
    value: ['http://127.0.0.1:8000'],
    origin: 'environment',
    where: 'GANTRY_VLLM_URLS',
  });
  expect(setting('vllm_urls', {}, { GANTRY_VLLM_URLS: '' })).toMatchObject({ value: [], origin: 'default' });
});
