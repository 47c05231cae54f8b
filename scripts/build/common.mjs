import { chmod, mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';

export const COMMON = {
  bundle: true,
  platform: 'node',
  target: 'node20.19',
  logLevel: 'warning',
  keepNames: true,
  write: false,
  metafile: true,
};

/** Names stay, because they are in the stacks of the log; the rest of what a reader needs is in the sources. */
export const SMALL = { minifySyntax: true, minifyWhitespace: true, keepNames: false, legalComments: 'none' };

/**
 * A plugin that puts other contents in the place of the files whose path matches. Of several that match a file only the
 * first does; one that never did has no effect that anybody would notice, so the build fails.
 */
export function replacing(filter, contents) {
  return {
    name: String(filter),
    setup(bundle) {
      let isUsed = false;
      bundle.onLoad({ filter }, async ({ path }) => {
        isUsed = true;
        return { contents: await contents(path), loader: path.endsWith('.ts') ? 'ts' : 'js' };
      });
      bundle.onEnd(() => (isUsed ? undefined : { errors: [{ text: `no file was replaced for ${filter}` }] }));
    },
  };
}

export const LESS_ZOD = [
  // zod carries its sentences in forty languages; ours are English, and the rest is a fifth of the bundle.
  replacing(/zod[/\\]v4[/\\]locales[/\\]index\.js$/, () => 'export { default as en } from "./en.js";'),
  // esbuild leaves out what nobody uses of a namespace, but not of an export that is one.
  replacing(/[/\\](agent|bridge|shared)[/\\].*\.ts$/, async (path) =>
    (await readFile(path, 'utf8')).replace("import { z } from 'zod';", "import * as z from 'zod';"),
  ),
];

/** Puts a finished file in place by rename, so that a program started meanwhile never reads half of it. */
export async function putInPlace(path, contents, { mode = 0o644 } = {}) {
  const temporary = `${path}.${process.pid}.tmp`;
  await mkdir(dirname(path), { recursive: true });
  await writeFile(temporary, contents);
  await chmod(temporary, mode);
  await rename(temporary, path);
}
