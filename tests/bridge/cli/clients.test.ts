import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import { CLIENTS, clientsNamed, snippetOf } from '../../../bridge/cli/clients.ts';
import { typed } from '../../../shared/typed.ts';
import type { Places } from '../../../bridge/cli/clients.ts';
import { clientPlaces } from '../../../bridge/config.ts';

const START = {
  command: 'C:\\Program Files\\nodejs\\node.exe',
  args: ["/home/ann o'neill/gantry/dist/gantry.cjs", 'bridge', 'say "no"'],
};
const LINUX: Places = {
  platform: 'linux',
  home: '/home/ann',
  configHome: '/home/ann/.config',
  appData: '',
  localAppData: '',
};
const MAC: Places = { ...LINUX, platform: 'darwin', home: '/Users/ann', configHome: '/elsewhere' };
const WINDOWS: Places = {
  platform: 'win32',
  home: 'C:\\Users\\ann',
  configHome: '',
  appData: 'C:\\Users\\ann\\AppData\\Roaming',
  localAppData: 'C:\\Users\\ann\\AppData\\Local',
};

const JSON_CLIENTS = CLIENTS.filter(({ format }) => format === 'json');

/** Parsed by a program that knows the language; without it the test is skipped and counted. */
async function parsedToml(text: string): Promise<unknown> {
  const program = 'import json, sys, tomllib; print(json.dumps(tomllib.loads(sys.argv[1])))';
  return JSON.parse((await promisify(execFile)('python3', ['-c', program, text])).stdout);
}

const hasTomlParser = await parsedToml('a = 1').then(
  () => true,
  () => false,
);

test('the eight clients are there, each under one name', () => {
  expect(CLIENTS.map(({ name }) => name).sort()).toEqual(
    ['claude-code', 'claude-desktop', 'codex', 'cursor', 'gemini', 'vscode', 'windsurf', 'zed'].sort(),
  );
});

test.each(JSON_CLIENTS)('the snippet for $name is JSON with the command under one key', (client) => {
  const parsed: unknown = JSON.parse(snippetOf(client, START));
  const key = { vscode: 'servers', zed: 'context_servers' }[client.name] ?? 'mcpServers';
  expect(parsed).toMatchObject({ [key]: { gantry: START } });
  expect(Object.keys(parsed as object)).toEqual([key]); // an object by the line above
});

test.skipIf(!hasTomlParser)('the snippet for codex is TOML', async () => {
  const [codex] = clientsNamed('codex');
  expect(codex && (await parsedToml(snippetOf(codex, START)))).toEqual({
    mcp_servers: { gantry: { ...START, startup_timeout_sec: 30, tool_timeout_sec: 600 } },
  });
});

describe('files', () => {
  test.each([
    ['claude-code', LINUX, ['.mcp.json']],
    ['claude-desktop', LINUX, ['/home/ann/.config/Claude/claude_desktop_config.json']],
    ['claude-desktop', MAC, ['/Users/ann/Library/Application Support/Claude/claude_desktop_config.json']],
    [
      'claude-desktop',
      WINDOWS,
      [
        'C:\\Users\\ann\\AppData\\Roaming\\Claude\\claude_desktop_config.json',
        'C:\\Users\\ann\\AppData\\Local\\Packages\\Claude_*\\LocalCache\\Roaming\\Claude\\claude_desktop_config.json',
      ],
    ],
    ['cursor', MAC, ['/Users/ann/.cursor/mcp.json']],
    ['cursor', WINDOWS, ['C:\\Users\\ann\\.cursor\\mcp.json']],
    ['vscode', LINUX, ['/home/ann/.config/Code/User/mcp.json']],
    ['vscode', MAC, ['/Users/ann/Library/Application Support/Code/User/mcp.json']],
    ['vscode', WINDOWS, ['C:\\Users\\ann\\AppData\\Roaming\\Code\\User\\mcp.json']],
    ['windsurf', LINUX, ['/home/ann/.codeium/windsurf/mcp_config.json']],
    ['gemini', WINDOWS, ['C:\\Users\\ann\\.gemini\\settings.json']],
    ['zed', LINUX, ['/home/ann/.config/zed/settings.json']],
    ['zed', MAC, ['/Users/ann/.config/zed/settings.json']],
    ['zed', WINDOWS, ['C:\\Users\\ann\\AppData\\Roaming\\Zed\\settings.json']],
    ['codex', LINUX, ['/home/ann/.codex/config.toml']],
  ] as const)('of %s', (name, places, files) => {
    expect(clientsNamed(name)[0]?.files(places)).toEqual(files);
  });

  test('are looked for where the environment says', () => {
    const env = { XDG_CONFIG_HOME: '/x/config', APPDATA: 'A', LOCALAPPDATA: 'L' };
    expect(clientPlaces(env)).toMatchObject({ configHome: '/x/config', appData: 'A', localAppData: 'L' });
  });
});

test('links carry the same command', () => {
  const [cursor] = clientsNamed('cursor');
  const config = new URL(cursor?.link?.(START) ?? '').searchParams.get('config') ?? '';
  expect(JSON.parse(Buffer.from(config, 'base64').toString())).toEqual(START);
  const [vscode] = clientsNamed('vscode');
  expect(JSON.parse(decodeURIComponent(vscode?.link?.(START).split('?')[1] ?? ''))).toEqual({
    name: 'gantry',
    ...START,
  });
});

test('a misspelt name is refused with the nearest one', () => {
  expect(() => clientsNamed('cursr')).toThrow(
    /Unknown client 'cursr'\. Did you mean cursor\? Known clients: claude-code, /,
  );
});

test.skipIf(process.platform === 'win32')('a command survives the shell that it is typed into', async () => {
  const words = ['printf', '%s\\n', ...START.args, '$HOME', '`id`', 'a\\b'];
  const { stdout } = await promisify(execFile)('sh', ['-c', typed(words, 'linux')]);
  expect(stdout.split('\n').slice(0, -1)).toEqual(words.slice(2));
});
