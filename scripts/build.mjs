// Bundles the two programs and the simulators into dist/.
// The bridge is one file with everything inside, because a client waits for its start: scripts/build/bridge.mjs.
// So is the agent, because modules of packages cost memory for as long as it runs; sharp and systeminformation are
// loaded where they are needed.
import { build } from 'esbuild';
import { readdir } from 'node:fs/promises';
import { basename } from 'node:path';
import { buildBridge } from './build/bridge.mjs';
import { COMMON, LESS_ZOD, putInPlace, replacing, SMALL } from './build/common.mjs';
import { notices } from './build/notices.mjs';

/**
 * The agent mostly waits, so V8 keeps its heap small instead of growing it first and never giving it back, and optimises
 * only what runs again and again: its compiler is 4 MB of the process. 8 MB less with two bridges, 80 MB with a thousand.
 * A picture goes through as thousands of short-lived buffers: the young generation stays at its first megabyte, so that they
 * are given back every few megabytes and not after tens of them.
 */
const AGENT_FLAGS = '--optimize-for-size';
const AGENT_FLAGS_LATER = '--interrupt-budget=1000000 --semi-space-growth-factor=1'; // not on the command line: a V8 that lost it would refuse to start

/** xml2js brings what writes XML, which would be a tenth of the agent; nvidia-smi's is only read. */
const noXmlBuilder = replacing(/xml2js[/\\]lib[/\\]builder\.js$/, () => 'exports.Builder = undefined;');

const inside = await Promise.all([buildBridge(), buildAgent(), buildPictureWorker()]);
await Promise.all([putInPlace('dist/THIRD_PARTY_NOTICES.txt', await notices(inside)), ...(await simulators())]);

async function buildAgent() {
  const external = ['sharp', 'systeminformation', 'selfsigned', 'prom-client'];
  const head = [
    `#!/usr/bin/env -S node ${AGENT_FLAGS}`,
    'import { createRequire as requireOf } from "node:module";',
    'import { setFlagsFromString as setV8Flags } from "node:v8";',
    `setV8Flags(${JSON.stringify(AGENT_FLAGS_LATER)});`,
    'const require = requireOf(import.meta.url);', // CommonJS packages inside an ES module ask for it
  ];
  const banner = { js: head.join('\n') };
  return await executable('agent/main.ts', 'dist/gantry-agent.mjs', {
    ...SMALL,
    banner,
    external,
    plugins: [...LESS_ZOD, noXmlBuilder],
  });
}

/** The agent starts it beside itself. */
async function buildPictureWorker() {
  const options = { ...SMALL, format: 'esm', external: ['sharp'] };
  return await executable('agent/job/picture-worker.mjs', 'dist/picture-worker.mjs', options);
}

/** Every .ts file directly in scripts/sim is a program; its parts are in scripts/sim/lib. */
async function simulators() {
  const names = (await readdir('scripts/sim')).filter((name) => name.endsWith('.ts'));
  const options = { packages: 'external', banner: { js: '#!/usr/bin/env node' } };
  return names.map((name) => executable(`scripts/sim/${name}`, `dist/sim/${basename(name, '.ts')}`, options));
}

/** Resolves with what is inside. */
async function executable(entryPoint, path, options) {
  const { outputFiles, metafile } = await build({
    ...COMMON,
    ...options,
    format: 'esm',
    entryPoints: [entryPoint],
    outfile: path,
  });
  await putInPlace(path, outputFiles[0].contents, { mode: 0o755 });
  return metafile;
}
