import { readFileSync } from 'node:fs';
import { LineCounter, parseDocument } from 'yaml';
import type { BridgeConfig, BridgeFlags } from './config.ts';
import { BridgeFile, environment, variable } from './config.ts';
import { listInvites } from './pairing/invited-hosts.ts';

/** One setting as it holds now. `where` is the flag, the variable, or the file with its line. */
export type Setting = {
  key: string;
  /** Null where nothing is set: then `words` say what that means. Tokens are never in here. */
  value: unknown;
  words: string;
  origin: 'flag' | 'environment' | 'file' | 'default';
  where?: string;
};

/** What is stronger than the file, strongest first. */
const OVERRIDES: Record<string, { flag?: keyof BridgeFlags; name?: string }> = {
  vllm_urls: { flag: 'vllmUrl', name: 'GANTRY_VLLM_URLS' },
  vllm_timeout: { flag: 'timeout', name: 'GANTRY_TIMEOUT' },
  vllm_linger: { flag: 'linger' },
  max_concurrent: { flag: 'maxConcurrent', name: 'GANTRY_MAX_CONCURRENT' },
  output_dir: { flag: 'outputDir', name: 'GANTRY_OUTPUT_DIR' },
  result_links: { name: 'GANTRY_RESULT_LINKS' },
  sync_wait: { name: 'GANTRY_SYNC_WAIT' },
};

/** What holds where nothing is set and no value says it. */
const UNSET: Record<string, string> = {
  output_dir: './generated_images in a project below home, else ~/Pictures/gantry',
  default_model: 'the capable model that most hosts have',
  default_edit_model: 'the capable model that most hosts have',
  roots: 'the home and the working directory',
  max_concurrent: 'auto: every free slot',
  sync_wait: 'as long as the client is known to wait, else 45s',
  hosts: 'none yet',
  vllm_urls: 'none',
};

/** Keys whose fields have other names. */
const FIELDS: Record<string, (config: BridgeConfig) => unknown> = {
  vllm_urls: ({ vllm }) => vllm.servers.map(({ url }) => url),
  vllm_timeout: ({ vllm }) => durationText(vllm.timeoutMs),
  vllm_linger: ({ vllm }) => durationText(vllm.lingerMs),
  side_car: ({ hasSideCars }) => hasSideCars,
};

const MASK = 'gantry_... (hidden)';
const DURATIONS = [
  ['h', 3_600_000],
  ['m', 60_000],
  ['s', 1_000],
] as const;

type Sources = { flags: BridgeFlags; env: NodeJS.ProcessEnv };

/** Every setting of a configuration that was loaded with these flags and this environment, and where it comes from. */
export function settingsOf(config: BridgeConfig, flags: BridgeFlags, env = environment()): Setting[] {
  const sources = { flags, env };
  const file = config.file === undefined ? undefined : new FileLines(config.file);
  const hosts = [...hostSettings(config, file), ...inviteSettings(config)];
  const keys = Object.keys(BridgeFile.shape).flatMap((key) =>
    key === 'times' ? Object.keys(BridgeFile.shape.times.unwrap().shape).map((inner) => `times.${inner}`) : [key],
  );
  return [
    placeSetting('file', config.file ?? null, { words: `${config.expectedFile} (not there)`, ...fileOrigin(sources) }),
    placeSetting('state_dir', config.stateDir, { words: config.stateDir, ...stateOrigin(sources) }),
    ...hosts,
    ...keys
      .filter((key) => key !== 'hosts' || hosts.length === 0)
      .map((key): Setting => {
        const value = valueIn(config, key) ?? null;
        return { key, value, words: wordsFor(key, value), ...originOf(key, { ...sources, file }) };
      }),
  ];
}

type From = Pick<Setting, 'origin' | 'where'>;

function placeSetting(key: string, value: string | null, o: { words: string } & From): Setting {
  const { words, ...from } = o;
  return { key, value, words: value ?? words, ...from };
}

function originOf(key: string, { flags, env, file }: Sources & { file: FileLines | undefined }): From {
  const { flag, name } = OVERRIDES[key] ?? {};
  if (flag !== undefined && flags[flag] !== undefined)
    return { origin: 'flag', where: `--${flag.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}` };
  if (name !== undefined && isSet(env, name)) return { origin: 'environment', where: name };
  const line = file?.where(key.split('.'));
  return line === undefined ? { origin: 'default' } : { origin: 'file', where: line };
}

