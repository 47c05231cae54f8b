// Bundles the two programs and the simulators into dist/.
// The bridge is one file with everything inside, because a client waits for its start: scripts/build/bridge.mjs.
// The agent is one ES module that leaves packages outside: it starts once and runs for months.
import { build } from 'esbuild';
import { readdir } from 'node:fs/promises';
import { basename } from 'node:path';
import { buildBridge } from './build/bridge.mjs';
import { COMMON, putInPlace } from './build/common.mjs';

await Promise.all([buildBridge(), executable('agent/main.ts', 'dist/gantry-agent.mjs'), ...(await simulators())]);

/** Every .ts file directly in scripts/sim is a program; its parts are in scripts/sim/lib. */
async function simulators() {
  const names = (await readdir('scripts/sim')).filter((name) => name.endsWith('.ts'));
  return names.map((name) => executable(`scripts/sim/${name}`, `dist/sim/${basename(name, '.ts')}`));
}

async function executable(entryPoint, path) {
  const { outputFiles } = await build({
    ...COMMON,
    format: 'esm',
    packages: 'external',
    banner: { js: '#!/usr/bin/env node' },
    entryPoints: [entryPoint],
    outfile: path,
    write: false,
  });
  await putInPlace(path, outputFiles[0].contents, { mode: 0o755 });
}
