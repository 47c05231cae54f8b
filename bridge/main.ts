import './stdout-guard.ts';
import { Command } from 'commander';
import { ConfigError } from '../shared/config-file.ts';
import { EXIT } from '../shared/exit-codes.ts';
import type { AddFlags } from './add-host.ts';
import { loadConfig } from './config.ts';
import type { BridgeConfig, BridgeFlags } from './config.ts';
import { packageVersion } from './version.ts';

const program = new Command('gantry')
  .description('Image models on all of your GPU hosts, as if they were one.')
  .version(packageVersion);

program
  .command('bridge')
  .description('serve an MCP client on stdin and stdout')
  .option('--config <file>', 'bridge.yaml to use')
  .option('--output-dir <directory>', 'where images are saved')
  .action(async (flags: BridgeFlags) => {
    const config = configOrExit(flags);
    const [{ Bridge }, { serveStdio }] = await Promise.all([import('./bridge.ts'), import('./mcp/stdio.ts')]);
    const bridge = new Bridge(config);
    if (process.stdin.isTTY) process.stderr.write(`${waitingText(config)}\n`);
    await serveStdio(bridge.server, { detach: () => bridge.detach() });
    // Not left to the end of the last handle: a socket to a host that is gone can stay open for minutes.
    process.exit(0);
  });

program
  .command('status')
  .description('one screen of the fleet')
  .option('--config <file>', 'bridge.yaml to use')
  .option('--json', 'as JSON, for programs')
  .action(async ({ json, ...flags }: BridgeFlags & { json?: boolean }) => {
    const config = configOrExit(flags);
    const [{ printStatus }, { createFleet }] = await Promise.all([
      import('./cli/status.ts'),
      import('./create-fleet.ts'),
    ]);
    // The screen says itself what is wrong with a host; the log would say it twice.
    await using fleet = createFleet({ ...config, logLevel: 'error' }, { clientName: () => 'gantry' }).fleet;
    fleet.connect(); // only to look: unfinished batches are not taken over
    const isAnyUp = await printStatus(fleet, {
      isJson: json === true,
      columns: process.stdout.columns,
      write: (text) => process.stdout.write(text),
    });
    process.exitCode = isAnyUp ? 0 : EXIT.unavailable;
  });

program
  .command('add [invite]')
  .description('pair with a host: the line that `gantry-agent invite` prints there, in quotes')
  .option('--config <file>', 'bridge.yaml to use')
  .option('--name <name>', 'what to call it here; default: what it calls itself')
  .option('--ssh <user@host>', 'ask for the invite through ssh')
  .action(async (invite: string | undefined, flags: AddFlags) => {
    process.exitCode = await (await import('./add-host.ts')).runAdd(invite, flags);
  });

program
  .command('remove <host>')
  .description('forget a host')
  .option('--config <file>', 'bridge.yaml to use')
  .action(async (host: string, flags: AddFlags) => {
    process.exitCode = await (await import('./add-host.ts')).runRemove(host, flags);
  });

const config = program.command('config').description('look at the configuration');

config
  .command('check')
  .description('say which file is read and every problem in it')
  .option('--config <file>', 'bridge.yaml to use')
  .action((flags: BridgeFlags) => {
    const { file, expectedFile, hosts } = configOrExit(flags);
    if (file === undefined) {
      process.stderr.write(
        `gantry: there is no ${expectedFile}. Write it with your hosts: README.md, "Set up the laptop".\n`,
      );
      process.exitCode = EXIT.config;
      return;
    }
    const names = hosts.map(({ name }) => name).join(', ') || 'none yet; add one under `hosts`';
    process.stdout.write(`${file}: no problem found. Hosts: ${names}.\n`);
  });

config
  .command('schema')
  .description('print the JSON Schema of bridge.yaml')
  .action(async () => {
    const { configSchema } = await import('./config.ts');
    process.stdout.write(`${JSON.stringify(configSchema(), null, 2)}\n`);
  });

void main();

function configOrExit(flags: BridgeFlags): BridgeConfig {
  try {
    return loadConfig(flags);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    process.stderr.write(`${error.problems.map((problem) => `gantry: ${problem}`).join('\n')}\n`);
    process.exit(EXIT.config);
  }
}

/** For a person who starts the bridge in a terminal and wonders why nothing happens. */
function waitingText({ file, expectedFile, hosts }: BridgeConfig): string {
  const known = file === undefined ? `no ${expectedFile} yet` : `${hosts.length} in ${file}`;
  return `gantry bridge waits for an MCP client on its input (hosts: ${known}). Ctrl-C ends it.`;
}

/** CommonJS, which the bundle is, has no await at the top. Nothing is above this that could see a failure. */
async function main(): Promise<void> {
  try {
    await program.parseAsync();
  } catch (error) {
    process.stderr.write(`gantry: ${error instanceof Error ? error.message : String(error)}\n`);
    process.exitCode = 1;
  }
}
