// Bundles the two programs and the simulators into dist/.
// The bridge is one CommonJS file with everything inside but sharp, because a client waits for its start.
// The agent is one ES module that leaves packages outside: it starts once and runs for months.
import { build } from 'esbuild';
import { chmod, mkdir, readdir, rm } from 'node:fs/promises';

const common = { bundle: true, platform: 'node', target: 'node20.19', logLevel: 'warning', keepNames: true };
const nodeBanner = '#!/usr/bin/env node';

await mkdir('dist', { recursive: true });
await rm('dist/sim', { recursive: true, force: true });
await Promise.all([
  build({
    ...common,
    entryPoints: ['bridge/main.ts'],
    outfile: 'dist/gantry.cjs',
    format: 'cjs',
    external: ['sharp'],
    banner: { js: nodeBanner },
  }),
  build({
    ...common,
    entryPoints: ['agent/main.ts'],
    outfile: 'dist/gantry-agent.mjs',
    format: 'esm',
    packages: 'external',
    banner: { js: nodeBanner },
  }),
  ...(await readdir('scripts/sim'))
    .filter((name) => name.endsWith('.ts'))
    .map((name) =>
      build({
        ...common,
        entryPoints: [`scripts/sim/${name}`],
        outfile: `dist/sim/${name.replace(/\.ts$/, '')}`,
        format: 'esm',
        packages: 'external',
        banner: { js: nodeBanner },
      }),
    ),
]);
const executables = [
  'dist/gantry.cjs',
  'dist/gantry-agent.mjs',
  ...(await readdir('dist/sim')).map((name) => `dist/sim/${name}`),
];
await Promise.all(executables.map((path) => chmod(path, 0o755)));
