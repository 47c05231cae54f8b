// Builds the bridge: dist/gantry.cjs, which starts dist/bridge/HASH.cjs, one file with everything inside but sharp.
// A client waits for its start, so it is small, its list of tools is finished, and the code V8 makes of it is kept.
import { build } from 'esbuild';
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { COMMON, LESS_ZOD, putInPlace, replacing, SMALL } from './common.mjs';

const FOLDER = 'dist/bridge';
const LAUNCHER = 'dist/gantry.cjs';
/** One function of what Node gives a CommonJS module, for the launcher to call. */
const WRAPPER = {
  banner: { js: '(function (exports, require, module, __filename, __dirname) {' },
  footer: { js: '})' },
};
/** `import()` becomes `require`: Node finds no way to import from code that it did not compile itself. */
const CJS = { ...COMMON, format: 'cjs', external: ['sharp'], supported: { 'dynamic-import': false } };

/** The SDK's default validator of JSON Schema, a fifth of the bundle; bridge/mcp/server.ts gives it another. */
const noAjv = replacing(
  /sdk[/\\]dist[/\\]esm[/\\]validation[/\\]ajv-provider\.js$/,
  () => 'export class AjvJsonSchemaValidator { constructor() { throw new Error("not in this bundle"); } }',
);

/** Resolves with what is inside. */
export async function buildBridge() {
  const finished = await Promise.all([finishedList('tool-list', 'toolList'), finishedList('flag-list', 'flagList')]);
  const plugins = [...finished, ...LESS_ZOD, noAjv]; // of several that match a file, the first replaces it
  const { contents: program, metafile } = await bundle({
    ...SMALL,
    ...WRAPPER,
    plugins,
    entryPoints: ['bridge/main.ts'],
  });
  // By their content: a launcher never meets the program or the compiled code of another build.
  const hash = createHash('sha256').update(program).digest('hex').slice(0, 16);
  const names = { PROGRAM: `bridge/${hash}.cjs`, COMPILED: `bridge/${hash}-${process.version}.code` };
  await putInPlace(join('dist', names.PROGRAM), program);
  const define = Object.fromEntries(Object.entries(names).map(([name, value]) => [name, JSON.stringify(value)]));
  const banner = { js: '#!/usr/bin/env node' };
  const launcher = await bundle({ banner, define, entryPoints: ['bridge/launcher.ts'] });
  await putInPlace(LAUNCHER, launcher.contents, { mode: 0o755 });
  await putInPlace(join('dist', names.COMPILED), await compiled());
  for (const name of await readdir(FOLDER))
    if (!name.startsWith(hash)) await rm(join(FOLDER, name), { force: true, maxRetries: 3 });
  return metafile;
}

async function bundle(options) {
  const { outputFiles, metafile } = await build({ ...CJS, ...options });
  return { contents: outputFiles[0].contents, metafile };
}

/** What clients see of the tools, made from their schemas by the bridge's own code. */
export async function toolList() {
  return await listOf('tool-list', 'toolList');
}

/** What the bridge's own code makes of the schemas of the tools, in the place of that code. */
async function finishedList(file, name) {
  const json = JSON.stringify(JSON.stringify(await listOf(file, name)));
  return replacing(
    new RegExp(`bridge[/\\\\]mcp[/\\\\]${file}\\.ts$`),
    () => `const LIST = JSON.parse(${json}); export const ${name} = async () => LIST;`,
  );
}

async function listOf(file, name) {
  const { contents } = await bundle({ entryPoints: [`bridge/mcp/${file}.ts`] });
  const code = Buffer.from(contents).toString();
  const module = { exports: {} };
  new Function('module', 'exports', 'require', code)(module, module.exports, createRequire(import.meta.url));
  return await module.exports[name]();
}

/** The code V8 made in a first run, with the list of tools and a call. It has a home of its own and finds no host. */
async function compiled() {
  const home = await mkdtemp(join(tmpdir(), 'gantry-build-'));
  try {
    const out = join(home, 'code');
    const args = ['scripts/build/first-run.mjs', resolve(LAUNCHER), home, out];
    await promisify(execFile)(process.execPath, args, {
      env: { HOME: home, USERPROFILE: home, PATH: process.env.PATH },
    });
    return await readFile(out);
  } finally {
    await rm(home, { recursive: true, force: true, maxRetries: 3 });
  }
}
