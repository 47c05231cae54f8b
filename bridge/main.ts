import './stdout-guard.ts';
import { Command, Option } from 'commander';
import type { AddFlags } from './add-host.ts';
import type { MakingName } from './cli/making.ts';
import type { BridgeConfig, BridgeFlags } from './config.ts';
import type { Session, SessionFlags } from './session.ts';
import { packageVersion } from './version.ts';

// What a command needs is loaded by it: a client waits for the start of the bridge, and a person for the first line.

const program = new Command('gantry')
  .description('Image models on all of your GPU hosts, as if they were one.')
  .version(packageVersion)
  .exitOverride()
  .showSuggestionAfterError()
  .showHelpAfterError('Add --help to see what it takes.')
  .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, 'gantry: ')) })
  .configureHelp({ subcommandTerm: (command) => command.name() });

withBridgeFlags(program.command('bridge'))
  .description('serve an MCP client on stdin and stdout')
  .option('--config <file>', 'bridge.yaml to use')
  .addHelpText('after', example('bridge --output-dir ~/Pictures/gantry'))
  .action(async (flags: BridgeFlags) => {
    const { loadConfig } = await import('./config.ts');
    const config = loadConfig(flags);
    const [{ Bridge }, { serveStdio }] = await Promise.all([import('./bridge.ts'), import('./mcp/stdio.ts')]);
    const bridge = new Bridge(config);
    if (process.stdin.isTTY) process.stderr.write(`${waitingText(config)}\n`);
    await serveStdio(bridge.server, { detach: () => bridge.detach() });
    // Not left to the end of the last handle: a socket to a host that is gone can stay open for minutes.
    process.exit(0);
  });

const making: Record<MakingName, Command> = {
  generate: program
    .command('generate <prompt...>')
    .usage('[options] <prompt>')
    .summary('make an image')
    .description('make an image; its path goes to stdout')
    .addHelpText('after', example('generate "a red fox asleep in the moss" --aspect-ratio 16:9 --seed 7')),
  edit: program
    .command('edit <image...>')
    .usage('[options] <image...> <prompt>')
    .summary('edit an image by words')
    .description('edit an image by words; more images are references for the one result')
    .addHelpText('after', example('edit photo.jpg "let it snow" --output-path winter.png')),
  batch: program
    .command('batch <prompts...>')
    .usage('[options] <file | prompts...>')
    .summary('make many images on all hosts')
    .description('make many images on all hosts: of 1 to 20 prompts, or of a .txt, .csv or .jsonl file of prompts')
    .addHelpText('after', example('batch prompts.txt --images-per-prompt 4 --output-dir foxes')),
};
for (const name of ['generate', 'edit', 'batch'] as const) {
  withScreen(making[name]).action((words: string[], flags: SessionFlags) =>
    inSession(flags, async (session) => (await import('./cli/making.ts')).runMaking(name, { words, session })),
  );
}

withScreen(program.command('status'))
  .description('one screen of the fleet')
  .addHelpText('after', example('status'))
  .action((flags: SessionFlags) =>
    inSession(flags, async (session) => (await import('./cli/status.ts')).showStatus(session)),
  );

withScreen(program.command('jobs [id]'))
  .summary('batches, also those of other windows; or one of them')
  .description('batches of this machine, also those of other windows; with an id, each image of that one')
  .option('--wait', 'with an id: follow it to its end, and go on with it if nobody else does')
  .option('--state <state>', 'running, success, partial, failed or cancelled')
  .addOption(new Option('--limit <number>', 'so many of the newest').argParser(Number))
  .addHelpText('after', example('jobs --state running'))
  .action((id: string | undefined, flags: SessionFlags & { wait?: boolean; state?: string; limit?: number }) =>
    inSession(flags, async (session) => {
      const { listJobs, showJob } = await import('./cli/jobs.ts');
      if (id === undefined) return listJobs({ state: flags.state, limit: flags.limit }, session);
      return showJob(id, { isWaiting: flags.wait === true, session });
    }),
  );

