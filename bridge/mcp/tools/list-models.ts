import { z } from 'zod';
import type { ModelStatus } from '../../../shared/host-snapshot.ts';
import { connectedHosts, estimateNotes } from '../hosts.ts';
import type { ConnectedHost } from '../hosts.ts';
import { capableModels, findModel, placesOf } from '../model-choice.ts';
import { DownloadJson, downloadJson, modelLocation } from '../status-json.ts';
import type { ToolSettings } from '../tool.ts';
import { defineTool, READS } from '../tool.ts';
import { gb } from '../units.ts';

const ModelEntry = z.object({
  model: z.string(),
  aliases: z.array(z.string()),
  capabilities: z.array(z.string()),
  is_default: z.boolean(),
  is_default_edit: z.boolean(),
  hosts: z.array(
    z.object({
      host: z.string(),
      state: z.string(),
      model_location: z.string(),
      gpus: z.array(z.string()),
      vram_gb: z.number(),
      loaded_vram_gb: z.number(),
      peak_vram_gb: z.number(),
      is_measured: z.boolean(),
      detail: z.string().optional(),
      download: DownloadJson.optional(),
    }),
  ),
});

const output = z.object({ status: z.string(), models: z.array(ModelEntry), warnings: z.array(z.string()) });

export const listModels = defineTool({
  name: 'list_models',
  title: 'List models',
  description: 'Every model of every connected host: abilities, where it is loaded, VRAM, defaults.',
  annotations: READS,
  input: z.strictObject({}),
  output,
  run: async (_, context) => {
    const fleet = await context.fleet();
    const hosts = connectedHosts(fleet.hosts(), undefined);
    const defaults = {
      generate: defaultId(hosts, 'generate', context.settings.defaultModel),
      edit: defaultId(hosts, 'edit', context.settings.defaultEditModel),
    };
    const ids = [...new Set(hosts.flatMap(({ snapshot }) => snapshot.models.map(({ model }) => model)))].sort();
    return {
      status: 'success',
      models: ids.map((id) => modelEntry(id, { hosts, defaults })),
      warnings: [
        ...warningsOf(hosts),
        ...estimateNotes(hosts),
        ...ambiguousAliases(hosts),
        ...defaultWarnings(hosts, context.settings),
      ],
    };
  },
});

function modelEntry(
  id: string,
  {
    hosts,
    defaults,
  }: { hosts: readonly ConnectedHost[]; defaults: { generate: string | undefined; edit: string | undefined } },
): z.input<typeof ModelEntry> {
  const places = placesOf(id, hosts);
  return {
    model: id,
    aliases: [...new Set(places.map(({ status }) => status.alias))],
    capabilities: [...new Set(places.flatMap(({ status }) => status.profile.capabilities))],
    is_default: defaults.generate === id,
    is_default_edit: defaults.edit === id,
    hosts: places.map(({ host, status }) => ({
      host: host.name,
      state: status.state,
      model_location: modelLocation(status),
      gpus: gpuNames(host, status),
      vram_gb: gb(status.heldMiB),
      loaded_vram_gb: gb(status.loadedMiB),
      peak_vram_gb: gb(status.peakMiB),
      is_measured: status.isMeasured,
      ...(status.detail !== undefined && { detail: status.detail }),
      ...downloadJson(status),
    })),
  };
}

function gpuNames({ snapshot }: ConnectedHost, { gpus }: ModelStatus): string[] {
  return gpus.map((uuid) => snapshot.gpus.find((gpu) => gpu.uuid === uuid)?.name ?? uuid);
}

function defaultId(
  hosts: readonly ConnectedHost[],
  capability: 'generate' | 'edit',
  configured: string | undefined,
): string | undefined {
  if (configured === undefined) return capableModels(hosts, capability)[0]?.id;
  return isKnown(hosts, configured) ? findModel(hosts, configured).id : undefined;
}

function warningsOf(hosts: readonly ConnectedHost[]): string[] {
  return hosts.flatMap(({ name, snapshot }) =>
    snapshot.models.flatMap(({ model, alias, profileFrom, state, detail }) => [
      ...(profileFrom === 'fallback'
        ? [`${model} on ${name} is not in the known profiles; fallback defaults are used.`]
        : []),
      ...(state === 'failed'
        ? [`${model} (${alias}) on ${name} failed${detail === undefined ? '' : `: ${detail}`}.`]
        : []),
    ]),
  );
}

function ambiguousAliases(hosts: readonly ConnectedHost[]): string[] {
  const ids = new Map<string, Set<string>>();
  for (const { model, alias } of hosts.flatMap(({ snapshot }) => snapshot.models)) {
    ids.set(alias, (ids.get(alias) ?? new Set()).add(model));
  }
  return [...ids].flatMap(([alias, models]) =>
    models.size < 2 ? [] : [`The alias ${alias} means different models: ${[...models].sort().join(', ')}. Use the id.`],
  );
}

function defaultWarnings(hosts: readonly ConnectedHost[], settings: ToolSettings): string[] {
  return [settings.defaultModel, settings.defaultEditModel].flatMap((name) =>
    name === undefined || isKnown(hosts, name) ? [] : [`The configured default ${name} is on no connected host.`],
  );
}

function isKnown(hosts: readonly ConnectedHost[], name: string): boolean {
  return hosts.some(({ snapshot }) =>
    snapshot.models.some(({ model, alias }) => [model, model.split('@', 1)[0], alias].includes(name)),
  );
}
