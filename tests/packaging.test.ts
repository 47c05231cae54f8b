import { execFile } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { z } from 'zod';
import { toolList } from '../bridge/mcp/tool-list.ts';
import { layOutMcpb } from '../scripts/build/mcpb.mjs';
import { notices } from '../scripts/build/notices.mjs';
import { serverJsonProblems } from '../scripts/judge/packaging.ts';
import { RawBridge } from './helpers/raw-bridge.ts';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const SEMVER = /^\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?$/;

const Package = z.object({ name: z.string(), version: z.string().regex(SEMVER), mcpName: z.string() });
const ServerJson = z.object({
  name: z.string(),
  version: z.string(),
  packages: z.array(z.object({ identifier: z.string(), version: z.string() })),
});
const Manifest = z.object({
  manifest_version: z.literal('0.3'),
  name: z.string(),
  version: z.string(),
  tools: z.array(z.object({ name: z.string(), description: z.string().min(1).max(300) })),
  server: z.object({ entry_point: z.string() }),
  user_config: z.object({
    hosts: z.object({ sensitive: z.literal(true) }),
    output_dir: z.object({ type: z.string() }),
  }),
});
const Packed = z.array(z.object({ files: z.array(z.object({ path: z.string() })), unpackedSize: z.number() }));

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'gantry-mcpb-'));
  await layOutMcpb(join(folder, 'mcpb'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

// Some of these build, and wait for npm.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

describe('names and versions', () => {
  test('of package.json, server.json, the manifest and the server itself agree', async () => {
    const own = Package.parse(await jsonOf('package.json'));
    const server = ServerJson.parse(await jsonOf('server.json'));
    const manifest = Manifest.parse(await jsonOf(join(folder, 'mcpb', 'manifest.json')));
    expect(server.name).toBe(own.mcpName);
    expect(server.packages).toEqual([expect.objectContaining({ identifier: own.name, version: own.version })]);
    expect([server.version, manifest.version]).toEqual([own.version, own.version]);
    expect(manifest.name).toBe(own.name);
    const bridge = new RawBridge({ home: folder });
    expect(await bridge.initialize()).toMatchObject({ result: { serverInfo: { version: own.version } } });
    bridge.child.stdin.end();
    expect(await bridge.ended()).toBe(0);
  });

  test('server.json is right by its schema', async () => {
    expect(await serverJsonProblems()).toEqual([]);
  });
});

describe('the .mcpb bundle', () => {
  test('has the bridge, its manifest and the licences, and nothing native', async () => {
    const files = (await readdir(join(folder, 'mcpb'), { recursive: true })).sort();
    const [program] = (await readdir(join(ROOT, 'dist', 'bridge'))).filter((name) => name.endsWith('.cjs'));
    expect(files).toEqual(
      ['LICENSE', 'THIRD_PARTY_NOTICES.txt', 'manifest.json', 'server', 'server/bridge', 'server/gantry.cjs']
        .concat(`server/bridge/${program ?? ''}`)
        .sort(),
    );
  });

  test('names every tool in its order', async () => {
    const { tools } = Manifest.parse(await jsonOf(join(folder, 'mcpb', 'manifest.json')));
    expect(tools.map(({ name }) => name)).toEqual((await toolList()).map(({ name }) => name));
  });
});

describe('the npm package', () => {
  test('has the programs, their documents and licences, and no tests, sources or simulators', async () => {
    // Without scripts: dist/ is there, and other tests use it.
    const args = ['pack', '--dry-run', '--json', '--ignore-scripts'];
    const { stdout } = await promisify(execFile)('npm', args, { cwd: ROOT, maxBuffer: 16 * 1024 ** 2 });
    const [packed] = Packed.parse(JSON.parse(stdout));
    const paths = (packed?.files ?? []).map(({ path }) => path);
    const must = [
      'dist/gantry.cjs',
      'dist/gantry-agent.mjs',
      'dist/picture-worker.mjs',
      'dist/THIRD_PARTY_NOTICES.txt',
    ];
    expect(paths).toEqual(expect.arrayContaining([...must, 'LICENSE', 'README.md', 'package.json']));
    const allowed =
      /^(dist\/[^/]+|dist\/bridge\/[^/]+|docs\/.+|systemd\/.+|scripts\/install-agent\.sh|scripts\/install\/.+|[A-Z]+(\.md)?|package\.json)$/;
    expect(paths.filter((path) => !allowed.test(path))).toEqual([]);
    expect(paths.filter((path) => /\.ts$|test|conformance|\.mcpb$/.test(path))).toEqual([]);
    expect(packed?.unpackedSize).toBeLessThan(8e6);
  }, 60_000);
});

describe('the notices', () => {
  test('name what is inside, with the text of each licence', async () => {
    const text = await readFile(join(ROOT, 'dist', 'THIRD_PARTY_NOTICES.txt'), 'utf8');
    for (const name of ['@modelcontextprotocol/sdk', 'ws', 'zod', 'pino', 'commander', 'yaml'])
      expect(text).toMatch(new RegExp(`^${name} \\d`, 'm'));
    expect(text).toContain('Permission is hereby granted');
    expect((await stat(join(ROOT, 'dist', 'THIRD_PARTY_NOTICES.txt'))).size).toBeLessThan(300_000);
  });

  test('are made of the inputs alone; ours are none', async () => {
    const own = await notices([{ inputs: { 'bridge/main.ts': {}, 'shared/errors.ts': {} } }]);
    expect(own).not.toMatch(/^-{3}/m);
    const one = await notices([{ inputs: { 'node_modules/zod/v4/core/api.js': {} } }]);
    expect(one.match(/^-{72}$/gm)).toHaveLength(1);
  });
});

async function jsonOf(path: string): Promise<unknown> {
  return JSON.parse(await readFile(join(path.startsWith('/') ? '' : ROOT, path), 'utf8'));
}