withScreen(program.command('cancel <id>'))
  .summary('end a batch, whichever window works on it')
  .description('end a batch, or one image of it, whichever window works on it; what is finished stays')
  .addHelpText('after', example('cancel 1f0c9a52'))
  .action((id: string, flags: SessionFlags) =>
    inSession(flags, async (session) => (await import('./cli/jobs.ts')).cancelJob(id, session)),
  );

withScreen(program.command('hosts'))
  .summary('hosts with link, latency and version')
  .description('each host: its link, how fast it answers, which release runs there')
  .addHelpText('after', example('hosts --json'))
  .action((flags: SessionFlags) =>
    inSession(flags, async (session) => (await import('./cli/hosts.ts')).showHosts(session)),
  );

for (const [to, summary, more] of [
  ['load', 'bring a model onto a GPU', ', where it is ready soonest'],
  ['offload', 'move a model to host RAM', ', so that it comes back fast'],
  ['release', 'end the server of a model', ' and give everything back'],
] as const) {
  withScreen(program.command(`${to} <model>`))
    .summary(summary)
    .description(`${summary}${more}; prints the VRAM before and after`)
    .option(
      '--host <name>',
      to === 'load' ? 'there and nowhere else' : 'only there; otherwise wherever it holds memory',
    )
    .addHelpText('after', example(`${to} qwen-image --host attic`))
    .action((model: string, { host, ...flags }: SessionFlags & { host?: string }) =>
      inSession(flags, async (session) =>
        (await import('./cli/move.ts')).moveModel(to, { model, ...(host !== undefined && { host }) }, session),
      ),
    );
}

withScreen(program.command('drain <host>'))
  .summary('no new work on a host')
  .description('no new work there until `resume`, also after a restart; what runs ends')
  .option('--wait', 'return when nothing runs any more')
  .addHelpText('after', example('drain attic --wait'))
  .action((host: string, { wait, ...flags }: SessionFlags & { wait?: boolean }) =>
    inSession(flags, async (session) =>
      (await import('./cli/drain.ts')).drainHost(host, { isWaiting: wait === true, session }),
    ),
  );
withScreen(program.command('resume <host>'))
  .description('let a host take part again')
  .addHelpText('after', example('resume attic'))
  .action((host: string, flags: SessionFlags) =>
    inSession(flags, async (session) => (await import('./cli/drain.ts')).resumeHost(host, session)),
  );

withScreen(program.command('clients [name]'))
  .summary('configuration for an MCP client')
  .description('what belongs into the configuration of an MCP client, and where that is')
  .addHelpText('after', example('clients cursor'))
  .action((name: string | undefined, flags: SessionFlags) =>
    reported(flags, async () => (await import('./own-start.ts')).showClients(name, flags)),
  );

withScreen(program.command('doctor'))
  .summary('what keeps this laptop from its hosts')
  .description('check this laptop: links, certificates, versions, where images go, clients; each with what mends it')
  .addHelpText('after', example('doctor'))
  .action((flags: SessionFlags) => reported(flags, async () => (await import('./doctor.ts')).runDoctor(flags)));

program
  .command('add [invite]')
  .summary('pair with a host')
  .description('pair with a host: the line that `gantry-agent invite` prints there, in quotes')
  .option('--config <file>', 'bridge.yaml to use')
  .option('--name <name>', 'what to call it here; default: what it calls itself')
  .option('--ssh <user@host>', 'ask for the invite through ssh')
  .addHelpText('after', example('add --ssh me@gpu-box'))
  .action((invite: string | undefined, flags: AddFlags) =>
    reported({}, async () => (await import('./add-host.ts')).runAdd(invite, flags)),
  );

program
  .command('remove <host>')
  .description('forget a host')
  .option('--config <file>', 'bridge.yaml to use')
  .addHelpText('after', example('remove attic'))
  .action((host: string, flags: AddFlags) =>
    reported({}, async () => (await import('./add-host.ts')).runRemove(host, flags)),
  );

