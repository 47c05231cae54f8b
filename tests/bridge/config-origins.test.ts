import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { settingsOf } from '../../bridge/config-origins.ts';
import type { BridgeFlags } from '../../bridge/config.ts';
import { BridgeFile, colourWish, loadConfig } from '../../bridge/config.ts';
import { formatInvite } from '../../shared/invite.ts';

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

function settings(flags: BridgeFlags = {}, env: NodeJS.ProcessEnv = {}) {
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

test.each<[string, BridgeFlags, string, string, unknown, unknown]>([
  [
    'vllm_urls',
    { vllmUrl: ['http://a:1'] },
    'GANTRY_VLLM_URLS',
    'http://b:1, http://c:1',
    ['http://a:1'],
    ['http://b:1', 'http://c:1'],
  ],
  ['vllm_timeout', { timeout: '60' }, 'GANTRY_TIMEOUT', '90', '1m', '90s'],
  ['max_concurrent', { maxConcurrent: '3' }, 'GANTRY_MAX_CONCURRENT', '5', 3, 5],
  ['output_dir', { outputDir: '/flag' }, 'GANTRY_OUTPUT_DIR', '/env', '/flag', '/env'],
])('%s is set by its flag, else by its variable', (key, flags, name, text, byFlag, byEnvironment) => {
  const [flag = ''] = Object.keys(flags);
  const where = `--${flag.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
  expect(setting(key, flags, { [name]: text })).toMatchObject({ value: byFlag, origin: 'flag', where });
  expect(setting(key, {}, { [name]: text })).toMatchObject({
    value: byEnvironment,
    origin: 'environment',
    where: name,
  });
  for (const none of ['', '${user_config.something}'])
    expect(setting(key, {}, { [name]: none })?.where, none).not.toBe(name);
});

test('what has only a flag or only a variable', () => {
  expect(setting('result_links', {}, { GANTRY_RESULT_LINKS: '1' })).toMatchObject({
    value: true,
    where: 'GANTRY_RESULT_LINKS',
  });
  expect(setting('side_car')).toMatchObject({ value: true, origin: 'default' });
  expect(setting('vllm_linger', { linger: '5m' })).toMatchObject({ value: '5m', where: '--linger' });
  expect(setting('vllm_linger')).toMatchObject({ value: '30s', origin: 'default' });
  expect(setting('sync_wait', {}, { GANTRY_SYNC_WAIT: '90s' })).toMatchObject({
    value: '90s',
    where: 'GANTRY_SYNC_WAIT',
  });
});

test('hosts of invites are there, without the code', () => {
  const code = 'K7QM-2XRD';
  const invite = formatInvite({ addresses: ['10.0.0.5:7801'], fingerprint: undefined, code, name: 'attic' });
  const all = settings({}, { GANTRY_HOSTS: invite });
  expect(all).toContainEqual(
    expect.objectContaining({ key: 'hosts.attic-2.url', value: 'ws://10.0.0.5:7801', where: 'GANTRY_HOSTS' }),
  );
  expect(JSON.stringify(all)).not.toContain(code);
});

test('a pinned certificate is named, not printed', async () => {
  const pem = '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n';
  await writeFile(join(directory, 'a.pem'), pem);
  const other = join(directory, 'pinned.yaml');
  const host = { url: 'wss://10.0.0.5:7801', token: 'gantry_secret' };
  const hosts = [
    { ...host, name: 'a', certificate: 'a.pem' },
    { ...host, name: 'b', certificate: pem },
  ];
  await writeFile(other, JSON.stringify({ hosts }), { mode: 0o600 });
  expect(setting('hosts.a.certificate', { config: other })).toMatchObject({ value: 'a.pem', where: `${other}:1` });
  expect(setting('hosts.b.certificate', { config: other })).toMatchObject({ value: 'as text' });
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
