import { realpath } from 'node:fs/promises';
import { basename, dirname, isAbsolute, join, parse, relative, resolve, sep } from 'node:path';
import { AppError, errorCode } from '../../shared/errors.ts';
import { oddPath } from './odd-path.ts';

/** Where tools may read pictures and write images: real paths, and what relative paths and `~` mean. */
export type Roots = { home: string; cwd: string; allowed: readonly string[] };

export type RootOptions = {
  home: string;
  cwd: string;
  /** `roots` of bridge.yaml: replaces home and working directory, so it can be tighter or wider. */
  configured: readonly string[] | undefined;
  /** `output_dir` of bridge.yaml: whoever wrote it there meant it. */
  outputDir: string | undefined;
  /** Directories the client says belong to the project; they add, never replace. */
  offered?: readonly string[];
};

/** Below these, and below names with a leading dot, programs keep keys and settings: never read or written by a tool. */
const PRIVATE_PARTS = new Set(['appdata', 'library']);

/** The directories that tools may touch. Those that do not exist yet count with the real path of their nearest ancestor. */
export async function findRoots({ home, cwd, configured, outputDir, offered = [] }: RootOptions): Promise<Roots> {
  const own = configured ?? [home, ...(isProjectDirectory(cwd, home) ? [cwd] : [])];
  const added = offered.filter((path) => isProjectDirectory(path, home));
  const all = [...own, ...(outputDir === undefined ? [] : [outputDir]), ...added];
  const allowed = await Promise.all(all.map((path) => realPathOf(resolve(cwd, expandHome(path, home)))));
  return { home, cwd, allowed: [...new Set(allowed)] };
}

/**
 * The real path of what the caller named, or PATH_DENIED: links are followed first, so that neither `..` nor a link nor a
 * directory whose name merely begins like a root leads outside.
 */
export async function allowedPath(asked: string, roots: Roots): Promise<string> {
  const odd = oddPath(asked, process.platform);
  if (odd !== undefined) throw new AppError('PATH_DENIED', `${JSON.stringify(asked)} is not a usable path: ${odd}`);
  const path = await realPathOf(resolve(roots.cwd, expandHome(asked, roots.home)));
  const root = roots.allowed.find((candidate) => isInside(path, candidate));
  if (root === undefined) {
    throw new AppError(
      'PATH_DENIED',
      `${asked} is outside the allowed directories. Allowed are ${roots.allowed.join(', ')}. ` +
        'Choose a path there, or add its directory to `roots` in bridge.yaml.',
    );
  }
  const hidden = relative(root, path).split(sep).find(isPrivatePart);
  if (hidden !== undefined) {
    throw new AppError(
      'PATH_DENIED',
      `${asked} leads through ${hidden}. Hidden directories, AppData and Library are never used. ` +
        'Choose another path, or add exactly this directory to `roots` in bridge.yaml.',
    );
  }
  return path;
}

/** The directory for images: from the call, else from the configuration, else a sensible place. Not yet created. */
export async function outputDirectory(o: {
  asked: string | undefined;
  configured: string | undefined;
  roots: Roots;
}): Promise<string> {
  return allowedPath(o.asked ?? o.configured ?? defaultDirectory(o.roots), o.roots);
}

/** `./generated_images` where the working directory is a project of the user's, else the pictures folder. */
function defaultDirectory({ cwd, home }: Roots): string {
  const isBelowHome = isInside(cwd, home) && resolve(cwd) !== resolve(home);
  const hasPrivatePart = relative(home, cwd).split(sep).some(isPrivatePart);
  return isBelowHome && !hasPrivatePart ? join(cwd, 'generated_images') : join(home, 'Pictures', 'gantry');
}

/** Clients start the bridge in `/` or a system directory too; such a place, or one above home, must not open everything. */
function isProjectDirectory(path: string, home: string): boolean {
  const full = resolve(path);
  if (full === resolve(home)) return true;
  const isAboveHome = full === parse(full).root || isInside(home, full);
  return !isAboveHome && !full.split(sep).some(isPrivatePart);
}

/** Real path of the nearest ancestor that exists, with the rest appended. */
async function realPathOf(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch (error) {
    const parent = dirname(path);
    const isMissing = ['ENOENT', 'ENOTDIR'].includes(errorCode(error) ?? '');
    if (!isMissing || parent === path) throw unresolvable(path, error);
    return join(await realPathOf(parent), basename(path));
  }
}

function unresolvable(path: string, error: unknown): AppError {
  const code = errorCode(error) ?? String(error);
  const short = path.length <= 200 ? path : `${path.slice(0, 200)}…`;
  const why = code === 'ENAMETOOLONG' ? 'it is too long' : code === 'ELOOP' ? 'its links lead in a circle' : code;
  return new AppError('PATH_DENIED', `${short} cannot be used: ${why}. Choose another path.`, { cause: error });
}

function isInside(path: string, root: string): boolean {
  const rest = relative(root, path);
  return rest === '' || (rest !== '..' && !rest.startsWith(`..${sep}`) && !isAbsolute(rest));
}

function isPrivatePart(part: string): boolean {
  return (part.startsWith('.') && part !== '.' && part !== '..') || PRIVATE_PARTS.has(part.toLowerCase());
}

function expandHome(path: string, home: string): string {
  if (path === '~') return home;
  return path.startsWith('~/') || path.startsWith('~\\') ? join(home, path.slice(2)) : path;
}
