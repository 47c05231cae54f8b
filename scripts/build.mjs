// Bundles the two programs and the simulators into dist/.
// The bridge is one file with everything inside, because a client waits for its start: scripts/build/bridge.mjs.
// So is the agent, because modules of packages cost memory for as long as it runs; sharp and systeminformation are
// loaded where they are needed.
import { build } from 'esbuild';
import { readdir } from 'node:fs/promises';
import { basename } from 'node:path';
import { buildBridge } from './build/bridge.mjs';
import { COMMON, LESS_ZOD, putInPlace, SMALL } from './build/common.mjs';

/**
 * V8 keeps its heap small instead of growing it first and never giving it back: the agent mostly waits. It costs no
 * measurable time, and saves 8 MB with two bridges and 80 MB with a thousand.
 */
const AGENT_FLAGS = '--optimize-for-size';

await Promise.all([buildBridge(), buildAgent(), ...(await simulators())]);

async function buildAgent() {
  const external = ['sharp', 'systeminformation'];
  // CommonJS packages inside an ES module ask for this function.
  const load = 'import { createRequire as requireOf } from "node:module"; const require = requireOf(import.meta.url);';
  const banner = { js: `#!/usr/bin/env -S node ${AGENT_FLAGS}\n${load}` };
  await executable('agent/main.ts', 'dist/gantry-agent.mjs', { ...SMALL, banner, external, plugins: LESS_ZOD });
}

/** Every .ts file directly in scripts/sim is a program; its parts are in scripts/sim/lib. */
async function simulators() {
  const names = (await readdir('scripts/sim')).filter((name) => name.endsWith('.ts'));
  const options = { packages: 'external', banner: { js: '#!/usr/bin/env node' } };
  return names.map((name) => executable(`scripts/sim/${name}`, `dist/sim/${basename(name, '.ts')}`, options));
}

async function executable(entryPoint, path, options) {
  const { outputFiles } = await build({
    ...COMMON,
    ...options,
    format: 'esm',
    entryPoints: [entryPoint],
    outfile: path,
  });
  await putInPlace(path, outputFiles[0].contents, { mode: 0o755 });
}
