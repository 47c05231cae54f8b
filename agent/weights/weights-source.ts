import { statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { childEnvironment } from '../server/child-environment.ts';
import type { ConfiguredModel } from '../configured-model.ts';
import { splitId } from '../engine/vllm-omni.ts';

/** Where the weights of a model come from, and where on this host they arrive. */
export type WeightsSource = {
  hub: 'hugging-face' | 'modelscope';
  repository: string;
  revision: string | undefined;
  /** Root of the downloader's cache. */
  cacheDir: string;
  /** What the downloader runs with: the same that the server gets, so that both mean the same cache. */
  env: Record<string, string>;
  cwd: string;
};

/** Undefined where there is nothing to download: a local path, a server of somebody else, or the owner takes care. */
export function sourceOf({ id, engine, launch }: ConfiguredModel): WeightsSource | undefined {
  // Step1X-Edit reads from the directory in MODEL_PATH and knows no repository.
  if (launch.kind !== 'owned' || launch.download === 'none' || engine === 'step1x-edit') return undefined;
  const env = childEnvironment({ gpus: [], engine: {}, weights: {}, model: launch.env });
  if (isTrue(env['HF_HUB_OFFLINE']) || isTrue(env['TRANSFORMERS_OFFLINE'])) return undefined;
  const cwd = resolve(launch.cwd ?? '.');
  const [repository, revision] = splitId(id);
  if (!isRepository(repository) || isDirectory(resolve(cwd, repository))) return undefined;
  const common = { repository, revision, cwd };
  if (isTrue(env['VLLM_USE_MODELSCOPE'])) {
    return { hub: 'modelscope', ...common, env, cacheDir: modelscopeCache(env, cwd) };
  }
  const downloadDir = flagValue([...launch.command, ...launch.args], 'download-dir');
  const cacheDir = downloadDir === undefined ? huggingFaceCache(env, cwd) : absolute(downloadDir, { env, cwd });
  return {
    hub: 'hugging-face',
    ...common,
    cacheDir,
    env: {
      ...env,
      HF_HUB_CACHE: cacheDir,
      // Its output is a log: bars would fill it, and hints about newer versions help nobody there.
      HF_HUB_DISABLE_PROGRESS_BARS: '1',
      HF_HUB_DISABLE_UPDATE_CHECK: '1',
    },
  };
}

/** One download, whichever model asks for it. */
export function keyOf({ hub, repository, revision, cacheDir }: WeightsSource): string {
  return JSON.stringify([hub, repository, revision ?? null, cacheDir]);
}

/** The directories whose growth is the download's progress; versions of ModelScope differ in where they put files. */
export function arrivalDirs({ hub, repository, cacheDir }: WeightsSource): string[] {
  if (hub === 'hugging-face') return [join(repositoryDir({ repository, cacheDir }), 'blobs')];
  const [owner = '', name = ''] = repository.split('/');
  const flat = join(owner, name.replaceAll('.', '___'));
  return [
    join(cacheDir, 'models', `${owner}--${name}`),
    ...['', 'hub'].flatMap((root) => [
      join(cacheDir, root, 'models', flat),
      join(cacheDir, root, 'models', '._____temp', owner, name),
    ]),
  ];
}

/** Where the Hub's cache keeps a repository. */
export function repositoryDir({ repository, cacheDir }: { repository: string; cacheDir: string }): string {
  return join(cacheDir, `models--${repository.replaceAll('/', '--')}`);
}

/** As huggingface_hub finds it; HUGGINGFACE_HUB_CACHE is its older name. */
function huggingFaceCache(env: Record<string, string>, cwd: string): string {
  const given = env['HF_HUB_CACHE'] ?? env['HUGGINGFACE_HUB_CACHE'];
  if (given !== undefined) return absolute(given, { env, cwd });
  const home = env['HF_HOME'] ?? join(env['XDG_CACHE_HOME'] ?? join('~', '.cache'), 'huggingface');
  return join(absolute(home, { env, cwd }), 'hub');
}

function modelscopeCache(env: Record<string, string>, cwd: string): string {
  return absolute(env['MODELSCOPE_CACHE'] ?? join('~', '.cache', 'modelscope'), { env, cwd });
}

function absolute(path: string, { env, cwd }: { env: Record<string, string>; cwd: string }): string {
  const home = env['HOME'] ?? '/';
  return resolve(cwd, path.replace(/^~(?=\/|$)/, home).replace(/^\$HOME(?=\/|$)|^\$\{HOME\}/, home));
}

/** `owner/name`, or `name` alone for the oldest ones. Anything else is a path. */
function isRepository(text: string): boolean {
  return /^[\w-][\w.-]*(\/[\w-][\w.-]*)?$/.test(text);
}

function isDirectory(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
}

function isTrue(text: string | undefined): boolean {
  return /^(1|true|yes|on)$/i.test(text ?? '');
}

/** `--name value` or `--name=value`; vLLM takes underscores for dashes too. */
function flagValue(argv: readonly string[], name: string): string | undefined {
  for (const [index, word] of argv.entries()) {
    const [flag = '', value] = word.split(/=(.*)/s, 2);
    if (flag.replaceAll('_', '-') === `--${name}`) return value ?? argv[index + 1];
  }
  return undefined;
}
