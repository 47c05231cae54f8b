import { Command, CommanderError, Option } from 'commander';
import { once } from 'node:events';
import { ConfigError } from '../shared/config-file.ts';
import { AppError } from '../shared/errors.ts';
import { createLog } from '../shared/log.ts';
import type { Log } from '../shared/log.ts';
import { Role } from '../shared/protocol.ts';
import { Agent } from './agent.ts';
import type { AgentConfig, AgentFlags } from './config.ts';
import { agentFileSchema, configPath, loadAgentConfig, stateDirOf } from './config.ts';
import { AlreadyRunning } from './single-instance.ts';
import { AGENT_VERSION } from './status.ts';
import { TokenStore } from './tokens.ts';

/** sysexits.h, where it has a word for it. */
const EXIT = { failed: 1, usage: 2, unavailable: 69, cannotCreate: 73, tryLater: 75, config: 78 } as const;

const program = new Command('gantry-agent')
  .description('Runs image models on the GPUs of this host for gantry bridges.')
  .version(AGENT_VERSION)
  .exitOverride()
  .showSuggestionAfterError();

withFlags(program.command('run'))
  .description('run the daemon in the foreground')
  .option('--listen <address:port>', 'instead of `listen` in the file')
  .option('--log-level <level>', 'debug, info, warn or error')
  .action(run);

const config = program.command('config').description('look at the configuration');
withFlags(config.command('check')).description('print every problem of agent.yaml').action(checkConfig);
config
  .command('schema')
  .description('print the JSON Schema of agent.yaml')
  .action(() => print(JSON.stringify(agentFileSchema(), undefined, 2)));

const tokens = program.command('tokens').description('who may use this host');
withFlags(tokens.command('add <name>'))
  .description('make a token and print it, once')
  .addOption(new Option('--role <role>', 'what it may do').choices(Role.options).default('operator'))
  .action(addToken);
withFlags(tokens.command('list'))
  .description('show names, roles and last uses')
  .option('--json', 'as JSON')
  .action(listTokens);
withFlags(tokens.command('revoke <name>'))
  .description('end a token; its links close within a second')
  .action(revokeToken);

await main();

async function main(): Promise<void> {
  try {
    await program.parseAsync();
    process.exit(0); // all is disposed; a child inside a library must not keep the process
  } catch (error) {
    process.exit(report(error));
  }
}

function withFlags(command: Command): Command {
  return command
    .option('--config <file>', 'configuration; default /etc/gantry/agent.yaml')
    .option('--state-dir <dir>', 'instead of `state_dir` in the file');
}

/** Runs until SIGTERM, SIGINT or the end of its terminal. A defect ends the process at once: the next start clears up behind it. */
async function run(flags: AgentFlags): Promise<void> {
  const settings = await loadAgentConfig(flags);
  const log = createLog({ name: 'gantry-agent', to: 'stdout', level: settings.logLevel });
  const stop = new AbortController();
  for (const name of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(name, () => stop.abort());
  const onDefect = (error: unknown): never => endAtDefect(error, log);
  process.on('uncaughtException', onDefect);
  process.on('unhandledRejection', onDefect);
  for (const warning of settings.warnings) log.warn({ event: 'config-warning', message: warning });
  const agent = await startUnlessStopped(settings, { log, signal: stop.signal });
  if (agent === undefined) return;
  log.info({ event: 'listening', ...agent.address, models: settings.models.length, agentVersion: AGENT_VERSION });
  if (!stop.signal.aborted) await once(stop.signal, 'abort');
  log.info({ event: 'stopping' });
  await agent[Symbol.asyncDispose]();
  log.info({ event: 'stopped' });
}

async function startUnlessStopped(
  settings: AgentConfig,
  { log, signal }: { log: Log; signal: AbortSignal },
): Promise<Agent | undefined> {
  try {
    return await Agent.start(settings, { log, signal });
  } catch (error) {
    if (signal.aborted) return undefined;
    throw error;
  }
}

function endAtDefect(error: unknown, log: Log): never {
  log.fatal({ event: 'defect', err: error });
  process.exit(EXIT.failed);
}

async function checkConfig(flags: AgentFlags): Promise<void> {
  const settings = await loadAgentConfig(flags);
  for (const warning of settings.warnings) print(`warning: ${warning}`);
  print(`${configPath(flags)}: ok, ${settings.models.length} ${settings.models.length === 1 ? 'model' : 'models'}`);
}

async function addToken(name: string, flags: AgentFlags & { role: Role }): Promise<void> {
  await using store = new TokenStore({ stateDir: await stateDirOf(flags) });
  print(await store.add({ name, role: flags.role }));
}

async function listTokens(flags: AgentFlags & { json?: boolean }): Promise<void> {
  await using store = new TokenStore({ stateDir: await stateDirOf(flags) });
  const list = (await store.list()).map(({ name, role, createdAt, lastUsedAt }) => ({
    name,
    role,
    createdAt,
    lastUsedAt,
  }));
  if (flags.json === true) print(JSON.stringify(list, undefined, 2));
  else if (list.length === 0) print('There are no tokens. Make one with `gantry-agent tokens add NAME`.');
  else
    for (const { name, role, createdAt, lastUsedAt } of list)
      print(`${name}\t${role}\tmade ${createdAt}\tused ${lastUsedAt ?? 'never'}`);
}

async function revokeToken(name: string, flags: AgentFlags): Promise<void> {
  await using store = new TokenStore({ stateDir: await stateDirOf(flags) });
  await store.revoke(name);
  print(`${name} is revoked.`);
}

/** Says what went wrong, on stderr, and which exit code that is. */
function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT.usage; // it has printed its text
  if (error instanceof ConfigError) return fail(EXIT.config, ...error.problems);
  if (error instanceof AlreadyRunning) return fail(EXIT.tryLater, error.message);
  if (error instanceof AppError) return fail(EXIT.failed, error.message);
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  const message = error instanceof Error ? error.message : String(error);
  if (code === 'EADDRINUSE')
    return fail(EXIT.unavailable, `${message}. Another program has that port; choose another one with \`listen\`.`);
  if (code === 'EADDRNOTAVAIL')
    return fail(EXIT.config, `${message}. \`listen\` must name an address of this machine.`);
  if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS') {
    return fail(
      EXIT.cannotCreate,
      `${message}. Run it as the user that owns state_dir, or choose another one with --state-dir.`,
    );
  }
  return fail(EXIT.failed, message);
}

function fail(exitCode: number, ...lines: string[]): number {
  for (const line of lines) process.stderr.write(`gantry-agent: ${line}\n`);
  return exitCode;
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
