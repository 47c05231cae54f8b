import { Command, InvalidArgumentError, Option } from 'commander';
import { socketPath } from '../shared/agent-socket.ts';
import { Duration } from '../shared/config-file.ts';
import { createLog } from '../shared/log.ts';
import { Role } from '../shared/protocol.ts';
import { drain, resume } from './cli/drain.ts';
import { HostClient } from './cli/host-client.ts';
import { invite } from './cli/invite.ts';
import { setListen } from './cli/listen.ts';
import { printLogs } from './cli/logs.ts';
import type { Move } from './cli/move.ts';
import { moveModel } from './cli/move.ts';
import { pullWeights } from './cli/pull.ts';
import { reload } from './cli/reload.ts';
import { printStatus } from './cli/status.ts';
import type { TokenAccess } from './cli/tokens.ts';
import { addToken, listTokens, revokeToken, withTokenAccess } from './cli/tokens.ts';
import type { AgentFlags } from './config.ts';
import { agentFileSchema, configPath, loadAgentConfig, placesOf } from './config.ts';
import { EXIT } from '../shared/exit-codes.ts';
import { fail, report } from './exit.ts';
import { run } from './run.ts';
import { AGENT_VERSION } from './status.ts';
import { TokenStore } from './tokens.ts';

const DEFAULT_LOG_LINES = 100;
/** Ctrl-C ends a command as it ends any program; what the agent was asked for goes on. */
const never = new AbortController().signal;

const program = new Command('gantry-agent')
  .description('Runs image models on the GPUs of this host for gantry bridges.')
  .version(AGENT_VERSION)
  .exitOverride()
  .showSuggestionAfterError();

withFlags(program.command('run'))
  .description('run the daemon in the foreground')
  .option('--listen <address:port>', 'instead of `listen` in the file')
  .option('--log-level <level>', 'debug, info, warn or error')
  .option(
    '--linger <duration>',
    'serve the bridges of this user alone, by link.json in the state directory; end so long after the last of them and of the input',
    durationOf,
  )
  .action(run);

withFlags(program.command('status'))
  .description('one screen: GPUs, models, and what is in the way; ~ marks a guess, until it is measured')
  .option('--json', 'as JSON')
  .action((flags: AgentFlags & { json?: boolean }) =>
    withAgent(flags, (client) => printStatus(client, { isJson: flags.json === true, ...screen() })),
  );
withFlags(program.command('logs <model>'))
  .description("the log of a model's server; a replica is model#2")
  .option('-f, --follow', 'go on with what is written from now on')
  .option('-n, --lines <count>', 'so many lines from its end', countOf, DEFAULT_LOG_LINES)
  .action(async (model: string, flags: AgentFlags & { follow?: boolean; lines: number }) => {
    const { logDir } = await placesOf(flags);
    const { lines } = flags;
    await printLogs({ logDir, model, lines, isFollowing: flags.follow === true, signal: never, write });
  });

withFlags(program.command('drain'))
  .description('take no new work; what runs ends. Lasts until `resume`, also over a restart')
  .option('--wait', 'return when nothing runs any more')
  .action((flags: AgentFlags & { wait?: boolean }) =>
    withAgent(flags, (client) => drain(client, { isWaiting: flags.wait === true, signal: never, write })),
  );
withFlags(program.command('resume'))
  .description('take part again')
  .action((flags: AgentFlags) => withAgent(flags, (client) => resume(client, { write })));
for (const [to, description] of [
  ['load', 'bring a model onto the GPU'],
  ['offload', 'move the weights of a model to host RAM'],
  ['release', 'end the server of a model and give everything back'],
] as const satisfies [Move, string][]) {
  withFlags(program.command(`${to} <model>`))
    .description(`${description}; prints the VRAM before and after`)
    .action((model: string, flags: AgentFlags) =>
      withAgent(flags, (client) => moveModel(client, { model, to, write, say })),
    );
}
withFlags(program.command('reload'))
  .description('take over what agent.yaml says now; running models that did not change are not touched')
  .action((flags: AgentFlags) =>
    withAgent(flags, async (client) => {
      const problems = await reload(client, { write });
      if (problems.length > 0) process.exitCode = fail(EXIT.config, ...problems, 'Nothing was changed.');
    }),
  );

withFlags(program.command('pull <model>'))
  .description('download the weights of a model, with progress; works beside a running daemon')
  .option('--json', 'the result as JSON')
  .action(pull);

const config = program.command('config').description('look at the configuration');
withFlags(config.command('check')).description('print every problem of agent.yaml').action(checkConfig);
config
  .command('schema')
  .description('print the JSON Schema of agent.yaml')
  .action(() => write(`${JSON.stringify(agentFileSchema(), undefined, 2)}\n`));