function fileOrigin({ flags, env }: Sources): From {
  if (flags.config !== undefined) return { origin: 'flag', where: '--config' };
  return isSet(env, 'GANTRY_CONFIG') ? { origin: 'environment', where: 'GANTRY_CONFIG' } : { origin: 'default' };
}

function stateOrigin({ env }: Sources): From {
  return env['XDG_STATE_HOME'] && process.platform !== 'win32'
    ? { origin: 'environment', where: 'XDG_STATE_HOME' }
    : { origin: 'default' };
}

/** A list of nothing but its separators names nothing. */
function isSet(env: NodeJS.ProcessEnv, name: string): boolean {
  return (variable(env, name) ?? '').replace(/[\s,]+/g, '') !== '';
}

/** Name by name as they are written, so that nothing is shown which only the program made of it; tokens are masked. */
function hostSettings({ hosts }: BridgeConfig, file: FileLines | undefined): Setting[] {
  return hosts.flatMap(({ name, url }, index) => {
    const row = (key: string, value: string): Setting => {
      const where = file?.where(['hosts', index, key]);
      const from: From = where === undefined ? { origin: 'default' } : { origin: 'file', where };
      return { key: `hosts.${name}.${key}`, value, words: value, ...from };
    };
    const certificate = file?.text(['hosts', index, 'certificate']);
    const pinned = certificate?.includes('-----BEGIN') === true ? 'as text' : certificate;
    return [row('url', url), row('token', MASK), ...(pinned === undefined ? [] : [row('certificate', pinned)])];
  });
}

/** The code in an invite is worth a token for ten minutes, so only the address is shown. */
function inviteSettings({ invites, hosts }: BridgeConfig): Setting[] {
  const taken = hosts.map(({ name }) => name);
  return listInvites(invites, taken).map(({ name, url }) => ({
    key: `hosts.${name}.url`,
    value: url,
    words: url,
    origin: 'environment',
    where: 'GANTRY_HOSTS',
  }));
}

/** Most keys of the file and fields of the configuration have the same names, but for the case and the unit. */
function valueIn(config: BridgeConfig, key: string): unknown {
  const field = FIELDS[key];
  return field === undefined ? sameNamed(config, key) : field(config);
}

function sameNamed(config: BridgeConfig, key: string): unknown {
  const [first = '', inner] = key.split('.');
  const [place, name]: [object, string] = inner === undefined ? [config, first] : [config.times, inner];
  const field = name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
  const fields = new Map<string, unknown>(Object.entries(place));
  if (fields.get(field) !== undefined) return fields.get(field);
  const ms = fields.get(`${field}Ms`);
  return typeof ms === 'number' ? durationText(ms) : undefined;
}

function wordsFor(key: string, value: unknown): string {
  if (value === null) return `(${UNSET[key] ?? 'not set'})`;
  if (Array.isArray(value)) return value.length === 0 ? `(${UNSET[key] ?? 'none'})` : value.join(', ');
  return typeof value === 'string' ? value : JSON.stringify(value);
}

function durationText(ms: number): string {
  const [unit, size] = DURATIONS.find(([, each]) => ms >= each && ms % each === 0) ?? ['ms', 1];
  return `${ms / size}${unit}`;
}

/** Where a key stands in the file. */
class FileLines {
  readonly #path: string;
  readonly #counter = new LineCounter();
  readonly #document: ReturnType<typeof parseDocument>;

  constructor(path: string) {
    this.#path = path;
    this.#document = parseDocument(readFileSync(path, 'utf8'), { lineCounter: this.#counter });
  }

  text(path: readonly (string | number)[]): string | undefined {
    const value: unknown = this.#document.getIn(path);
    return typeof value === 'string' ? value : undefined;
  }

  where(path: readonly (string | number)[]): string | undefined {
    const node: unknown = this.#document.getIn(path, true);
    if (typeof node !== 'object' || node === null || !('range' in node) || !Array.isArray(node.range)) return undefined;
    return `${this.#path}:${this.#counter.linePos(Number(node.range[0])).line}`;
  }
}
