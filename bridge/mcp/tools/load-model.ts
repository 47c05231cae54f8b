import { z } from 'zod';
import { AppError } from '../../../shared/errors.ts';
import { capableHost, freeVramMiB, swapOf } from '../../fleet/host-forecast.ts';
import { refusalText } from '../../fleet/placement.ts';
import { host, waitSeconds } from '../arguments.ts';
import type { ConnectedHost } from '../hosts.ts';
import { connectedHosts } from '../hosts.ts';
import { findModel } from '../model-choice.ts';
import { MoveAnswer, moveModels } from '../moves.ts';
import { defineTool, MOVES } from '../tool.ts';

export const loadModel = defineTool({
  name: 'load_model',
  title: 'Load a model',
  description: 'Bring a model onto a GPU; idle models make room. Ends the time that batch work leaves it away.',
  annotations: MOVES,
  input: z.strictObject({
    model: z.string().min(1).max(200),
    host,
    wait_seconds: waitSeconds,
  }),
  output: MoveAnswer,
  run: async (args, context) => {
    const fleet = await context.fleet();
    const hosts = connectedHosts(fleet.hosts(), args.host);
    const { id } = findModel(hosts, args.model);
    const name = args.host ?? soonestHost(hosts, id);
    return moveModels('load', [{ host: name, model: id }], { fleet, context, waitSeconds: args.wait_seconds });
  },
});

/** Where the model is ready soonest; among equals, where more VRAM is free. */
function soonestHost(hosts: readonly ConnectedHost[], model: string): string {
  const judged = hosts.map((view) => capableHost(view, { model, class: 'interactive', kind: undefined }));
  const [best] = judged
    .flatMap((found) => ('reason' in found ? [] : [found]))
    .map((found) => {
      const { swapMs, evictMs } = swapOf(found.snapshot, found.model);
      return { name: found.host.name, ms: swapMs + evictMs, freeMiB: freeVramMiB(found.snapshot) };
    })
    .sort((a, b) => a.ms - b.ms || b.freeMiB - a.freeMiB || (a.name < b.name ? -1 : 1));
  if (best !== undefined) return best.name;
  // A load mends what keeps jobs away for now: weights that are not there yet, a failure, the turn of another model.
  const possible = judged.flatMap((found) => ('reason' in found && !found.isForever ? [found.host] : []))[0];
  if (possible !== undefined) return possible;
  throw new AppError(
    'NO_HOST',
    refusalText(
      model,
      judged.flatMap((found) => ('reason' in found ? [found] : [])),
    ),
  );
}