withFlags(program.command('invite'))
  .description('print the one line that lets a laptop in: it works once, for ten minutes')
  .addOption(new Option('--role <role>', 'what that laptop may do').choices(Role.options).default('operator'))
  .option('--json', 'as JSON, for programs')
  .action((flags: AgentFlags & { role: Role; json?: boolean }) =>
    withAgent(flags, (client) => invite(client, { role: flags.role, isJson: flags.json === true, write, say })),
  );
withFlags(program.command('listen <where>'))
  .description('who can reach this agent: network, local, or ADDRESS:PORT; written into agent.yaml')
  .action((where: string, flags: AgentFlags) =>
    setListen(where, { path: configPath(flags), check: (listen) => loadAgentConfig({ ...flags, listen }), write }),
  );

const tokens = program.command('tokens').description('who may use this host');
withFlags(tokens.command('add <name>'))
  .description('make a token and print it, once')
  .addOption(new Option('--role <role>', 'what it may do').choices(Role.options).default('operator'))
  .action((name: string, flags: AgentFlags & { role: Role }) =>
    withTokens(flags, (store) => addToken(store, { name, role: flags.role, write })),
  );
withFlags(tokens.command('list'))
  .description('show names, roles and last uses')
  .option('--json', 'as JSON')
  .action((flags: AgentFlags & { json?: boolean }) =>
    withRunningTokens(flags, (access) => listTokens(access, { isJson: flags.json === true, write })),
  );
withFlags(tokens.command('revoke <name>'))
  .description('end a token; its links close within a second')
  .action((name: string, flags: AgentFlags) =>
    withRunningTokens(flags, (access) => revokeToken(access, { name, write })),
  );

await main();

async function main(): Promise<void> {
  process.stdout.on('error', () => process.exit(EXIT.ok)); // whoever read us has seen enough
  try {
    await program.parseAsync();
    process.exit(); // all is disposed; a child inside a library must not keep the process
  } catch (error) {
    process.exit(report(error));
  }
}

function withFlags(command: Command): Command {
  return command
    .option('--config <file>', 'configuration; default $GANTRY_CONFIG, else /etc/gantry/agent.yaml')
    .option('--state-dir <dir>', 'instead of `state_dir` in the file');
}

async function withAgent(flags: AgentFlags, ask: (client: HostClient) => Promise<void>): Promise<void> {
  using client = await HostClient.connect(socketPath((await placesOf(flags)).stateDir));
  await ask(client);
}

async function withTokens(flags: AgentFlags, work: (store: TokenStore) => Promise<void>): Promise<void> {
  await using store = new TokenStore({ stateDir: (await placesOf(flags)).stateDir });
  await work(store);
}

async function withRunningTokens(flags: AgentFlags, work: (access: TokenAccess) => Promise<void>): Promise<void> {
  const { stateDir } = await placesOf(flags);
  await withTokens(flags, (store) => withTokenAccess({ socket: socketPath(stateDir), store }, work));
}

/** Ctrl-C ends the downloader and keeps what has arrived. */
async function pull(model: string, flags: AgentFlags & { json?: boolean }): Promise<void> {
  const { models, stateDir, logDir, times } = await loadAgentConfig(flags);
  const stop = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, () => stop.abort());
  const places = {
    models,
    stateDir,
    logDir,
    times,
    log: createLog({ name: 'gantry-agent', to: 'stderr', level: 'silent' }), // its failure is said in words
  };
  const isTerminal = process.stderr.isTTY;
  const print = (text: string): void => write(`${text}\n`);
  try {
    const options = { ...places, isJson: flags.json === true, isTerminal, say, print, signal: stop.signal };
    process.exitCode = await pullWeights(model, options);
  } catch (error) {
    if (!stop.signal.aborted) throw error;
    process.exitCode = fail(EXIT.interrupted, 'Interrupted. What has arrived is kept for the next time.');
  }
}

async function checkConfig(flags: AgentFlags): Promise<void> {
  const settings = await loadAgentConfig(flags);
  for (const warning of settings.warnings) write(`warning: ${warning}\n`);
  const count = settings.models.length;
  write(`${configPath(flags)}: ok, ${count} ${count === 1 ? 'model' : 'models'}\n`);
}

function screen(): { columns: number | undefined; write: (text: string) => void } {
  return { columns: process.stdout.isTTY ? process.stdout.columns : undefined, write };
}

function countOf(text: string): number {
  if (/^\d{1,6}$/.test(text)) return Number(text);
  throw new InvalidArgumentError('It must be a number of lines.');
}

function durationOf(text: string): number {
  const parsed = Duration.safeParse(text);
  if (parsed.success) return parsed.data;
  throw new InvalidArgumentError('It must be a duration like 30s or 5m.');
}

function write(text: string): void {
  process.stdout.write(text);
}

function say(text: string): void {
  process.stderr.write(text);
}
