import { existsSync, readFileSync } from 'node:fs';
import { isAbsolute, resolve } from 'node:path';
import type { Places } from './clients.ts';
import { CLIENTS } from './clients.ts';
import type { ClientFact } from './laptop-checks.ts';

export type ClientFiles = { clients: ClientFact[]; unreadable: string[] };

type Start = { command: string; args: readonly string[] };

/** Every client of this person whose configuration starts gantry, with what that names and is not there. */
export function readClientFiles(places: Places, cwd: string): ClientFiles {
  const found: ClientFiles = { clients: [], unreadable: [] };
  for (const { name, format, files } of CLIENTS) {
    for (const file of files(places).map((path) => resolve(cwd, path))) {
      const text = read(file);
      if (text === undefined) continue;
      const starts = format === 'toml' ? startsInToml(text) : startsInJson(text);
      if (starts === undefined) found.unreadable.push(file);
      for (const start of starts ?? []) found.clients.push({ client: name, file, missing: missingIn(start) });
    }
  }
  return found;
}

/** Files that a start names by their whole path; a program without one is found on the PATH, which clients set themselves. */
function missingIn({ command, args }: Start): string[] {
  return [command, ...args].filter((word) => isAbsolute(word) && /[^/\\]\.?\w+$/.test(word) && !existsSync(word));
}

/** Undefined where it is no JSON; comments and commas at the end of a list are allowed, as editors do. */
function startsInJson(text: string): Start[] | undefined {
  const value = parse(text) ?? parse(text.replace(/^\s*\/\/.*$/gm, '').replace(/,(\s*[}\]])/g, '$1'));
  if (value === undefined) return undefined;
  const servers = ['mcpServers', 'servers', 'context_servers'].map((key) => field(value, key));
  return servers.flatMap((entries) => (isRecord(entries) ? Object.entries(entries) : [])).flatMap(startOf);
}

function startOf([name, entry]: [string, unknown]): Start[] {
  const command = field(entry, 'command');
  const args = field(entry, 'args');
  if (typeof command !== 'string') return [];
  const words = Array.isArray(args) ? args.filter((word): word is string => typeof word === 'string') : [];
  const isOurs = name === 'gantry' || [command, ...words].some((word) => /(^|[/\\])gantry(\.cjs)?$/.test(word));
  return isOurs ? [{ command, args: words }] : [];
}

/** Only what `gantry clients` writes into such a file. */
function startsInToml(text: string): Start[] {
  const [, block] = /^\[mcp_servers\.gantry\]\s*$([^[]*(?:\[[^\]]*\][^[]*)?)/m.exec(text) ?? [];
  if (block === undefined) return [];
  const [, command = ''] = /^command\s*=\s*"([^"]*)"/m.exec(block) ?? [];
  const [, list = ''] = /^args\s*=\s*\[([^\]]*)\]/m.exec(block) ?? [];
  return [{ command, args: [...list.matchAll(/"([^"]*)"/g)].map(([, word = '']) => word) }];
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text) as unknown; // JSON.parse is `any`
  } catch {
    return undefined;
  }
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined; // that client is not here, or has no such file
  }
}

function field(value: unknown, key: string): unknown {
  return isRecord(value) ? value[key] : undefined;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
