import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { z } from 'zod';
import { errorCode } from '../shared/errors.ts';
import { reachOf } from '../shared/addresses.ts';
import { checkConfig, ConfigError, parseYaml } from '../shared/config-file.ts';
import { profileFor } from '../shared/profiles.ts';
import type { ModelEntry } from './config-schema.ts';
import { AgentFile } from './config-schema.ts';
import type { ConfiguredModel } from './configured-model.ts';

export type AgentTimes = {
  grantMs: number;
  stopGraceMs: number;
  vramBackMs: number;
  vramBackOffloadedMs: number;
  startDeadlineMs: number;
  stallMs: number;
  jobFloorMs: number;
  jobLimitMs: number;
  healthPollMs: number;
  moveAnswerMs: number;
  inputSilenceMs: number;
  jobGraceMs: number;
  heldAwayMs: number;
  turnMs: number;
  pingEveryMs: number;
  silenceMs: number;
  undrainedMs: number;
  retryFirstMs: number;
};

export type AgentConfig = {
  listen: { host: string; port: number };
  /** Whether the port speaks TLS only. */
  tls: boolean;
  /** Names a Host header may carry besides this machine's own. */
  names: readonly string[];
  stateDir: string;
  logDir: string;
  logLevel: string;
  gpu: {
    reserveMiB: number;
    sampleIntervalMs: number;
    silenceMs: number;
    queryTimeoutMs: number;
    /** Undefined: no GPU of this machine is looked at. */
    nvidiaSmi: string | undefined;
    yieldsToForeign: boolean;
  };
  /** Host RAM that offloaded models leave free. */
  ramReserveMiB: number;
  /** Of the model servers' logs. */
  logs: { maxMiB: number; keep: number };
  models: ConfiguredModel[];
  times: AgentTimes;
  /** What is allowed but probably not meant. */
  warnings: readonly string[];
};

/** What the command line says; each wins over the environment, which wins over the file. */
export type AgentFlags = {
  config?: string;
  listen?: string;
  stateDir?: string;
  logLevel?: string;
  /** How long an agent that serves the bridges of one user goes on without any, in ms. */
  linger?: number;
};

/** What the service manager said when it started this process; nothing of it where a person did. */
export type ServiceSettings = {
  notifySocket: string | undefined;
  /** Without a sign of life for so long the process is killed and started again. */
  watchdogMs: number | undefined;
  /** Whether this process is the main one of a systemd unit, whose control group is its own then. */
  isUnit: boolean;
  /** Where programs are found. */
  path: string;
};

const Places = z.object({ state_dir: AgentFile.shape.state_dir, log_dir: AgentFile.shape.log_dir });

type Environment = Readonly<Record<string, string | undefined>>;

const DEFAULT_PATH = '/etc/gantry/agent.yaml';
const STEP1X_REPOSITORY = 'stepfun-ai/Step1X-Edit';

/**
 * Reads the configuration once: defaults < file < GANTRY_* < flags. Throws ConfigError with every problem.
 * No other module of the agent reads the environment.
 */
export async function loadAgentConfig(flags: AgentFlags, env: Environment = process.env): Promise<AgentConfig> {
  const path = configPath(flags, env);
  const values = await readValues(path);
  overrideWith(values, {
    listen: flags.listen ?? env['GANTRY_LISTEN'],
    // Relative to where it was said: the shell, not the file.
    state_dir: fromHere(flags.stateDir ?? env['GANTRY_STATE_DIR']),
    log_dir: fromHere(env['GANTRY_LOG_DIR']),
    log_level: flags.logLevel ?? env['GANTRY_LOG_LEVEL'],
  });
  if (env['GANTRY_NVIDIA_SMI'] !== undefined) overrideNested(values, 'gpu', { nvidia_smi: env['GANTRY_NVIDIA_SMI'] });
  try {
    return toConfig(checkConfig(AgentFile, values), dirname(path));
  } catch (error) {
    if (error instanceof ConfigError) throw new ConfigError(error.problems.map((problem) => `${path}: ${problem}`));
    throw error;
  }
}

/**
 * Where the agent keeps its things, for commands that need nothing else. The rest of the file is not looked at: a mistake in
 * it must not lock anybody out of the agent that runs.
 */
export async function placesOf(
  flags: AgentFlags,
  env: Environment = process.env,
): Promise<{ stateDir: string; logDir: string }> {
  const given = { state: flags.stateDir ?? env['GANTRY_STATE_DIR'], log: env['GANTRY_LOG_DIR'] };
  const path = configPath(flags, env);
  const values = await readValues(path).catch((error: unknown) => {
    if (given.state === undefined) throw error;
    return {}; // what matters most was said
  });
  const { state_dir: state, log_dir: log } = checkConfig(Places, values);
  const stateDir = given.state === undefined ? resolve(dirname(path), state) : resolve(given.state);
  if (given.log !== undefined) return { stateDir, logDir: resolve(given.log) };
  return { stateDir, logDir: log === undefined ? join(stateDir, 'logs') : resolve(dirname(path), log) };
}

