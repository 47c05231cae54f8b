import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { configSchema, loadConfig } from '../../bridge/config.ts';
import { ConfigError } from '../../shared/config-file.ts';

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'gantry-config-'));
});
afterEach(() => rm(directory, { recursive: true, force: true }));

const HOST = 'hosts: [{ name: a, url: "ws://127.0.0.1:7801", token: gantry_secret }]\n';

async function file(text: string, mode = 0o600): Promise<string> {
  const path = join(directory, 'bridge.yaml');
  await writeFile(path, text);
  await chmod(path, mode);
  return path;
}

function problemsOf(load: () => unknown): readonly string[] {
  try {
    load();
  } catch (error) {
    if (error instanceof ConfigError) return error.problems;
    throw error;
  }
  return [];
}

test('flags win over the environment, that over the file, that over defaults', async () => {
  const config = await file(`${HOST}output_dir: /file\npreview: none\ntimes: { silence: 4500ms }\nsync_wait: 10s\n`);
  const env = { GANTRY_CONFIG: config, GANTRY_OUTPUT_DIR: '/env', XDG_STATE_HOME: '/state' };
  expect(loadConfig({}, env)).toMatchObject({
    file: config,
    hosts: [{ name: 'a', url: 'ws://127.0.0.1:7801', token: 'gantry_secret' }],
    outputDir: '/env',
    preview: 'none',
    syncWaitMs: 10_000,
    times: {
      silenceMs: 4_500,
      pingEveryMs: 15_000,
      offerEveryMs: 2_000,
      reconnectFirstMs: 500,
      reconnectMaxMs: 30_000,
      diskCheckMs: 30_000,
    },
    stateDir: '/state/gantry',
  });
  expect(loadConfig({ outputDir: '/flag' }, env).outputDir).toBe('/flag');
  expect(loadConfig({}, { GANTRY_CONFIG: config }).outputDir).toBe('/file');
});

test('no file is no error, unless it was named', async () => {
  expect(loadConfig({}, { XDG_CONFIG_HOME: directory })).toMatchObject({
    file: undefined,
    hosts: [],
    preview: 'inline',
  });
  expect(problemsOf(() => loadConfig({ config: join(directory, 'none.yaml') }, {}))[0]).toMatch(
    /none\.yaml: cannot be read \(ENOENT\)/,
  );
});

test('the file is looked for in the XDG directory', async () => {
  const place = join(directory, 'gantry');
  await mkdir(place);
  await writeFile(join(place, 'bridge.yaml'), 'preview: none\n');
  expect(loadConfig({}, { XDG_CONFIG_HOME: directory })).toMatchObject({
    file: join(place, 'bridge.yaml'),
    preview: 'none',
  });
});

test.each<[string, RegExp]>([
  ['output_directory: /x\n', /output_directory: unknown key\. Did you mean output_dir\?/],
  [
    'hosts: [{ name: a, url: "ws://127.0.0.1", token: gantry_t }]\n',
    /hosts\[0\]\.url: expected an address with a port/,
  ],
  [
    'hosts: [{ name: a, url: "ws://203.0.113.5:1", token: gantry_t }]\n',
    /hosts\[0\]\.url: ws:\/\/ would send the token and the prompts unencrypted to a public address/,
  ],
  [
    'hosts: [{ name: a, url: "ws://[2001:db8::1]:1", token: gantry_t }]\n',
    /hosts\[0\]\.url: ws:\/\/ would send the token and the prompts unencrypted to a public address/,
  ],
  [
    'hosts: [{ name: a, url: "wss://x:1", token: gantry_t, certificate: absent.pem }]\n',
    /hosts\[0\]\.certificate: neither a PEM text nor a file with one/,
  ],
  [
    'hosts: [{ name: a, url: "ws://x:1", token: gantry_t, certificate: "-----BEGIN CERTIFICATE-----" }]\n',
    /hosts\[0\]\.certificate: only with wss:\/\/, and a has ws:\/\//,
  ],
  [
    'hosts: [{ name: a, url: "ws://x:1", token: hello }]\n',
    /hosts\[0\]\.token: expected what `gantry-agent tokens add`/,
  ],
  ['hosts: [{ name: a, url: "http://x", token: t }]\n', /hosts\[0\]\.url: expected an address with a port, like wss:/],
  ['hosts: [{ name: a, url: "ws://x:1", token: t, tokne: u }]\n', /tokne: unknown key\. Did you mean token\?/],
  ['hosts: [{ name: "a b", url: "ws://x:1", token: t }]\n', /hosts\[0\]\.name: expected a short name/],
  [`${HOST}times: { silence: 45 }\n`, /times\.silence: expected a duration like 30s/],
  ['preview: maybe\n', /preview: /],
  [
    'hosts: [{ name: a, url: "ws://x:1", token: gantry_t }, { name: a, url: "ws://y:1", token: gantry_t }]\n',
    /two hosts are named a/,
  ],
  ['a: [\n', /./],
  ['- list\n', /mapping/],
])('%j is refused with its path', async (text, expected) => {
  const config = await file(text);
  expect(problemsOf(() => loadConfig({ config }, {})).join('\n')).toMatch(expected);
});

test.skipIf(process.platform === 'win32')(
  'a file with tokens that others can read is refused, as ssh does',
  async () => {
    const config = await file(HOST, 0o644);
    const problems = problemsOf(() => loadConfig({ config }, {})).join('\n');
    expect(problems).toMatch(/others may read it \(mode 644\)\. Run: chmod 600 /);
    expect(problems).not.toContain('gantry_secret');
    const harmless = await file('preview: none\n', 0o644);
    expect(loadConfig({ config: harmless }, {}).preview).toBe('none');
  },
);

test('the JSON Schema names every key', () => {
  expect(Object.keys(configSchema()['properties'] as object)).toEqual(
    expect.arrayContaining([
      'hosts',
      'output_dir',
      'default_model',
      'default_edit_model',
      'preview',
      'roots',
      'times',
      'sync_wait',
    ]),
  );
});

test('a pinned certificate is read as text or from a file beside bridge.yaml, and a private address may go without', async () => {
  const pem = '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n';
  await writeFile(join(directory, 'a.pem'), pem);
  const path = join(directory, 'pinned.yaml');
  const hosts = [
    { name: 'a', url: 'wss://203.0.113.5:7801', token: 'gantry_a', certificate: 'a.pem' },
    { name: 'b', url: 'wss://10.0.0.5:7801', token: 'gantry_b', certificate: pem },
    { name: 'c', url: 'ws://100.64.0.5:7801', token: 'gantry_c' },
    { name: 'd', url: 'wss://gpu.example:443', token: 'gantry_d' }, // a proxy with a certificate that the system knows
  ];
  await writeFile(path, JSON.stringify({ hosts }), { mode: 0o600 });
  const tls = { ca: pem, servername: 'gantry-agent' };
  expect(loadConfig({ config: path }, {}).hosts.map((host) => host.tls)).toEqual([tls, tls, undefined, undefined]);
});
