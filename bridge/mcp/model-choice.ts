import { AppError } from '../../shared/errors.ts';
import type { ModelStatus } from '../../shared/host-snapshot.ts';
import type { ModelId } from '../../shared/job.ts';
import type { Capability } from '../../shared/model-profile.ts';
import { nearest } from '../../shared/nearest.ts';
import { isUnnamed } from '../fleet/host-forecast.ts';
import type { HostView } from '../fleet/host-view.ts';
import type { ConnectedHost } from './hosts.ts';
import { connectedHosts } from './hosts.ts';
import type { ToolSettings } from './tool.ts';

export type ChosenModel = { id: ModelId; status: ModelStatus; note: string | undefined };

export type ModelWish = {
  /** Id, id without its revision, or alias; undefined where the call names none. */
  asked: string | undefined;
  /** From bridge.yaml, for calls that name none. */
  configured: string | undefined;
  capability: Capability;
  /** Where a model is counted; default: the hosts it may run on. */
  everywhere?: readonly HostView[];
};

type CallArguments = { model?: string | undefined; host?: string | undefined };

/**
 * PURE. The model of a call: the one it names, else the configured default, else, of the capable models of these hosts, the
 * one that most hosts have, ties by name. So a call that names a host gets the same model as one that names none, if it is
 * there. The note says which, where the call did not.
 */
export function chooseModel(
  hosts: readonly ConnectedHost[],
  { asked, configured, capability, everywhere = hosts }: ModelWish,
): ChosenModel {
  if (asked !== undefined) return { ...findModel(hosts, asked), note: undefined };
  if (configured !== undefined) {
    const model = findModel(hosts, configured);
    return { ...model, note: `No model was named: ${model.id} is the configured default.` };
  }
  const here = new Set(capableModels(hosts, capability).map(({ id }) => id));
  const all = here.size === 0 ? [] : capableModels(connectedHosts(everywhere, undefined), capability);
  const [best, ...others] = all.filter(({ id }) => here.has(id));
  if (best === undefined) {
    throw new AppError(
      'MODEL_UNKNOWN',
      `No connected host has a model that can ${capability} images. Known models: ${knownNames(hosts)}. ` +
        'Configure one in agent.yaml of a host; list_hosts shows which hosts are connected.',
    );
  }
  const why = others.length === 0 ? `the only one that can ${capability}` : `on the most hosts (${best.hostCount})`;
  const { id, status } = findModel(hosts, best.id); // its state where it may run
  return { id, status, note: `No model was named: ${id} was chosen, ${why}.` };
}

/** PURE. The model of a call that makes images, on the host it names or on any; the default is that of what it does. */
export function modelOfCall(
  all: readonly HostView[],
  { args, settings, capability }: { args: CallArguments; settings: ToolSettings; capability: Capability },
): ChosenModel {
  const configured = capability === 'generate' ? settings.defaultModel : settings.defaultEditModel;
  return chooseModel(connectedHosts(all, args.host), { asked: args.model, configured, capability, everywhere: all });
}

/** As `chooseModel`, for tools that only look: without a name the model that makes pictures, else the one that edits. */
export function modelToShow(
  hosts: readonly ConnectedHost[],
  { asked, settings }: { asked: string | undefined; settings: ToolSettings },
): ChosenModel {
  const canGenerate = settings.defaultModel !== undefined || capableModels(hosts, 'generate').length > 0;
  return canGenerate
    ? chooseModel(hosts, { asked, configured: settings.defaultModel, capability: 'generate' })
    : chooseModel(hosts, { asked, configured: settings.defaultEditModel, capability: 'edit' });
}

/** Every host that has the model, with its state there. */
export function placesOf(id: ModelId, hosts: readonly ConnectedHost[]): { host: ConnectedHost; status: ModelStatus }[] {
  return hosts.flatMap((host) =>
    host.snapshot.models.filter(({ model }) => model === id).map((status) => ({ host, status })),
  );
}

/** The model somebody means, by id, by repository, or by alias. */
export function findModel(hosts: readonly ConnectedHost[], name: string): { id: ModelId; status: ModelStatus } {
  const all = hosts.flatMap(({ snapshot }) => snapshot.models);
  const status =
    all.find(({ model }) => model === name) ??
    all.find(({ model }) => repositoryOf(model) === name) ??
    all.find(({ alias }) => alias === name) ??
    all.find(({ model, alias }) => [model, repositoryOf(model), alias].some((text) => sameText(text, name)));
  if (status !== undefined) return { id: status.model, status };
  // A name without its owner is what people remember of an id.
  const names = new Map(
    all.flatMap(({ model, alias }) => {
      const repository = repositoryOf(model);
      return [
        [repository.replace(/^.*\//, ''), repository] as const,
        [repository, repository] as const,
        [alias, alias] as const,
      ];
    }),
  );
  const near = names.get(nearest(name, names.keys()) ?? '');
  const hint = near === undefined ? '' : ` Did you mean ${near}?`;
  // One host may be all there is, or the one that the call names: others may have the model.
  const only = hosts.length === 1 ? hosts[0] : undefined;
  const whereNot = only === undefined ? 'configured on no connected host' : `not configured on ${only.name}`;
  throw new AppError(
    'MODEL_UNKNOWN',
    `Model '${name}' is ${whereNot}.${hint} Known models${only === undefined ? '' : ' there'}: ${knownNames(hosts)}.`,
  );
}

/** Every model of these hosts with how many have it, most first, then by name. */
export function capableModels(
  hosts: readonly ConnectedHost[],
  capability: Capability,
): { id: ModelId; status: ModelStatus; hostCount: number }[] {
  const found = new Map<ModelId, { id: ModelId; status: ModelStatus; hostCount: number }>();
  for (const { snapshot } of hosts) {
    for (const status of snapshot.models) {
      if (!status.profile.capabilities.includes(capability)) continue;
      const known = found.get(status.model) ?? { id: status.model, status, hostCount: 0 };
      found.set(status.model, { ...known, hostCount: known.hostCount + 1 });
    }
  }
  // One whose server has not even said its name is no choice where there is another.
  const rank = ({ status }: { status: ModelStatus }): number => (isUnnamed(status) ? 1 : 0);
  return [...found.values()].sort((a, b) => rank(a) - rank(b) || b.hostCount - a.hostCount || (a.id < b.id ? -1 : 1));
}

function knownNames(hosts: readonly ConnectedHost[]): string {
  const names = new Set(
    hosts.flatMap(({ snapshot }) => snapshot.models.map(({ model, alias }) => `${model} (${alias})`)),
  );
  return names.size === 0 ? 'none' : [...names].sort().join(', ');
}

function repositoryOf(model: ModelId): string {
  return model.split('@', 1)[0] ?? model;
}

function sameText(a: string, b: string): boolean {
  return a.toLowerCase() === b.toLowerCase();
}