/** Takes the addresses out of the environment: what the agent starts must not be able to speak in its name. */
export function takeServiceSettings(env: NodeJS.ProcessEnv = process.env, pid = process.pid): ServiceSettings {
  const { NOTIFY_SOCKET: notifySocket, WATCHDOG_USEC: watchdog, WATCHDOG_PID: watched, PATH: path } = env;
  const isUnit = env['SYSTEMD_EXEC_PID'] === String(pid);
  for (const name of ['NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID', 'SYSTEMD_EXEC_PID']) delete env[name];
  const isWatched = watched === undefined || watched === String(pid);
  const watchdogMs = isWatched && /^[1-9]\d*$/.test(watchdog ?? '') ? Number(watchdog) / 1_000 : undefined;
  return { notifySocket, watchdogMs, isUnit, path: path ?? '/usr/bin:/bin' };
}

/** From now on engines and downloaders of this process find the caches there that systemd gave to the unit. */
export function useCacheOf(directory: string | undefined, env: NodeJS.ProcessEnv = process.env): void {
  if (directory !== undefined && existsSync(directory)) env['CACHE_DIRECTORY'] ??= directory;
}

/** Where `init` and `doctor` look for programs. */
export function searchSettings(env: Environment = process.env): { path: string; nvidiaSmi: string } {
  return { path: env['PATH'] ?? '/usr/bin:/bin', nvidiaSmi: env['GANTRY_NVIDIA_SMI'] ?? 'nvidia-smi' };
}

/** Throws ConfigError where agent.yaml could not name this address. */
export function checkListen(listen: string): void {
  checkConfig(AgentFile, { listen });
}

export function configPath(flags: AgentFlags, env: Environment = process.env): string {
  return resolve(flags.config ?? env['GANTRY_CONFIG'] ?? DEFAULT_PATH);
}

/** JSON Schema of agent.yaml, for editors. */
export function agentFileSchema(): unknown {
  return { title: 'gantry agent.yaml', ...z.toJSONSchema(AgentFile, { io: 'input' }) };
}

/** The model under the id that its attached server gives it, with the profile of that id. */
export function withServedId(model: ConfiguredModel, id: string): ConfiguredModel {
  const { profile, from } = profileFor(id);
  if (model.profileFrom === 'configured') return { ...model, id, profile: { ...model.profile, model: profile.model } };
  // What agent.yaml says of its capabilities stays true under the other name.
  const isOwnChoice = model.capabilities !== profileFor(model.id).profile.capabilities;
  const capabilities = isOwnChoice ? model.capabilities : profile.capabilities;
  return { ...model, id, profile: { ...profile, capabilities }, profileFrom: from, capabilities };
}

async function readValues(path: string): Promise<Record<string, unknown>> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    const code = errorCode(error) ?? String(error);
    throw new ConfigError([`${path}: cannot be read (${code}). Name the file with --config FILE.`]);
  }
  try {
    return parseYaml(text);
  } catch (error) {
    if (error instanceof ConfigError) throw new ConfigError(error.problems.map((problem) => `${path}: ${problem}`));
    throw error;
  }
}

function fromHere(path: string | undefined): string | undefined {
  return path === undefined ? undefined : resolve(path);
}

function overrideWith(values: Record<string, unknown>, overrides: Record<string, string | undefined>): void {
  for (const [key, value] of Object.entries(overrides)) if (value !== undefined) values[key] = value;
}

function overrideNested(values: Record<string, unknown>, key: string, overrides: Record<string, string>): void {
  const present = values[key];
  values[key] = { ...(typeof present === 'object' ? present : {}), ...overrides };
}

