// Copies the npm packages that the built programs load at run time, with all that they need, to TO/node_modules.
// Usage: node runtime-packages.mjs FROM TO, where FROM is the root of the package.
import { cpSync, existsSync, readFileSync, realpathSync } from 'node:fs';
import { dirname, join } from 'node:path';

/** What scripts/build.mjs leaves out of the bundles. */
const ROOTS = ['sharp', 'systeminformation', 'selfsigned'];

const [, , from = '.', to = '.'] = process.argv;
const versions = new Map();
for (const name of ROOTS) copy(name, { seekFrom: realpathSync(from), isOptional: false });

function copy(name, { seekFrom, isOptional }) {
  const found = find(name, seekFrom);
  if (found === undefined) {
    if (isOptional) return; // for another system than this one
    throw new Error(`${name} is not installed beside the package. Run \`npm ci\` in it first.`);
  }
  const {
    version,
    dependencies = {},
    optionalDependencies = {},
  } = JSON.parse(readFileSync(join(found, 'package.json'), 'utf8'));
  const known = versions.get(name);
  if (known === version) return;
  if (known !== undefined) throw new Error(`two versions of ${name} are needed: ${known} and ${version}`);
  versions.set(name, version);
  cpSync(found, join(to, 'node_modules', name), {
    recursive: true,
    dereference: true,
    filter: (path) => !path.slice(found.length).includes('node_modules'),
  });
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
