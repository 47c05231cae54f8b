import { readFileSync, statSync } from 'node:fs';
import { homedir, hostname, networkInterfaces } from 'node:os';
import { join, resolve } from 'node:path';
import { z } from 'zod';
import { errorCode } from '../shared/errors.ts';
import { checkConfig, ConfigError, Duration, parseYaml } from '../shared/config-file.ts';
import { LIMITS } from '../shared/limits.ts';
import { typed } from '../shared/typed.ts';
import type { Places } from './cli/clients.ts';
import type { BridgeTimes, HostConfig } from './fleet/host-view.ts';
import { hostConfigs } from './host-entries.ts';
import { isBareInPublic } from './pairing/bare-link.ts';
import type { VllmServer } from './private-agent/vllm-url.ts';
import { placesFor } from './places.ts';
import { parseVllmUrl } from './private-agent/vllm-url.ts';

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
  vllm_urls: z
    .array(z.string())
    .max(100)
    .default([])
    .describe('Plain vLLM-Omni servers without an agent, like http://gpu-box:8000.'),
  vllm_timeout: Duration.optional().describe('A request to such a server has so long; default 300s.'),
  vllm_linger: Duration.optional().describe(
    'The private agent of such a server ends so long after the last bridge that used it; default 30s.',
  ),
  max_concurrent: z
    .union([z.int().min(1).max(1_000), z.literal('auto')])
    .optional()
    .describe('Images of one batch at a time, over all hosts, where the call does not say; auto: every free slot.'),
  output_dir: z.string().min(1).optional().describe('Where images are saved unless the call says otherwise.'),
  default_model: z.string().min(1).optional().describe('Model for generate_image and batch_generate without `model`.'),
  default_edit_model: z.string().min(1).optional().describe('Model for edit_image without `model`.'),
  preview: z.enum(['inline', 'none']).default('inline').describe('Whether answers carry small pictures.'),
  result_links: z
    .boolean()
    .default(false)
    .describe(
      'Whether answers end with a link to each saved file. Some clients show it, others drop the answer for it.',
    ),
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
  /** Servers that have no agent of their own. */
  vllm: { servers: VllmServer[]; timeoutMs: number; lingerMs: number; env: NodeJS.ProcessEnv };
  maxConcurrent: number | undefined;
  /** Of GANTRY_HOSTS: each is paired at its first use. */
  invites: readonly string[];
  outputDir: string | undefined;
  defaultModel: string | undefined;
  defaultEditModel: string | undefined;
  preview: 'inline' | 'none';
  resultLinks: boolean;
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

export type BridgeFlags = {
  config?: string;
  outputDir?: string;
  vllmUrl?: string[];
  maxConcurrent?: string;
  /** Seconds, as the flag is in the system that others come from. */
  timeout?: string;
  linger?: string;
};

/** Defaults < bridge.yaml < environment < flags. Throws ConfigError with every problem found. */
export function loadConfig(
  flags: BridgeFlags = {},
  env: NodeJS.ProcessEnv = process.env,
  { mayBeAbsent = false }: { mayBeAbsent?: boolean } = {},
): BridgeConfig {
  const home = homedir();
  const cwd = process.cwd();
  const places = placesFor(process.platform, { home, env });
  const asked = flags.config ?? variable(env, 'GANTRY_CONFIG');
  const expectedFile = asked === undefined ? places.configFile : resolve(cwd, asked);
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
    vllm: vllmSettings(values, { flags, env }),
    maxConcurrent: maxConcurrentOf(
      flags.maxConcurrent ?? variable(env, 'GANTRY_MAX_CONCURRENT'),
      values.max_concurrent,
    ),
    invites: (variable(env, 'GANTRY_HOSTS') ?? '').split(/\s+/).filter((line) => line !== ''),
    outputDir: flags.outputDir ?? variable(env, 'GANTRY_OUTPUT_DIR') ?? values.output_dir,
    defaultModel: values.default_model,
    defaultEditModel: values.default_edit_model,
    preview: values.preview,
    resultLinks: switchOf('GANTRY_RESULT_LINKS', env) ?? values.result_links,
    roots: values.roots,
    hasSideCars: values.side_car,
    syncWaitMs: syncWaitOf(variable(env, 'GANTRY_SYNC_WAIT')) ?? values.sync_wait,
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
    stateDir: places.stateDir,
    stylesDir: places.stylesDir,
  };
}

