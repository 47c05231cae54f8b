import { hostname, userInfo } from 'node:os';
import { ConfigError } from '../shared/config-file.ts';
import { AppError } from '../shared/errors.ts';
import { EXIT } from '../shared/exit-codes.ts';
import type { AddOptions } from './cli/add.ts';
import { addInvited, addOverSsh, removeNamed } from './cli/add.ts';
import { statusLines } from './cli/status.ts';
import type { BridgeConfig } from './config.ts';
import { loadConfig } from './config.ts';
import { createFleet } from './create-fleet.ts';
import { hostConfigs } from './host-entries.ts';

/** How long the link may take. */
const SETTLE_MS = 5_000;

export type AddFlags = { config?: string; name?: string; ssh?: string };

/** `gantry add`. Resolves with the exit code, and has said what went wrong. */
export async function runAdd(line: string | undefined, flags: AddFlags): Promise<number> {
  return await answered(async () => {
    const config = configOf(flags);
    const options = { ...optionsOf(config), name: flags.name };
    if (flags.ssh !== undefined) await addOverSsh(flags.ssh, options);
    else if (line !== undefined) await addInvited(line, options);
    else
      throw new AppError(
        'INVALID_ARGUMENT',
        'Give the line that `gantry-agent invite` prints on the host, or --ssh user@host.',
      );
  });
}

/** `gantry remove`, likewise. */
export async function runRemove(name: string, flags: AddFlags): Promise<number> {
  return await answered(() => removeNamed(name, optionsOf(configOf(flags))));
}

/** A file that is named and not there yet will be made. */
function configOf({ config }: AddFlags): BridgeConfig {
  return loadConfig(config === undefined ? {} : { config }, undefined, { mayBeAbsent: true });
}

function optionsOf(config: BridgeConfig): AddOptions {
  const { expectedFile: file, hosts } = config;
  const write = (text: string): void => void process.stdout.write(text);
  return {
    file,
    hosts,
    laptop: `${userInfo().username}@${hostname()}`,
    signal: new AbortController().signal, // Ctrl-C ends the process, as with any command
    say: (text) => void process.stderr.write(text),
    show: async (host) => {
      const { certificate, ...entry } = host;
      const hosts = hostConfigs([{ ...entry, certificate }], file);
      const only = { ...config, hosts, invites: [], vllm: { ...config.vllm, servers: [] }, logLevel: 'error' as const };
      await using fleet = createFleet(only, { clientName: () => 'gantry' }).fleet;
      fleet.connect(); // only to look: unfinished batches are not taken over
      await fleet.settled({ signal: AbortSignal.timeout(2 * SETTLE_MS), withinMs: SETTLE_MS });
      const found = fleet.hosts();
      write(`${statusLines(found, process.stdout.columns).join('\n')}\n`);
      return found.some(({ link }) => link.kind === 'up');
    },
  };
}

async function answered(work: () => Promise<void>): Promise<number> {
  try {
    await work();
    return EXIT.ok;
  } catch (error) {
    const lines =
      error instanceof ConfigError ? error.problems : [error instanceof Error ? error.message : String(error)];
    for (const line of lines) process.stderr.write(`gantry: ${line}\n`);
    if (error instanceof ConfigError) return EXIT.config;
    return error instanceof AppError ? (EXITS[error.code] ?? EXIT.failed) : EXIT.failed;
  }
}

const EXITS: Partial<Record<AppError['code'], number>> = {
  INVALID_ARGUMENT: EXIT.usage,
  AGENT_UNREACHABLE: EXIT.unavailable,
  AUTH_FAILED: EXIT.denied,
  RATE_LIMITED: EXIT.tryLater,
};
