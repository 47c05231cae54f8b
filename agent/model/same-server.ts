import type { ConfiguredModel } from '../configured-model.ts';

/**
 * PURE. Whether a server that was started for one definition serves the other as well. Policies, guesses and what is told
 * to the bridges do not matter to it; its name, model, command line, address and number of GPUs do.
 */
export function isSameServer(a: ConfiguredModel, b: ConfiguredModel): boolean {
  return a.alias === b.alias && a.id === b.id && launchText(a) === launchText(b);
}

/** What of a definition decides how its server is started, and with that what it takes of memory and time. */
export function launchText({ engine, launch, gpuCount, offload }: ConfiguredModel): string {
  const started =
    launch.kind === 'attached'
      ? [launch.url]
      : [launch.command, launch.args, launch.cwd, Object.entries(launch.env).sort(([a], [b]) => (a < b ? -1 : 1))];
  // Whether it may be offloaded is a flag of its command line.
  return JSON.stringify([engine, launch.kind, started, gpuCount, offload]);
}
