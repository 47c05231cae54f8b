import { readFile } from 'node:fs/promises';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Plugin } from 'esbuild';
import { build } from 'esbuild';

export const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const WORLD = join(ROOT, 'scripts/sim-fleet/world');

/** A change of the product's text that one of the promises must notice. */
export type TextChange = { file: string; find: string; replace: string };

/** What product files import, and what they get. */
const REPLACED: Record<string, string> = {
  'node:fs': 'fs.ts',
  'node:fs/promises': 'fs-promises.ts',
  'node:net': 'net.ts',
  'node:perf_hooks': 'node.ts',
  'node:timers/promises': 'node.ts',
  'node:crypto': 'node.ts',
  'node:os': 'node.ts',
  ws: 'ws.ts',
  sharp: 'empty.ts',
  pino: 'empty.ts',
  systeminformation: 'empty.ts',
};
const REPLACED_FILES: Record<string, string> = {
  'shared/http-client.ts': 'http.ts',
  'agent/job/picture-process.ts': 'picture-process.ts',
};
const GLOBALS = [
  'AbortController',
  'AbortSignal',
  'Date',
  'performance',
  'process',
  'clearTimeout',
  'setTimeout',
  'simRandom',
];

/** The product's own files and the simulated world as one program text, with changes of the product where asked. */
export async function bundle(changes: readonly TextChange[] = []): Promise<string> {
  const result = await build({
    entryPoints: [join(ROOT, 'scripts/sim-fleet/run-seed.ts')],
    bundle: true,
    write: false,
    platform: 'node',
    format: 'cjs',
    target: 'node20.19',
    minifySyntax: true, // it undoes the spreads of literals, which cost more than all else
    minifyWhitespace: true,
    logLevel: 'silent', // what is wrong is thrown
    plugins: [worldPlugin(changes)],
  });
  const [file] = result.outputFiles;
  if (file === undefined) throw new Error('esbuild gave no output');
  return file.text;
}

function worldPlugin(changes: readonly TextChange[]): Plugin {
  return {
    name: 'simulated-world',
    setup(build) {
      build.onResolve({ filter: /.*/ }, ({ path, importer }) => {
        const replaced = isProduct(importer) ? REPLACED[path] : undefined;
        if (replaced !== undefined) return { path: join(WORLD, replaced) };
        if (!path.startsWith('.')) return undefined;
        const file = REPLACED_FILES[relative(ROOT, resolve(dirname(importer), path))];
        return file === undefined ? undefined : { path: join(WORLD, file) };
      });
      build.onLoad({ filter: /\.ts$/ }, async ({ path }) => {
        if (!isProduct(path)) return undefined;
        const text = changed(await readFile(path, 'utf8'), { path, changes });
        const globals = `import { ${GLOBALS.join(', ')} } from ${JSON.stringify(join(WORLD, 'globals.ts'))};`;
        return { contents: `${globals}${text.replaceAll('Math.random()', 'simRandom()')}`, loader: 'ts' };
      });
      // zod's sentences in forty languages.
      build.onLoad({ filter: /zod[/\\]v4[/\\]locales[/\\]index\.js$/ }, () => ({
        contents: 'export { default as en } from "./en.js";',
      }));
    },
  };
}

function isProduct(path: string): boolean {
  return /^(agent|bridge|shared)\//.test(relative(ROOT, path));
}

function changed(text: string, { path, changes }: { path: string; changes: readonly TextChange[] }): string {
  let now = text;
  for (const { file, find, replace } of changes) {
    if (relative(ROOT, path) !== file) continue;
    const pieces = now.split(find);
    if (pieces.length !== 2) throw new Error(`${file} has ${pieces.length - 1} times: ${find}`);
    now = pieces.join(replace);
  }
  return now;
}
