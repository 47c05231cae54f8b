import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { readClientFiles } from '../../../bridge/cli/client-files.ts';
import type { HostFact, LaptopFacts } from '../../../bridge/cli/laptop-checks.ts';
import { LAPTOP_CHECKS, laptopFindings } from '../../../bridge/cli/laptop-checks.ts';
import type { FindingStatus } from '../../../shared/doctor.ts';

const HOST: HostFact = {
  ...{ name: 'attic', url: 'wss://10.0.0.5:7801', isPinned: true, expiresInDays: 3_000, version: '0.1.0' },
  ...{ link: { kind: 'up', latencyMs: 3 }, problems: [], models: [{ alias: 'qwen', id: 'Qwen/Qwen-Image' }] },
};

/** A laptop on which everything is as it should be. */
const GOOD: LaptopFacts = {
  flags: '',
  ...{ nodeVersion: '24.1.0', today: '2026-11-21', ownVersion: '0.1.0', hosts: [HOST], unreadable: [] },
  config: { file: '/home/a/.config/gantry/bridge.yaml', expectedFile: '/x', problems: [] },
  output: { directory: '/home/a/Pictures/gantry', problem: undefined },
  clients: [{ client: 'cursor', file: '/home/a/.cursor/mcp.json', missing: [] }],
};

const host = (change: Partial<HostFact>): Partial<LaptopFacts> => ({ hosts: [{ ...HOST, ...change }] });
const down = (code: string): Partial<LaptopFacts> => host({ link: { kind: 'down', code, message: 'no' } });

const ROWS: [what: string, change: Partial<LaptopFacts>, id: string, status: FindingStatus, words: RegExp][] = [
  ['a node without updates', { nodeVersion: '20.20.2' }, 'node', 'warning', /no security updates/],
  ['no host at all', { hosts: [] }, 'config', 'problem', /has no host/],
  ['no file', { hosts: [], config: { ...GOOD.config, file: undefined } }, 'config', 'problem', /there is no \/x/],
  ['a mistake in it', { config: { ...GOOD.config, problems: ['hosts[0].url: bad'] } }, 'config', 'problem', /bad/],
  ['a host that cannot be reached', down('AGENT_UNREACHABLE'), 'link', 'problem', /attic: AGENT_UNREACHABLE/],
  ['a token that was revoked', down('AUTH_FAILED'), 'link', 'problem', /AUTH_FAILED/],
  ['one agent under two names', down('INVALID_ARGUMENT'), 'link', 'problem', /INVALID_ARGUMENT/],
  ['a host of another protocol', down('VERSION_MISMATCH'), 'link', 'problem', /VERSION_MISMATCH/],
  ['a host that is silent', host({ link: { kind: 'connecting' } }), 'link', 'problem', /no answer yet/],
  ['a link without a pin', host({ isPinned: false }), 'pin', 'warning', /no certificate is pinned/],
  ['a certificate that ends', host({ expiresInDays: 9 }), 'pin', 'warning', /ends in 9 days/],
  ['a slow link', host({ link: { kind: 'up', latencyMs: 900 } }), 'latency', 'warning', /900 ms/],
  ['another release', host({ version: '0.0.9' }), 'version', 'warning', /0\.0\.9 there, 0\.1\.0 here/],
  ['a host in trouble', host({ problems: ['No GPU can be read.'] }), 'host', 'warning', /No GPU can be read/],
  [
    'one alias for two models',
    { hosts: [HOST, { ...HOST, name: 'cellar', models: [{ alias: 'qwen', id: 'Qwen/Qwen-Image-2512' }] }] },
    'alias',
    'warning',
    /qwen means Qwen\/Qwen-Image on attic and Qwen\/Qwen-Image-2512 on cellar/,
  ],
  [
    'images that cannot be saved',
    { output: { directory: '/x', problem: '/x cannot be written (EACCES).' } },
    'output-directory',
    'problem',
    /EACCES/,
  ],
  ['no client', { clients: [] }, 'client', 'warning', /no MCP client/],
  ['a client file with a mistake', { unreadable: ['/x.json'] }, 'client', 'warning', /no valid configuration/],
  [
    'a client that starts what is not there',
    { clients: [{ client: 'cursor', file: '/f', missing: ['/old/gantry.cjs'] }] },
    'client',
    'problem',
    /names \/old\/gantry\.cjs, which is not there/,
  ],
];

