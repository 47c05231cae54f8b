import { constants } from 'node:fs';
import { access, realpath } from 'node:fs/promises';
import { basename, delimiter, dirname, isAbsolute, join, resolve } from 'node:path';
import type { ConfiguredModel } from '../configured-model.ts';
import type { WeightsSource } from './weights-source.ts';

/** The command lines of a downloader; `dryRun` only where one says in advance how much it will fetch. */
export type Downloader = { argv: string[]; dryRun: string[] | undefined };

/**
 * The downloader of the engine's own environment, because that one has the versions and caches that the engine reads: beside
 * the engine's program, else on the PATH. Undefined where there is none: then the engine downloads by itself.
 */
export async function findDownloader(
  model: ConfiguredModel,
  { hub, repository, revision, env, cwd }: WeightsSource,
): Promise<Downloader | undefined> {
  const { launch } = model;
  if (launch.kind !== 'owned') return undefined;
  const what = revision === undefined ? [repository] : [repository, '--revision', revision];
  if (Array.isArray(launch.download)) return withDryRun([...launch.download, ...what]);
  const folders = await foldersOf(launch.command[0] ?? '', { env, cwd });
  for (const name of hub === 'modelscope' ? ['modelscope'] : ['hf', 'huggingface-cli']) {
    const program = await firstExecutable(folders.map((folder) => join(folder, name)));
    if (program === undefined) continue;
    return withDryRun([program, 'download', ...(hub === 'modelscope' ? ['--model'] : []), ...what]);
  }
  return undefined;
}

/** Only `hf` has one, and only newer versions of it: the others end with 2. Another program might take it for a name. */
function withDryRun(argv: string[]): Downloader {
  const isHf = basename(argv[0] ?? '') === 'hf' && argv[1] === 'download';
  return { argv, dryRun: isHf ? [...argv, '--dry-run'] : undefined };
}

/** Beside the engine's program, beside what it is a link to, and the PATH. */
async function foldersOf(
  program: string,
  { env, cwd }: { env: Record<string, string>; cwd: string },
): Promise<string[]> {
  const path = (env['PATH'] ?? '').split(delimiter).filter((folder) => folder !== '');
  const found =
    program.includes('/') || isAbsolute(program)
      ? resolve(cwd, program)
      : await firstExecutable(path.map((folder) => join(folder, program)));
  if (found === undefined) return path;
  const real = await realpath(found).catch(() => found); // absent: starting it will say so
  return [...new Set([dirname(found), dirname(real), ...path])];
}

async function firstExecutable(paths: readonly string[]): Promise<string | undefined> {
  for (const path of paths) {
    const isThere = await access(path, constants.X_OK).then(
      () => true,
      () => false,
    );
    if (isThere) return path;
  }
  return undefined;
}