/** Set to nothing counts as not set, and so does the name of a setting that a bundle's user left out: some clients pass that. */
export function variable(env: NodeJS.ProcessEnv, name: string): string | undefined {
  const text = env[name];
  return text === '' || /^\$\{user_config\.\w+\}$/.test(text ?? '') ? undefined : text;
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

const VLLM_TIMEOUT_MS = 300_000;
const VLLM_LINGER_MS = 30_000;

function switchOf(name: string, env: NodeJS.ProcessEnv): boolean | undefined {
  const text = variable(env, name);
  if (text === undefined || text === '0' || text === '1') return text === undefined ? undefined : text === '1';
  throw new ConfigError([`${name} ${text}: expected 0 or 1`]);
}

function syncWaitOf(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const wait = Duration.safeParse(text);
  if (!wait.success) throw new ConfigError([`GANTRY_SYNC_WAIT ${text}: expected a duration like 90s`]);
  return wait.data;
}

function vllmSettings(values: BridgeFile, { flags, env }: { flags: BridgeFlags; env: NodeJS.ProcessEnv }) {
  const fromEnv =
    variable(env, 'GANTRY_VLLM_URLS')
      ?.split(/[\s,]+/)
      .filter((text) => text !== '') ?? [];
  const asked = flags.vllmUrl ?? (fromEnv.length > 0 ? fromEnv : values.vllm_urls);
  const own = asked.length === 0 ? [] : ownAddresses();
  const servers = asked.map((text) => parseVllmUrl(text, own));
  const problems = servers.flatMap((server) =>
    typeof server === 'string' ? `--vllm-url or vllm_urls: ${server}` : [],
  );
  const seconds = flags.timeout ?? variable(env, 'GANTRY_TIMEOUT');
  if (seconds !== undefined && !/^[1-9]\d{0,5}$/.test(seconds))
    problems.push(`--timeout ${seconds}: expected seconds, like 300`);
  const linger = flags.linger === undefined ? undefined : Duration.safeParse(flags.linger);
  if (linger?.success === false) problems.push(`--linger ${flags.linger}: expected a duration like 30s`);
  if (problems.length > 0) throw new ConfigError(problems);
  const urls = new Map(
    servers.flatMap((server) => (typeof server === 'string' ? [] : [[server.url, server] as const])),
  );
  return {
    servers: [...urls.values()],
    timeoutMs: seconds === undefined ? (values.vllm_timeout ?? VLLM_TIMEOUT_MS) : Number(seconds) * 1_000,
    lingerMs: linger?.data ?? values.vllm_linger ?? VLLM_LINGER_MS,
    env: agentEnvironment(env),
  };
}

/** Names and addresses of this machine. */
function ownAddresses(): string[] {
  const interfaces = Object.values(networkInterfaces());
  return [hostname(), ...interfaces.flatMap((all) => all?.map(({ address }) => address) ?? [])];
}

/** What is set for the bridge is not meant for an agent of its own, but for where nvidia-smi is. */
function agentEnvironment(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return Object.fromEntries(
    Object.entries(env).filter(([name]) => !name.startsWith('GANTRY_') || name === 'GANTRY_NVIDIA_SMI'),
  );
}

function maxConcurrentOf(asked: string | undefined, configured: BridgeFile['max_concurrent']): number | undefined {
  const text = asked ?? String(configured ?? 'auto');
  if (text === 'auto') return undefined;
  if (/^[1-9]\d{0,2}$|^1000$/.test(text)) return Number(text);
  throw new ConfigError([`--max-concurrent ${text}: expected auto, or a number from 1 to 1000`]);
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
    const code = errorCode(error) ?? String(error);
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
    if (!(error instanceof ConfigError)) throw error;
    const { problems, mend } = error;
    throw new ConfigError(
      problems.map((problem) => `${path}: ${problem}`),
      { mend },
    );
  }
}

/** As ssh does with keys: a token that others on this machine can read is no secret. Windows has no such modes. */
function refuseReadableTokens(path: string, values: Record<string, unknown>): void {
  const hasTokens = Array.isArray(values['hosts']) && values['hosts'].length > 0;
  if (!hasTokens || process.platform === 'win32') return;
  const mode = statSync(path).mode & 0o777;
  if ((mode & 0o077) === 0) return;
  const mend = typed(['chmod', '600', path], process.platform);
  throw new ConfigError(
    [`it holds tokens, but others may read it (mode ${mode.toString(8).padStart(3, '0')}). Run: ${mend}`],
    { mend },
  );
}

function checkHosts(hosts: BridgeConfig['hosts']): void {
  const twice = hosts.filter(({ name }, index) => hosts.findIndex((other) => other.name === name) !== index);
  if (twice.length > 0) throw new ConfigError(twice.map(({ name }) => `hosts: two hosts are named ${name}`));
}