const config = program.command('config').description('look at the configuration');
withBridgeFlags(withScreen(config.command('show')))
  .summary('every setting as it holds now, and where it comes from')
  .description('every setting as it holds now, and where it comes from, with the flags of a bridge; tokens are hidden')
  .addHelpText('after', example('config show'))
  .action((flags: SessionFlags) =>
    inSession(flags, async (session) => (await import('./cli/config.ts')).showConfig(session)),
  );
withScreen(config.command('check'))
  .description('say which file is read and every problem in it')
  .addHelpText('after', example('config check'))
  .action((flags: SessionFlags) =>
    inSession(flags, async (session) => (await import('./cli/config.ts')).checkConfig(session)),
  );
config
  .command('schema')
  .description('print the JSON Schema of bridge.yaml')
  .addHelpText('after', example('config schema'))
  .action(async () => {
    const { configSchema } = await import('./config.ts');
    process.stdout.write(`${JSON.stringify(configSchema(), null, 2)}\n`);
  });

void main();

/** CommonJS, which the bundle is, has no await at the top. Nothing is above this that could see a failure. */
async function main(): Promise<void> {
  // Whoever read us has seen enough, as `head` does. A bridge has an end of its own for a client that is gone.
  if (process.argv[2] !== 'bridge') process.stdout.on('error', () => process.exit());
  await reported({}, async () => {
    await addToolFlags();
    await program.parseAsync();
  });
}

/** The flags of these commands are the arguments of the tools that do the same for an assistant: asked for only by them. */
async function addToolFlags(): Promise<void> {
  const name = (['generate', 'edit', 'batch'] as const).find((one) => process.argv.slice(2, 4).includes(one));
  if (name === undefined) return;
  const [{ addMakingFlags }, { flagList }] = await Promise.all([
    import('./cli/making.ts'),
    import('./mcp/flag-list.ts'),
  ]);
  addMakingFlags(making[name], { name, tools: await flagList() });
}

/** Flags of the bridge, and of the command that shows what comes of them. */
function withBridgeFlags(command: Command): Command {
  return command
    .option('--output-dir <directory>', 'where images are saved')
    .option('--vllm-url <url>', 'a plain vLLM-Omni server without an agent; may be repeated', oneMore)
    .option('--max-concurrent <count>', 'images of one batch at a time, over all hosts, or auto')
    .option('--timeout <seconds>', 'for one image of a server given by --vllm-url')
    .option('--linger <duration>', 'how long the agent started for --vllm-url outlives its last bridge');
}

/** Flags of every command that shows something. */
function withScreen(command: Command): Command {
  return command
    .option('--config <file>', 'bridge.yaml to use')
    .option('--json', 'one JSON document on stdout, for programs')
    .option('-q, --quiet', 'nothing on stderr but what went wrong')
    .option('--verbose', 'log what happens on stderr')
    .option('--no-color', 'no colour on a terminal; NO_COLOR does the same');
}

async function inSession(flags: SessionFlags, work: (session: Session) => Promise<number | void>): Promise<void> {
  await reported(flags, async () => {
    const { Session } = await import('./session.ts');
    await using session = new Session(flags);
    return await work(session);
  });
}

/** The exit code tells how a command ended; what went wrong is said on stderr, and with --json on stdout too. */
async function reported(flags: SessionFlags, work: () => Promise<number | void>): Promise<void> {
  try {
    const exitCode = await work();
    if (exitCode !== undefined) process.exitCode = exitCode;
  } catch (error) {
    const { report } = await import('./cli/exit.ts');
    process.exitCode = report(error, { isJson: flags.json === true });
  }
}

function example(words: string): string {
  return `\nExample:\n  $ gantry ${words}`;
}

/** A flag that may be repeated. */
function oneMore(value: string, before: string[] = []): string[] {
  return [...before, value];
}

/** For a person who starts the bridge in a terminal and wonders why nothing happens. */
function waitingText({ file, expectedFile, hosts, vllm }: BridgeConfig): string {
  const inFile = file === undefined ? `no ${expectedFile} yet` : `${hosts.length} in ${file}`;
  const known = [inFile, ...vllm.servers.map(({ url }) => url)].join(', ');
  return `gantry bridge waits for an MCP client on its input (hosts: ${known}). Ctrl-C ends it.`;
}
