import { readFileSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { z } from 'zod';
import { checkConfig, ConfigError, Duration, parseYaml } from '../shared/config-file.ts';
import { LIMITS } from '../shared/limits.ts';
import type { Places } from './cli/clients.ts';
import type { BridgeTimes, HostConfig } from './fleet/host-view.ts';
import { hostConfigs } from './host-entries.ts';
import { isBareInPublic } from './pairing/bare-link.ts';

const HostName = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/, { error: 'expected a short name of letters, digits, dots and dashes' });

const HostEntry = z.strictObject({
  name: HostName,
  url: z
    .string()
    .regex(/^wss?:\/\/([^\s/:]+|\[[0-9a-fA-F:.]+\]):\d{1,5}\/?$/, {
      error: 'expected an address with a port, like wss://10.0.0.5:7801, or ws://127.0.0.1:7801 for a tunnel',
    })
    .refine((url) => !isBareInPublic(url), {
      error: 'ws:// would send the token and the prompts unencrypted to a public address; use wss://, or a tunnel',
    }),
  token: z
    .string()
    .max(200)
    .regex(/^gantry_\S+$/, { error: 'expected what `gantry-agent tokens add` printed: gantry_ and 43 characters' }),
  certificate: z
    .string()
    .min(1)
    .optional()
    .describe(
      'With wss://: the one certificate that is accepted, as text or as the path of a file; `gantry add` writes it.',
    ),
});

const TIMES = {
  ping_every: Duration.optional().describe('A ping goes to each host this often.'),
  silence: Duration.optional().describe('A link without a frame for this long is ended.'),
  offer_every: Duration.optional().describe('While jobs wait they are offered again this often.'),
  reconnect_first: Duration.optional().describe('First delay before a host is called again.'),
  reconnect_max: Duration.optional().describe('Longest delay before a host is called again.'),
  disk_check: Duration.optional().describe('Room and permission to save are looked at this often while a batch runs.'),
};

/** bridge.yaml, every key of it. */
export const BridgeFile = z.strictObject({
  hosts: z
    .array(HostEntry)
    .max(1_000)
    .default([])
    .describe('The GPU hosts: name, address of the agent, and its token.'),
  output_dir: z.string().min(1).optional().describe('Where images are saved unless the call says otherwise.'),
  default_model: z.string().min(1).optional().describe('Model for generate_image and batch_generate without `model`.'),
  default_edit_model: z.string().min(1).optional().describe('Model for edit_image without `model`.'),
  preview: z.enum(['inline', 'none']).default('inline').describe('Whether answers carry small pictures.'),
  roots: z
    .array(z.string().min(1))
    .optional()
    .describe('Directories that tools may read and write, instead of the home and working directory.'),
  side_car: z
    .boolean()
    .default(true)
    .describe(
      'Whether a JPEG or WebP gets a file NAME.json beside it that says how it was made. A PNG says so itself.',
    ),
  sync_wait: Duration.optional().describe('How long a call waits before it answers `running`, for every client.'),
  times: z.strictObject(TIMES).default({}).describe('Intervals and limits of the links.'),
  log_level: z.enum(['debug', 'info', 'warn', 'error']).default('info').describe('What is logged to stderr.'),
});
export type BridgeFile = z.infer<typeof BridgeFile>;

/** Everything the bridge was told, read once. */
export type BridgeConfig = {
  /** The file that was read; undefined where there is none, which is no error: then no host is known. */
  file: string | undefined;
  /** Where it is, or would be. */
  expectedFile: string;
  hosts: HostConfig[];
  /** Of GANTRY_HOSTS: each is paired at its first use. */
  invites: readonly string[];
  outputDir: string | undefined;
  defaultModel: string | undefined;
  defaultEditModel: string | undefined;
  preview: 'inline' | 'none';
  roots: string[] | undefined;
  hasSideCars: boolean;
  syncWaitMs: number | undefined;
  times: BridgeTimes;
  logLevel: BridgeFile['log_level'];
  home: string;
  cwd: string;
  stateDir: string;
  /** The user's style briefs: his own texts, so they are data and no state. */
  stylesDir: string;
};

export type BridgeFlags = { config?: string; outputDir?: string };