describe('the doctor of a laptop', () => {
  test('finds nothing on one that is well', () => {
    expect(laptopFindings(GOOD).filter(({ status }) => status !== 'ok')).toEqual([]);
  });

  test.each(ROWS)('finds %s', (_, change, id, status, words) => {
    const found = laptopFindings({ ...GOOD, ...change }).filter((one) => one.id === id && one.status !== 'ok');
    expect(found.map((finding) => finding.status)).toEqual([status]);
    expect(found[0]?.detail).toMatch(words);
    expect(found[0]?.hint, 'a command').toMatch(/^\S+( \S|$)/);
  });

  test('every command of ours is about the file that it was run for', () => {
    const flags = " --config '/srv/my bridge.yaml'";
    const hints = ROWS.flatMap(([, change]) => laptopFindings({ ...GOOD, ...change, flags }))
      .flatMap(({ hint }) => hint?.split(/[;,] /, 1) ?? [])
      .filter((hint) => hint.startsWith('gantry ') && !/^gantry (clients|--version)/.test(hint));
    const commands = ["add 'LINE'", 'config check', 'remove attic', 'status'];
    expect([...new Set(hints)].sort()).toEqual(commands.map((words) => `gantry ${words}${flags}`).sort());
  });

  test('of a host behind a tunnel names the port of its own address', () => {
    const change = { url: 'ws://127.0.0.1:7803', link: { kind: 'connecting' } } as const;
    const [found] = laptopFindings({ ...GOOD, ...host(change) }).filter(({ id }) => id === 'link');
    expect(found?.hint).toMatch(/^ssh -N -L 7803:127\.0\.0\.1:7801 THAT-HOST, /);
  });

  test('of a file that others may read names the command that closes it', () => {
    const config = { ...GOOD.config, problems: ['/x: others may read it'], mend: 'chmod 600 /x' };
    const [found] = laptopFindings({ ...GOOD, config }).filter(({ id }) => id === 'config');
    expect(found?.hint).toBe('chmod 600 /x');
  });

  test('has a row here for every check', () => {
    const failing = LAPTOP_CHECKS.filter((check) =>
      ROWS.some(([, change]) => [check({ ...GOOD, ...change })].flat().some(({ status }) => status !== 'ok')),
    );
    expect(failing).toHaveLength(LAPTOP_CHECKS.length);
  });
});

describe('clients that start gantry', () => {
  let home: string;
  beforeEach(async () => {
    home = await mkdtemp(join(tmpdir(), 'gantry-clients-'));
  });
  afterEach(() => rm(home, { recursive: true, force: true }));

  test('are found in their own files, with what is not there', async () => {
    const here = join(home, 'gantry.cjs');
    const gone = join(home, 'gone', 'gantry.cjs');
    await write('gantry.cjs', '');
    await write('.cursor/mcp.json', JSON.stringify({ mcpServers: { other: { command: 'x' }, gantry: start(here) } }));
    await write(
      '.config/zed/settings.json',
      `{\n  // mine\n  "context_servers": { "images": ${JSON.stringify(start(gone))}, },\n}`,
    );
    await write(
      '.codex/config.toml',
      `[mcp_servers.gantry]\ncommand = "${process.execPath}"\nargs = ["${gone}", "bridge"]\n\n[other]\n`,
    );
    await write('.gemini/settings.json', '{ not json');
    const places = {
      ...{ platform: 'linux' as const, home, configHome: join(home, '.config') },
      appData: '',
      localAppData: '',
    };
    const { clients, unreadable } = readClientFiles(places, home);
    expect(clients).toEqual([
      { client: 'cursor', file: join(home, '.cursor/mcp.json'), missing: [] },
      { client: 'zed', file: join(home, '.config/zed/settings.json'), missing: [gone] },
      { client: 'codex', file: join(home, '.codex/config.toml'), missing: [gone] },
    ]);
    expect(unreadable).toEqual([join(home, '.gemini/settings.json')]);
  });

  function start(program: string) {
    return { command: process.execPath, args: [program, 'bridge'] };
  }

  async function write(name: string, text: string): Promise<void> {
    await mkdir(join(home, dirname(name)), { recursive: true });
    await writeFile(join(home, name), text);
  }
});
