import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { BridgeFlags } from '../../bridge/config.ts';
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
  return errorOf(load)?.problems ?? [];
}

function errorOf(load: () => unknown): ConfigError | undefined {
  try {
    load();
  } catch (error) {
    if (error instanceof ConfigError) return error;
    throw error;
  }
  return undefined;
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

test('the environment names how long a call waits', async () => {
  const config = await file('sync_wait: 10s\n');
  expect(loadConfig({ config }, { GANTRY_SYNC_WAIT: '90s' }).syncWaitMs).toBe(90_000);
  expect(loadConfig({ config }, { GANTRY_SYNC_WAIT: '' }).syncWaitMs).toBe(10_000);
  expect(problemsOf(() => loadConfig({ config }, { GANTRY_SYNC_WAIT: 'long' }))).toEqual([
    'GANTRY_SYNC_WAIT long: expected a duration like 90s',
  ]);
});

test('what a bundle passes of a setting that was left out counts as not set', async () => {
  const config = await file('output_dir: /file\nmax_concurrent: 4\n');
  for (const [hosts, output] of [
    ['', ''],
    ['${user_config.hosts}', '${user_config.output_dir}'],
  ]) {
    const env = {
      GANTRY_HOSTS: hosts,
      GANTRY_OUTPUT_DIR: output,
      GANTRY_MAX_CONCURRENT: output,
      GANTRY_TIMEOUT: hosts,
    };
    expect(loadConfig({ config }, env)).toMatchObject({ invites: [], outputDir: '/file', maxConcurrent: 4 });
  }
});

test('servers without an agent: flags win over the environment, that over the file, that over defaults', async () => {
  const config = await file('vllm_urls: ["http://file:1"]\nvllm_timeout: 30s\nvllm_linger: 1s\nmax_concurrent: 2\n');
  const env = {
    GANTRY_VLLM_URLS: 'http://env:1,http://env:2/v1 http://env:1/',
    GANTRY_TIMEOUT: '40',
    GANTRY_MAX_CONCURRENT: 'auto',
  };
  const flags = { config, vllmUrl: ['http://flag:1'], timeout: '50', linger: '2s', maxConcurrent: '5' };
  const seen = (from: BridgeFlags, variables: NodeJS.ProcessEnv) => {
    const { vllm, maxConcurrent } = loadConfig(from, variables);
    return {
      urls: vllm.servers.map(({ url }) => url),
      timeoutMs: vllm.timeoutMs,
      lingerMs: vllm.lingerMs,
      maxConcurrent,
    };
  };
  const byFile = { urls: ['http://file:1'], timeoutMs: 30_000, lingerMs: 1_000, maxConcurrent: 2 };
  expect(seen({ config }, {})).toEqual(byFile);
  const urls = ['http://env:1', 'http://env:2']; // twice the same server is one
  expect(seen({ config }, env)).toEqual({ ...byFile, urls, timeoutMs: 40_000, maxConcurrent: undefined });
  expect(seen(flags, env)).toEqual({ urls: ['http://flag:1'], timeoutMs: 50_000, lingerMs: 2_000, maxConcurrent: 5 });
  expect(loadConfig({ config: await file('') }, {}).vllm).toMatchObject({ timeoutMs: 300_000, lingerMs: 30_000 });
});

test.each<[BridgeFlags, NodeJS.ProcessEnv, RegExp]>([
  [{ vllmUrl: ['gpu-box:8000'] }, {}, /is no URL of a server/],
  [{ timeout: '5m' }, {}, /--timeout 5m: expected seconds/],
  [{}, { GANTRY_TIMEOUT: '0' }, /expected seconds/],
  [{ linger: '30' }, {}, /--linger 30: expected a duration/],
  [{ maxConcurrent: '0' }, {}, /--max-concurrent 0: expected auto, or a number from 1 to 1000/],
  [{}, { GANTRY_MAX_CONCURRENT: '1001' }, /expected auto, or a number/],
])('%j with %j is refused', async (flags, env, expected) => {
  const config = await file('');
  expect(problemsOf(() => loadConfig({ config, ...flags }, env)).join('\n')).toMatch(expected);
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
    expect(errorOf(() => loadConfig({ config }, {}))?.mend).toBe(`chmod 600 ${config}`);
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