/** Defaults < bridge.yaml < environment < flags. Throws ConfigError with every problem found. */
export function loadConfig(
  flags: BridgeFlags = {},
  env: NodeJS.ProcessEnv = process.env,
  { mayBeAbsent = false }: { mayBeAbsent?: boolean } = {},
): BridgeConfig {
  const home = homedir();
  const cwd = process.cwd();
  const asked = flags.config ?? env['GANTRY_CONFIG'];
  const expectedFile = asked === undefined ? defaultFile(home, env) : resolve(cwd, asked);
  const file = readConfigFile(expectedFile, { isRequired: asked !== undefined && !mayBeAbsent });
  const values = naming(expectedFile, () => {
    const checked = checkConfig(BridgeFile, file?.values ?? {});
    checkHosts(checked.hosts);
    return { ...checked, hosts: hostConfigs(checked.hosts, expectedFile) };
  });
  return {
    file: file?.path,
    expectedFile,
    hosts: values.hosts,
    invites: (env['GANTRY_HOSTS'] ?? '').split(/\s+/).filter((line) => line !== ''),
    outputDir: flags.outputDir ?? env['GANTRY_OUTPUT_DIR'] ?? values.output_dir,
    defaultModel: values.default_model,
    defaultEditModel: values.default_edit_model,
    preview: values.preview,
    roots: values.roots,
    hasSideCars: values.side_car,
    syncWaitMs: values.sync_wait,
    times: {
      pingEveryMs: values.times.ping_every ?? LIMITS.pingEveryMs.value,
      silenceMs: values.times.silence ?? LIMITS.silenceMs.value,
      offerEveryMs: values.times.offer_every ?? LIMITS.offerEveryMs.value,
      reconnectFirstMs: values.times.reconnect_first ?? 500,
      reconnectMaxMs: values.times.reconnect_max ?? 30_000,
      diskCheckMs: values.times.disk_check ?? 30_000,
    },
    logLevel: values.log_level,
    home,
    cwd,
    stateDir: stateDirectory(home, env),
    stylesDir: stylesDirectory(home, env),
  };
}

/** For those who say where a setting comes from: only here it is read. */
export function environment(): NodeJS.ProcessEnv {
  return process.env;
}

/** Whether commands use colour; `auto` is on a terminal only. By https://no-color.org and its counterpart. */
export function colourWish(env: NodeJS.ProcessEnv = process.env): 'always' | 'auto' | 'never' {
  if (env['NO_COLOR']) return 'never';
  if (env['FORCE_COLOR'] && env['FORCE_COLOR'] !== '0') return 'always';
  return env['TERM'] === 'dumb' || env['FORCE_COLOR'] === '0' ? 'never' : 'auto';
}

/** Where the MCP clients of this person keep their settings. */
export function clientPlaces(env: NodeJS.ProcessEnv = process.env): Places {
  const home = homedir();
  return {
    platform: process.platform === 'win32' || process.platform === 'darwin' ? process.platform : 'linux',
    home,
    configHome: env['XDG_CONFIG_HOME'] || join(home, '.config'),
    appData: env['APPDATA'] || join(home, 'AppData', 'Roaming'),
    localAppData: env['LOCALAPPDATA'] || join(home, 'AppData', 'Local'),
  };
}

/** The JSON Schema of bridge.yaml, for editors. */
export function configSchema(): Record<string, unknown> {
  return z.toJSONSchema(BridgeFile, { io: 'input' });
}

function readConfigFile(path: string, { isRequired }: { isRequired: boolean }) {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : String(error);
    if (code === 'ENOENT' && !isRequired) return undefined;
    throw new ConfigError([`${path}: cannot be read (${code})`]);
  }
  return naming(path, () => {
    const values = parseYaml(text);
    refuseReadableTokens(path, values);
    return { path, values };
  });
}

/** Every problem says which file it is in. */
function naming<T>(path: string, check: () => T): T {
  try {
    return check();
  } catch (error) {
    if (error instanceof ConfigError) throw new ConfigError(error.problems.map((problem) => `${path}: ${problem}`));
    throw error;
  }
}

/** As ssh does with keys: a token that others on this machine can read is no secret. Windows has no such modes. */
function refuseReadableTokens(path: string, values: Record<string, unknown>): void {
  const hasTokens = Array.isArray(values['hosts']) && values['hosts'].length > 0;
  if (!hasTokens || process.platform === 'win32') return;
  const mode = statSync(path).mode & 0o777;
  if ((mode & 0o077) === 0) return;
  throw new ConfigError([
    `it holds tokens, but others may read it (mode ${mode.toString(8).padStart(3, '0')}). Run: chmod 600 ${path}`,
  ]);
}

function checkHosts(hosts: BridgeConfig['hosts']): void {
  const twice = hosts.filter(({ name }, index) => hosts.findIndex((other) => other.name === name) !== index);
  if (twice.length > 0) throw new ConfigError(twice.map(({ name }) => `hosts: two hosts are named ${name}`));
}

function defaultFile(home: string, env: NodeJS.ProcessEnv): string {
  if (process.platform === 'win32') return join(home, '.gantry', 'bridge.yaml');
  return join(env['XDG_CONFIG_HOME'] || join(home, '.config'), 'gantry', 'bridge.yaml');
}

function stateDirectory(home: string, env: NodeJS.ProcessEnv): string {
  if (process.platform === 'win32') return join(home, '.gantry', 'state');
  return join(env['XDG_STATE_HOME'] || join(home, '.local', 'state'), 'gantry');
}

function stylesDirectory(home: string, env: NodeJS.ProcessEnv): string {
  if (process.platform === 'win32') return join(home, '.gantry', 'styles');
  return join(env['XDG_DATA_HOME'] || join(home, '.local', 'share'), 'gantry', 'styles');
}
