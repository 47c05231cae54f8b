// Copies the npm packages that the built programs load at run time, with all that they need, to TO/node_modules.
// Usage: node runtime-packages.mjs FROM TO, where FROM is the root of the package.
import { cpSync, existsSync, readFileSync, realpathSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';

/** What scripts/build.mjs leaves out of the bundle of the agent. */
const ROOTS = ['sharp', 'systeminformation', 'selfsigned', 'prom-client'];

const from = realpathSync(process.argv[2] ?? '.');
const to = process.argv[3] ?? '.';
const copied = new Set();
for (const name of ROOTS) copy(name, { seekFrom: from, isOptional: false });

function copy(name, { seekFrom, isOptional }) {
  const found = find(name, seekFrom);
  if (found === undefined) {
    if (isOptional) return; // for another system than this one
    throw new Error(`${name} is not installed beside the package. Run \`npm ci\` in it first.`);
  }
  if (copied.has(found)) return;
  copied.add(found);
  // One that lies inside another is a second version of it, and stays inside.
  const place = found.startsWith(from) ? relative(from, found) : join('node_modules', name);
  cpSync(found, join(to, place), {
    recursive: true,
    dereference: true,
    filter: (path) => !path.slice(found.length).includes('node_modules'),
  });
  const { dependencies = {}, optionalDependencies = {} } = JSON.parse(
    readFileSync(join(found, 'package.json'), 'utf8'),
  );
  for (const needed of Object.keys({ ...dependencies, ...optionalDependencies })) {
    copy(needed, { seekFrom: found, isOptional: needed in optionalDependencies });
  }
}

/** As Node finds it: beside whoever asks, then in each directory above. */
function find(name, directory) {
  const here = join(directory, 'node_modules', name);
  if (existsSync(join(here, 'package.json'))) return realpathSync(here);
  return dirname(directory) === directory ? undefined : find(name, dirname(directory));
}
