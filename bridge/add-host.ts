import { hostname, userInfo } from 'node:os';
import { AppError } from '../shared/errors.ts';
import type { AddOptions } from './cli/add.ts';
import { addInvited, addOverSsh, removeNamed } from './cli/add.ts';
import { statusLines } from './cli/status.ts';
import type { BridgeConfig } from './config.ts';
import { loadConfig } from './config.ts';
import { createFleet } from './create-fleet.ts';
import { hostConfigs } from './host-entries.ts';

export type AddFlags = { config?: string; name?: string; ssh?: string };

const NO_INVITE = 'Give the line that `gantry-agent invite` prints on the host, or --ssh user@host.';
/** How long the new link may take; one that is not there by then is tried again by whoever uses it. */
const SETTLE_MS = 5_000;

/** `gantry add`. */
export async function runAdd(line: string | undefined, flags: AddFlags): Promise<void> {
  const options = { ...optionsOf(configOf(flags)), name: flags.name };
  if (flags.ssh !== undefined) await addOverSsh(flags.ssh, options);
  else if (line !== undefined) await addInvited(line, options);
  else throw new AppError('INVALID_ARGUMENT', NO_INVITE);
}

/** `gantry remove`. */
export async function runRemove(name: string, flags: AddFlags): Promise<void> {
  await removeNamed(name, optionsOf(configOf(flags)));
}

/** A file that is named and not there yet will be made. */
function configOf({ config }: AddFlags): BridgeConfig {
  return loadConfig(config === undefined ? {} : { config }, undefined, { mayBeAbsent: true });
}

function optionsOf(config: BridgeConfig): AddOptions {
  const { expectedFile: file, hosts } = config;
  return {
    file,
    hosts,
    laptop: `${userInfo().username}@${hostname()}`,
    signal: new AbortController().signal, // Ctrl-C ends the process, as with any command
    say: (text) => void process.stderr.write(text),
    show: async (host) => {
      const { certificate, ...entry } = host;
      const hosts = hostConfigs([{ ...entry, certificate }], file);
      const vllm = { ...config.vllm, servers: [] };
      const only = { ...config, hosts, vllm, invites: [], logLevel: 'error' as const };
      await using fleet = createFleet(only, { clientName: () => 'gantry' }).fleet;
      fleet.connect(); // only to look: unfinished batches are not taken over
      await fleet.settled({ signal: new AbortController().signal, withinMs: SETTLE_MS });
      const views = fleet.hosts();
      process.stdout.write(`${statusLines(views, process.stdout.columns).join('\n')}\n`);
      return views.some(({ link }) => link.kind === 'up');
    },
  };
}
