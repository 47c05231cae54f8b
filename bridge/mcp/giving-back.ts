import { z } from 'zod';
import { pause } from '../../shared/abort.ts';
import type { ModelStateKind, ModelStatus } from '../../shared/host-snapshot.ts';
import { host, model, waitSeconds } from './arguments.ts';
import type { ConnectedHost } from './hosts.ts';
import { connectedHosts } from './hosts.ts';
import { findModel } from './model-choice.ts';
import type { MoveAnswer, MoveTarget } from './moves.ts';
import { moveModels } from './moves.ts';
import type { ToolContext } from './tool.ts';

/** The arguments of offload_gpu and release_gpu. */
export const GivingBack = z.strictObject({
  model: model.describe('Else all idle ones'),
  host,
  wait_seconds: waitSeconds,
});

/** States in which a model has something to give back; one under way is joined. */
const HOLDING: Record<'offload' | 'release', readonly ModelStateKind[]> = {
  offload: ['ready', 'loading', 'offloading'],
  release: ['ready', 'loading', 'offloading', 'offloaded', 'releasing'],
};

/** Hosts report at most four times a second, so that a job that just ended may still show as running. */
const STATUS_LAG_MS = 300;

/** Offloads or releases the named model wherever it holds memory, or every idle one. */
export async function giveBack(
  to: 'offload' | 'release',
  { args, context }: { args: z.output<typeof GivingBack>; context: ToolContext },
): Promise<MoveAnswer> {
  const fleet = await context.fleet();
  if (args.model === undefined) await pause(STATUS_LAG_MS, context.signal);
  const hosts = connectedHosts(fleet.hosts(), args.host);
  const targets = args.model === undefined ? idleModels(to, hosts) : placesOf(to, { hosts, name: args.model });
  if (targets.length > 0) return moveModels(to, targets, { fleet, context, waitSeconds: args.wait_seconds });
  const what = args.model === undefined ? 'No idle model' : `${args.model} does not`;
  return {
    status: 'success',
    message: `${what} ${args.model === undefined ? 'holds' : 'hold'} memory on ${hosts.map(({ name }) => name).join(', ')}; nothing to do.`,
    hosts: [],
    gpu_status: [],
  };
}

function placesOf(
  to: 'offload' | 'release',
  { hosts, name }: { hosts: readonly ConnectedHost[]; name: string },
): MoveTarget[] {
  const { id } = findModel(hosts, name);
  return targetsWhere(hosts, (status) => status.model === id && HOLDING[to].includes(status.state));
}

function idleModels(to: 'offload' | 'release', hosts: readonly ConnectedHost[]): MoveTarget[] {
  return targetsWhere(
    hosts,
    ({ state, slots, isPinned }) =>
      !isPinned &&
      (state === 'ready' || (to === 'release' && state === 'offloaded')) &&
      slots.every(({ phase }) => phase !== 'running' && phase !== 'accepted'),
  );
}

function targetsWhere(hosts: readonly ConnectedHost[], isMeant: (status: ModelStatus) => boolean): MoveTarget[] {
  return hosts.flatMap((view) =>
    view.snapshot.models.filter(isMeant).map((status) => ({ host: view.name, model: status.model })),
  );
}
