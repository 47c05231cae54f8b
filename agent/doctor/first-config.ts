import { stringify } from 'yaml';
import { PROFILES } from '../../shared/profiles.ts';
import type { FoundServer, FoundWeights } from './search.ts';

export type Findings = {
  gpus: readonly { name: string; totalMiB: number | null }[];
  /** Programs, the nearest first. */
  vllm: readonly string[];
  step1x: readonly string[];
  servers: readonly FoundServer[];
  weights: readonly FoundWeights[];
};

export type FirstConfig = {
  text: string;
  /** What was found, and what could not be, for the person who asked. */
  notes: string[];
};

type Entry = Record<string, unknown>;

const SYSTEM = { state_dir: '/var/lib/gantry', log_dir: '/var/log/gantry' };
const MODELS_AT_FIRST = 3;
/** Beside the model, for the engine and the reserve. */
const SPARE_MIB = 1_024;
/** Their owners want a login and a consent before a download, which nobody could give here. */
const ASKS_FIRST = /^stabilityai\/|^black-forest-labs\/(FLUX\.1|FLUX\.2-dev|FLUX\.2-klein.*9B)/;

/** A first agent.yaml from what was found on the host; nothing is looked at here. */
export function firstConfig(found: Findings, o: { listen: string; isSystem: boolean }): FirstConfig {
  const attached = attachedModels(found);
  const own = [...ownModels(found, attached), ...step1xModels(found)];
  const models = Object.fromEntries([...attached, ...own]);
  const places = o.isSystem ? SYSTEM : { state_dir: './state' };
  const names = Object.keys(models);
  const text = [
    '# Configuration of gantry-agent, written by `gantry-agent init` from what it found on this host; now it is yours.',
    '# Every key: `gantry-agent config schema`. Check it: `gantry-agent config check`. Take it over: `gantry-agent reload`.',
    stringify({ listen: o.listen, ...places }).trimEnd(),
    names.length === 0 ? NO_MODELS : stringify({ models }).trimEnd(),
    '',
  ].join('\n');
  return { text, notes: notesOf(found, names) };
}

const NO_MODELS = `# No engine was found. When there is one, name it here, for example:
# models:
#   qwen-image:
#     engine: vllm-omni
#     model: Qwen/Qwen-Image-2512
#     command: [/opt/vllm/bin/vllm, serve]
models: {}`;

/** Servers that run already and serve a model that is known to make images. Others are left alone. */
function attachedModels({ servers }: Findings): [string, Entry][] {
  return servers.flatMap(({ url, models }) => {
    const model = models.find((id) => PROFILES.some((profile) => profile.model === id));
    return model === undefined ? [] : [[aliasOf(model), { engine: 'vllm-omni', attach: url }] as [string, Entry]];
  });
}

/** Known models whose weights are here; where there are none, the largest one that fits and that anybody may download. */
function ownModels({ vllm, weights, gpus }: Findings, attached: readonly [string, Entry][]): [string, Entry][] {
  const [program] = vllm;
  const largestMiB = Math.max(0, ...gpus.map(({ totalMiB }) => totalMiB ?? 0));
  if (program === undefined || largestMiB === 0) return [];
  const fitting = PROFILES.filter(
    ({ model, weightsMiB, peakMiB }) =>
      !model.startsWith('stepfun-ai/') && (peakMiB ?? weightsMiB ?? Infinity) + SPARE_MIB <= largestMiB,
  );
  const here = fitting.flatMap(({ model }) => {
    const found = weights.find(({ repository }) => repository === model);
    return found === undefined ? [] : [{ model, revision: found.revision }];
  });
  const byNeed = [...fitting].sort((a, b) => (b.peakMiB ?? b.weightsMiB ?? 0) - (a.peakMiB ?? a.weightsMiB ?? 0));
  const open = byNeed.filter(({ model }) => !ASKS_FIRST.test(model));
  const fallBack = attached.length > 0 ? [] : open.slice(0, 1).map(({ model }) => ({ model, revision: undefined }));
  return (here.length > 0 ? here : fallBack)
    .filter(({ model }) => !attached.some(([alias]) => alias === aliasOf(model)))
    .slice(0, MODELS_AT_FIRST)
    .map(({ model, revision }) => [
      aliasOf(model),
      { engine: 'vllm-omni', model, ...(revision && { revision }), command: [program, 'serve'] },
    ]);
}

function step1xModels({ step1x }: Findings): [string, Entry][] {
  const [cwd] = step1x;
  if (cwd === undefined) return [];
  // Its own idle timer can move the model away in the middle of an edit: it is set far above any edit.
  const env = { MODEL_PATH: `${cwd}/models`, GPU_IDLE_TIMEOUT: '86400' };
  return [['step1x-edit', { engine: 'step1x-edit', command: ['python3', 'unified_server.py'], cwd, env }]];
}

/** The repository's own name, as far as an alias may be one. */
function aliasOf(repository: string): string {
  const name = repository.split('/').at(-1) ?? repository;
  return name.toLowerCase().replace(/[^a-z0-9._-]/g, '-');
}

function notesOf({ gpus, vllm, step1x, servers, weights }: Findings, models: readonly string[]): string[] {
  const [program] = vllm;
  const usable = vllm.find((path) => !isInHome(path));
  return [
    ...gpus.map(({ name, totalMiB }) => `found: ${name}${totalMiB === null ? '' : `, ${totalMiB} MiB`}`),
    ...(gpus.length === 0 ? ['not found: a GPU. nvidia-smi shows none; see what it says: nvidia-smi'] : []),
    ...(program === undefined
      ? ['not found: vllm, neither on the PATH nor below /opt, /srv or a home directory']
      : [`found: ${program}`]),
    ...(program !== undefined && usable === undefined
      ? [`warning: ${program} is in a home directory, which the service does not see. Run: gantry-agent doctor`]
      : []),
    ...(step1x[0] === undefined ? [] : [`found: Step1X-Edit in ${step1x[0]}`]),
    ...servers.map(({ url, models: ids }) => `found: a server at ${url} with ${ids.join(', ') || 'no model'}`),
    ...weights.map(({ repository, cache }) => `found: weights of ${repository} in ${cache}`),
    models.length === 0 ? 'No model is configured yet: add one under `models`.' : `Configured: ${models.join(', ')}.`,
  ];
}

export function isInHome(path: string): boolean {
  return /^\/(home|root)\//.test(path);
}
