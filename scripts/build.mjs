// Bundles the two programs and the simulators into dist/.
// The bridge is one CommonJS file with everything inside but sharp, because a client waits for its start.
// The agent is one ES module that leaves packages outside: it starts once and runs for months.
import { build } from 'esbuild';
import { chmod, mkdir, readdir, rename, writeFile } from 'node:fs/promises';
import { basename, dirname } from 'node:path';

const common = {
  bundle: true,
  platform: 'node',
  target: 'node20.19',
  logLevel: 'warning',
  keepNames: true,
  banner: { js: '#!/usr/bin/env node' },
};
const esm = { format: 'esm', packages: 'external' };

/** zod carries its sentences in forty languages; ours are English, and the rest is a fifth of the bundle. */
const oneLanguage = {
  name: 'one-language',
  setup(bundle) {
    bundle.onLoad({ filter: /zod[/\\]v4[/\\]locales[/\\]index\.js$/ }, () => ({
      contents: 'export { default as en } from "./en.js";',
    }));
  },
};

await Promise.all([...programs(), ...(await simulators())]);

function programs() {
  return [
    executable('bridge/main.ts', 'dist/gantry.cjs', { format: 'cjs', external: ['sharp'], plugins: [oneLanguage] }),
    executable('agent/main.ts', 'dist/gantry-agent.mjs', esm),
    executable('agent/job/picture-worker.mjs', 'dist/picture-worker.mjs', esm), // which the agent starts
  ];
}

/** Every .ts file directly in scripts/sim is a program; its parts are in scripts/sim/lib. */
async function simulators() {
  const names = (await readdir('scripts/sim')).filter((name) => name.endsWith('.ts'));
  return names.map((name) => executable(`scripts/sim/${name}`, `dist/sim/${basename(name, '.ts')}`, esm));
}

/** Puts the finished file in place by rename, so that a program started meanwhile never reads half of it. */
async function executable(entryPoint, path, options) {
  const { outputFiles } = await build({
    ...common,
    ...options,
    entryPoints: [entryPoint],
    outfile: path,
    write: false,
  });
  const temporary = `${path}.${process.pid}.tmp`;
  await mkdir(dirname(path), { recursive: true });
  await writeFile(temporary, outputFiles[0].contents);
  await chmod(temporary, 0o755);
  await rename(temporary, path);
}