function toConfig(file: AgentFile, baseDir: string): AgentConfig {
  const stateDir = resolve(baseDir, file.state_dir);
  const models = Object.entries(file.models).map(([alias, entry]) => toModel(alias, entry));
  const problems = duplicates(models);
  if (problems.length > 0) throw new ConfigError(problems);
  const { times } = file;
  return {
    listen: file.listen,
    tls: file.tls === undefined ? reachOf(file.listen.host) !== 'loopback' : file.tls === 'on',
    names: file.names,
    stateDir,
    logDir: file.log_dir === undefined ? join(stateDir, 'logs') : resolve(baseDir, file.log_dir),
    logLevel: file.log_level,
    gpu: {
      reserveMiB: file.gpu.reserve,
      sampleIntervalMs: file.gpu.sample_interval,
      silenceMs: file.gpu.silence,
      queryTimeoutMs: file.gpu.query_timeout,
      yieldsToForeign: file.gpu.yield_to_foreign,
      nvidiaSmi: file.gpu.nvidia_smi === 'none' ? undefined : file.gpu.nvidia_smi,
    },
    ramReserveMiB: file.memory.reserve,
    logs: { maxMiB: file.logs.max_size, keep: file.logs.keep },
    models,
    times: {
      grantMs: times.grant,
      stopGraceMs: times.stop_grace,
      vramBackMs: times.vram_back,
      vramBackOffloadedMs: times.vram_back_offloaded,
      startDeadlineMs: times.start_deadline,
      stallMs: times.stall,
      jobFloorMs: times.job_floor,
      jobLimitMs: times.job_limit,
      healthPollMs: times.health_poll,
      moveAnswerMs: times.move_answer,
      inputSilenceMs: times.input_silence,
      jobGraceMs: times.job_grace,
      heldAwayMs: times.held_away,
      turnMs: times.turn,
      pingEveryMs: times.ping_every,
      silenceMs: times.silence,
      undrainedMs: times.undrained,
      retryFirstMs: times.retry_first,
    },
    warnings: Object.entries(file.models).flatMap(([alias, entry]) => warningsOf(alias, entry)),
  };
}

function toModel(alias: string, entry: ModelEntry): ConfiguredModel {
  const id = idOf(alias, entry);
  const shipped = profileFor(id);
  const overrides = { ...entry.profile, capabilities: entry.capabilities ?? entry.profile?.capabilities };
  const profile = { ...shipped.profile, ...withoutUndefined(overrides) };
  return {
    alias,
    id,
    engine: entry.engine,
    profile,
    profileFrom: entry.profile === undefined ? shipped.from : 'configured',
    capabilities: profile.capabilities,
    launch: launchOf(entry),
    gpuCount: entry.gpus ?? 1,
    replicas: entry.replicas ?? 1,
    vramMiB: entry.vram ?? null,
    offload: entry.offload ?? 'auto',
    offloadAfterMs: entry.offload_after ?? null,
    releaseAfterMs: entry.release_after ?? null,
    warmsUp: entry.warm_up ?? false,
    preload: entry.preload ?? false,
    pin: entry.pin ?? false,
  };
}

/** An attached server without `model` gets its alias, until the server has said what it serves (agent.ts). */
function idOf(alias: string, entry: ModelEntry): string {
  const model = entry.model ?? (entry.engine === 'step1x-edit' ? STEP1X_REPOSITORY : alias);
  return entry.revision === undefined ? model : `${model}@${entry.revision}`;
}

function launchOf(entry: ModelEntry): ConfiguredModel['launch'] {
  if (entry.attach !== undefined) {
    const { start, stop } = entry;
    const url = entry.attach.replace(/\/+$/, '');
    const isNamedByServer = entry.model === undefined && entry.engine === 'vllm-omni';
    return {
      ...{ kind: 'attached', url },
      ...(isNamedByServer && { isNamedByServer }),
      ...(start && { start }),
      ...(stop && { stop }),
    };
  }
  return {
    kind: 'owned',
    command: entry.command ?? (entry.engine === 'vllm-omni' ? ['vllm', 'serve'] : ['python3', 'unified_server.py']),
    args: entry.args ?? [],
    download: entry.download ?? 'auto',
    ...(entry.cwd === undefined ? {} : { cwd: entry.cwd }),
    env: entry.env ?? {},
  };
}

function duplicates(models: readonly ConfiguredModel[]): string[] {
  return models.flatMap(({ alias, id }, index) => {
    const first = models.slice(0, index).find((other) => other.id === id);
    if (first === undefined) return [];
    return [`models.${alias}.model: ${id} is already models.${first.alias}. For more servers of it use \`replicas\`.`];
  });
}

function warningsOf(alias: string, entry: ModelEntry): string[] {
  const isRepository = entry.model !== undefined && !/^[./~]/.test(entry.model);
  if (entry.attach !== undefined || entry.revision !== undefined || !isRepository) return [];
  return [
    `models.${alias}: no revision. What ${entry.model} means can change under you; ` +
      'pin it with `revision: COMMIT` from the repository page.',
  ];
}

/** exactOptionalPropertyTypes: an override that is absent must not replace a value by undefined. */
function withoutUndefined<T extends object>(value: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(value).filter(([, field]) => field !== undefined)) as {
    [K in keyof T]?: Exclude<T[K], undefined>; // fromEntries loses the key types
  };
}
