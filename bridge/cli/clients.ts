import { posix, win32 } from 'node:path';
import { AppError } from '../../shared/errors.ts';
import { nearest } from '../../shared/nearest.ts';

/** How a client starts the bridge. */
export type Start = { command: string; args: readonly string[] };

/** Where programs of this person keep their settings. */
export type Places = {
  platform: 'linux' | 'darwin' | 'win32';
  home: string;
  /** XDG's, used on Linux only. */
  configHome: string;
  appData: string;
  localAppData: string;
};

export type McpClient = {
  name: string;
  title: string;
  format: 'json' | 'toml';
  /** Its file, or those where it may be; a relative one lies in the project. */
  files: (places: Places) => string[];
  /** What belongs into that file. */
  settings: (start: Start) => object;
  /** The command that writes it, where the client has one. */
  adds?: (start: Start) => string[];
  /** A link that asks the client to add it. */
  link?: (start: Start) => string;
};

const KEY = 'gantry';
/** Milliseconds that a client waits for a call: a model may have to be loaded first. */
const CALL_MS = 600_000;

const common = ({ command, args }: Start): object => ({ mcpServers: { [KEY]: { command, args } } });

/** The clients whose configuration is known, with what each of them needs. */
export const CLIENTS: readonly McpClient[] = [
  {
    name: 'claude-code',
    title: 'Claude Code',
    format: 'json',
    files: () => ['.mcp.json'],
    settings: (start) => ({ mcpServers: { [KEY]: { type: 'stdio', ...start, timeout: CALL_MS } } }),
    adds: ({ command, args }) => ['claude', 'mcp', 'add', KEY, '--scope', 'user', '--', command, ...args],
  },
  {
    name: 'claude-desktop',
    title: 'Claude Desktop',
    format: 'json',
    files: claudeDesktopFiles,
    settings: common,
  },
  {
    name: 'cursor',
    title: 'Cursor',
    format: 'json',
    files: (places) => [inHome(places, '.cursor', 'mcp.json')],
    settings: common,
    link: (start) =>
      `https://cursor.com/en/install-mcp?name=${KEY}&config=${encodeURIComponent(Buffer.from(JSON.stringify(start)).toString('base64'))}`,
  },
  {
    name: 'vscode',
    title: 'VS Code',
    format: 'json',
    files: (places) => [inSettings(places, 'Code', 'User', 'mcp.json')],
    settings: (start) => ({ servers: { [KEY]: { type: 'stdio', ...start } } }),
    adds: (start) => ['code', '--add-mcp', JSON.stringify({ name: KEY, ...start })],
    link: (start) => `vscode:mcp/install?${encodeURIComponent(JSON.stringify({ name: KEY, ...start }))}`,
  },
  {
    name: 'windsurf',
    title: 'Windsurf',
    format: 'json',
    files: (places) => [inHome(places, '.codeium', 'windsurf', 'mcp_config.json')],
    settings: common,
  },
  {
    name: 'gemini',
    title: 'Gemini CLI',
    format: 'json',
    files: (places) => [inHome(places, '.gemini', 'settings.json')],
    settings: (start) => ({ mcpServers: { [KEY]: { ...start, timeout: CALL_MS } } }),
    adds: ({ command, args }) => ['gemini', 'mcp', 'add', '-s', 'user', KEY, command, ...args],
  },
  {
    name: 'zed',
    title: 'Zed',
    format: 'json',
    files: (places) => [
      places.platform === 'win32'
        ? win32.join(places.appData, 'Zed', 'settings.json')
        : posix.join(
            places.platform === 'linux' ? places.configHome : `${places.home}/.config`,
            'zed',
            'settings.json',
          ),
    ],
    settings: (start) => ({ context_servers: { [KEY]: { ...start, env: {} } } }),
  },
  {
    name: 'codex',
    title: 'Codex',
    format: 'toml',
    files: (places) => [inHome(places, '.codex', 'config.toml')],
    settings: (start) => ({ ...start, startup_timeout_sec: 30, tool_timeout_sec: CALL_MS / 1_000 }),
    adds: ({ command, args }) => ['codex', 'mcp', 'add', KEY, '--', command, ...args],
  },
];

/** The client somebody means, or all of them. */
export function clientsNamed(name: string | undefined): readonly McpClient[] {
  if (name === undefined) return CLIENTS;
  const found = CLIENTS.find((client) => client.name === name.toLowerCase() || client.title === name);
  if (found !== undefined) return [found];
  const names = CLIENTS.map((client) => client.name);
  const near = nearest(name, names);
  const hint = near === undefined ? '' : ` Did you mean ${near}?`;
  throw new AppError('INVALID_ARGUMENT', `Unknown client '${name}'.${hint} Known clients: ${names.join(', ')}.`);
}

/** The text for the client's file: alone in it, or to be put beside what is there. */
export function snippetOf(client: McpClient, start: Start): string {
  const settings = client.settings(start);
  if (client.format === 'json') return JSON.stringify(settings, undefined, 2);
  const lines = Object.entries(settings).map(([key, value]) => `${key} = ${tomlValue(value)}`);
  return [`[mcp_servers.${KEY}]`, ...lines].join('\n');
}

/** Packaged for Windows, it reads another file than the one that a terminal shows under %APPDATA%. */
function claudeDesktopFiles(places: Places): string[] {
  const name = 'claude_desktop_config.json';
  if (places.platform !== 'win32') return [inSettings(places, 'Claude', name)];
  const packaged = ['Packages', 'Claude_*', 'LocalCache', 'Roaming', 'Claude', name];
  return [win32.join(places.appData, 'Claude', name), win32.join(places.localAppData, ...packaged)];
}

function inHome({ platform, home }: Places, ...parts: string[]): string {
  return (platform === 'win32' ? win32 : posix).join(home, ...parts);
}

function inSettings({ platform, home, configHome, appData }: Places, ...parts: string[]): string {
  if (platform === 'win32') return win32.join(appData, ...parts);
  if (platform === 'darwin') return posix.join(home, 'Library', 'Application Support', ...parts);
  return posix.join(configHome, ...parts);
}

/** JSON's texts, numbers and lists of texts are TOML's, too. */
function tomlValue(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(tomlValue).join(', ')}]`;
  return JSON.stringify(value).replaceAll('\u007f', '\\u007f');
}
