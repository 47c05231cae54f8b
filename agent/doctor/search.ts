import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { fetchBody } from '../../shared/http-client.ts';

/** Where people put virtual environments and checkouts. A star is any one name. */
const PROGRAM_DIRS = [
  ...['usr/local/bin', 'usr/bin', 'opt/*/bin', 'opt/*/venv/bin', 'opt/*/.venv/bin', 'srv/*/bin', 'srv/*/venv/bin'],
  ...['srv/*/.venv/bin', 'home/*/*/bin', 'home/*/*/venv/bin', 'home/*/*/.venv/bin', 'home/*/.local/bin'],
  ...['root/*/bin', 'root/*/venv/bin', 'root/*/.venv/bin', 'root/.local/bin', 'opt/conda/envs/*/bin'],
];
const CHECKOUT_DIRS = ['opt/*', 'srv/*', 'home/*/*', 'root/*', 'mnt/*', 'data/*'];
const CACHE_DIRS = [
  ...['var/cache/gantry/hf/hub', 'home/*/.cache/huggingface/hub', 'root/.cache/huggingface/hub'],
  ...['srv/hf/hub', 'srv/huggingface/hub', 'data/hf/hub', 'data/huggingface/hub', 'mnt/*/huggingface/hub'],
];
/** vLLM's own, Step1X-Edit's, and those of the documentation of either. */
const SERVER_PORTS = [8000, 8001, 8002, 8003, 8080, 8091, 8188, 7860, 30_000];
const ANSWER_MS = 1_000;
const MAX_BYTES = 256 * 1024;

const ModelList = z.object({ data: z.array(z.object({ id: z.string().max(300) })) });

export type FoundWeights = { repository: string; revision: string | undefined; cache: string };
export type FoundServer = { url: string; models: string[] };

/** Programs of this name on the path and in the usual places, the nearest first. `root` is that of the file system. */
export function findPrograms(name: string, { root = '/', path = '' }: { root?: string; path?: string } = {}): string[] {
  const dirs = [...path.split(':').filter(Boolean), ...PROGRAM_DIRS.flatMap((pattern) => expand(root, pattern))];
  return [...new Set(dirs.map((dir) => join(dir, name)))].filter(isExecutable);
}

/** Checkouts of Step1X-Edit: directories with its server in them. */
export function findStep1x({ root = '/' }: { root?: string } = {}): string[] {
  const dirs = CHECKOUT_DIRS.flatMap((pattern) => expand(root, pattern));
  return dirs.filter((dir) => existsSync(join(dir, 'unified_server.py')));
}

/** Repositories in the caches of Hugging Face, with the commit that `main` was when they were fetched. */
export function findWeights({ root = '/' }: { root?: string } = {}): FoundWeights[] {
  return CACHE_DIRS.flatMap((pattern) => expand(root, pattern)).flatMap((cache) =>
    namesIn(cache)
      .filter((name) => /^models--[^-].*--/.test(name))
      .flatMap((name) => {
        const repository = name.replace(/^models--/, '').replace('--', '/');
        const revision = read(join(cache, name, 'refs', 'main'));
        if (revision !== undefined && !existsSync(join(cache, name, 'snapshots', revision))) return []; // it broke off
        return [{ repository, revision, cache }];
      }),
  );
}

/** Servers on this machine that name their models as vLLM does. */
export async function findServers(
  signal: AbortSignal,
  ports: readonly number[] = SERVER_PORTS,
): Promise<FoundServer[]> {
  const found = await Promise.all(ports.map((port) => askServer(`http://127.0.0.1:${port}`, signal)));
  return found.flatMap((server) => server ?? []);
}

async function askServer(url: string, signal: AbortSignal): Promise<FoundServer | undefined> {
  try {
    const limits = { signal, deadlineMs: ANSWER_MS, maxBytes: MAX_BYTES };
    const { status, body } = await fetchBody(`${url}/v1/models`, limits);
    if (status !== 200) return undefined;
    const { data } = ModelList.parse(JSON.parse(body.toString()));
    return { url, models: data.map(({ id }) => id) };
  } catch {
    return undefined; // nobody listens there, or somebody else
  }
}

/** Existing directories that a pattern names. */
function expand(root: string, pattern: string): string[] {
  let dirs = [root];
  for (const part of pattern.split('/')) {
    dirs = dirs.flatMap((dir) => (part === '*' ? namesIn(dir) : [part]).map((name) => join(dir, name)));
    dirs = dirs.filter(isDirectory);
  }
  return dirs;
}

function namesIn(dir: string): string[] {
  try {
    return readdirSync(dir).sort();
  } catch {
    return []; // absent, or not ours to read
  }
}

function isDirectory(path: string): boolean {
  try {
    return statSync(path).isDirectory();
  } catch {
    return false; // gone, or behind a directory that is not ours to look into
  }
}

function isExecutable(path: string): boolean {
  try {
    const stat = statSync(path);
    return stat.isFile() && (stat.mode & 0o111) !== 0;
  } catch {
    return false; // as above
  }
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return undefined; // a cache that was made without it
  }
}
