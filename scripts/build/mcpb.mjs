// Lays out the .mcpb bundle: one folder with the bridge, its manifest and the licences. No native module is inside, so the
// same bundle serves every system; what needs sharp answers the stored preview there.
import { copyFile, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { toolList } from './bridge.mjs';

const SEMVER = /^\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?$/;

/** Needs a finished dist/. Replaces what is in `folder`. */
export async function layOutMcpb(folder) {
  const manifest = await mcpbManifest();
  await rm(folder, { recursive: true, force: true });
  await mkdir(join(folder, 'server', 'bridge'), { recursive: true });
  await writeFile(join(folder, 'manifest.json'), `${JSON.stringify(manifest, null, 2)}\n`);
  await copyFile('LICENSE', join(folder, 'LICENSE'));
  await copyFile('dist/THIRD_PARTY_NOTICES.txt', join(folder, 'THIRD_PARTY_NOTICES.txt'));
  await copyFile('dist/gantry.cjs', join(folder, 'server', 'gantry.cjs'));
  // What V8 compiled beside it is for one version of Node on one kind of machine.
  const programs = (await readdir('dist/bridge')).filter((name) => name.endsWith('.cjs'));
  for (const name of programs) await copyFile(join('dist/bridge', name), join(folder, 'server', 'bridge', name));
}

export async function mcpbManifest() {
  const { name, version, description, license, engines } = JSON.parse(await readFile('package.json', 'utf8'));
  // Claude Desktop ends at every start over another kind of version, and `mcpb validate` does not look.
  if (!SEMVER.test(version)) throw new Error(`package.json: ${version} is no semantic version`);
  const [, holder] = /^Copyright \(c\) \d+ (.+)$/m.exec(await readFile('LICENSE', 'utf8')) ?? [];
  if (holder === undefined) throw new Error('LICENSE names nobody');
  return {
    manifest_version: '0.3',
    name,
    display_name: 'Gantry',
    version,
    description,
    author: { name: holder },
    license,
    server: {
      type: 'node',
      entry_point: 'server/gantry.cjs',
      mcp_config: {
        command: 'node',
        args: ['${__dirname}/server/gantry.cjs', 'bridge'],
        env: { GANTRY_HOSTS: '${user_config.hosts}', GANTRY_OUTPUT_DIR: '${user_config.output_dir}' },
      },
    },
    tools: (await toolList()).map((tool) => ({ name: tool.name, description: firstSentence(tool.description) })),
    user_config: {
      hosts: {
        type: 'string',
        title: 'Hosts',
        description:
          'What `gantry-agent invite` printed on each GPU host, separated by spaces. Leave it empty if the hosts are in ' +
          'bridge.yaml.',
        sensitive: true,
        required: false,
        default: '',
      },
      output_dir: {
        type: 'directory',
        title: 'Output folder',
        description: 'Where images are saved.',
        required: false,
        default: '${HOME}/Pictures',
      },
    },
    compatibility: { platforms: ['darwin', 'win32', 'linux'], runtimes: { node: `${engines.node}.0` } },
  };
}

function firstSentence(text) {
  return /^.*?[.:](?=\s|$)/s.exec(text)?.[0] ?? text;
}
