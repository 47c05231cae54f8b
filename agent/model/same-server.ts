import type { ConfiguredModel } from '../configured-model.ts';

/**
 * PURE. Whether a server that was started for one definition serves the other as well. Policies, guesses and what is told
 * to the bridges do not matter to it; its name, model, command line, address and number of GPUs do.
 */
export function isSameServer(a: ConfiguredModel, b: ConfiguredModel): boolean {
  return JSON.stringify(startOf(a)) === JSON.stringify(startOf(b));
}

function startOf({ alias, id, engine, launch, gpuCount, offload }: ConfiguredModel): unknown {
  const started =
    launch.kind === 'attached'
      ? [launch.url]
      : [launch.command, launch.args, launch.cwd, Object.entries(launch.env).sort(([a], [b]) => (a < b ? -1 : 1))];
  // Whether it may be offloaded is a flag of its command line.
  return [alias, id, engine, launch.kind, started, gpuCount, offload];
}
