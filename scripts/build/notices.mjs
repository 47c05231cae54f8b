// The licences of what the bundles contain: whoever passes a bundle on passes these on.
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';

const LICENCE_FILE = /^(licen[cs]e|copying|notice)(\.|-|$)/i;
/** The folder of a package below node_modules, with the folders of packages that carry their own copy. */
const PACKAGE = /^(?:.*\/)?node_modules\/(?:@[^/]+\/)?[^/]+/;

/** One text for all packages that these esbuild metafiles name as inputs. Throws where one has no licence. */
export async function notices(metafiles) {
  const inputs = metafiles.flatMap(({ inputs }) => Object.keys(inputs));
  const folders = [...new Set(inputs.flatMap((path) => PACKAGE.exec(path)?.[0] ?? []))].sort();
  const entries = await Promise.all(folders.map(entryOf));
  return `${['Gantry contains these packages.', ...new Set(entries)].join('\n\n')}\n`;
}

async function entryOf(folder) {
  const { name, version, license } = JSON.parse(await readFile(join(folder, 'package.json'), 'utf8'));
  const files = (await readdir(folder)).filter((file) => LICENCE_FILE.test(file)).sort();
  const texts = await Promise.all(files.map((file) => readFile(join(folder, file), 'utf8')));
  if (license === undefined && texts.length === 0) throw new Error(`${folder} has no licence and may not be bundled`);
  const head = `${'-'.repeat(72)}\n${name} ${version} (${license ?? 'see below'})`;
  return [head, ...texts.map((text) => text.trim())].join('\n\n');
}
