import fc from 'fast-check';
import { execFileSync } from 'node:child_process';
import { mkdir, readdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect } from 'vitest';
import type { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import type { SimulatedHost } from '../../scripts/lib/simulated-host.ts';
import { processTree } from '../helpers/fleet.ts';
import type { BadArguments } from './bad-arguments.ts';
import { badArguments } from './bad-arguments.ts';
import { MODEL, SMALL, startFleet, untilReady } from './batch.ts';
import { fault } from './fault.ts';
import { STOWAWAY, writeHostileFiles, writePolyglots } from './hostile-files.ts';
import { MemoryWatch } from './memory.ts';
import { bridgeConfig } from './scale.ts';

const REFUSED_WITHIN_MS = 1_000;
/** Ten at a time on a machine with thirty others at work. */
const TEN_REFUSED_WITHIN_MS = 100_000;
const MAX_GROWTH_MIB = 150;
const TRACE = /\n\s+at |node:internal|\.ts:\d|\.cjs:\d/;

describe('hostile inputs', () => {
  fault('F39', 'bombs, broken and disguised pictures', async (row) => {
    await using fleet = await startFleet({ a: {} });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    const files = await writeHostileFiles(join(fleet.directory, 'hostile'));
    const polyglots = await writePolyglots(join(fleet.directory, 'hostile'));
    const edit = (path: string) => bridge.call('edit_image', { image_path: path, prompt: 'a hat', model: MODEL });
    expect((await edit(polyglots[0] ?? '')).isError, 'everything that is needed is loaded').toBe(false);
    const watch = await MemoryWatch.start(await watched(bridge, fleet.host('a')));
    for (const { name, path, says } of files) {
      row.injected();
      const { text } = await row.sees(`refused: ${name}`, REFUSED_WITHIN_MS, async () => {
        const answer = await edit(path);
        expect(answer.isError, name).toBe(true);
        return answer;
      });
      expect(text, name).toMatch(says);
      expect(text, name).not.toMatch(TRACE);
    }
    for (const path of polyglots) expect((await edit(path)).isError, path).toBe(false);
    expect(grep(STOWAWAY, [fleet.output, join(fleet.host('a').directory, 'state')])).toEqual([]);
    row.holds('of a picture with something behind it only the pixels are used');
    await expectSmall(watch, row);
  });

  fault('F39', 'paths that lead elsewhere', async (row) => {
    await using fleet = await startFleet({ a: {} });
    await untilReady(fleet);
    const root = join(fleet.directory, 'root');
    const outside = join(fleet.directory, 'outside');
    for (const path of [root, outside]) await mkdir(path);
    await writeFile(join(outside, 'secret.png'), 'a key');
    await symlink(outside, join(root, 'link'));
    await symlink(join(outside, 'secret.png'), join(root, 'photo.png'));
    const bridge = await fleet.bridge({ ...bridgeConfig(), roots: [root], output_dir: root });
    const refused = async (tool: string, args: Record<string, unknown>): Promise<void> => {
      const { isError, text } = await bridge.call(tool, { prompt: 'a fox', model: MODEL, ...args });
      expect({ isError, args }).toEqual({ isError: true, args });
      expect(text).toMatch(/^(PATH_DENIED|INVALID_ARGUMENT): /);
      expect(text).not.toMatch(TRACE);
      expect(text).not.toContain('a key');
    };
    const directories = [
      ...['../outside', join(root, '..', 'outside'), outside, join(root, 'link'), join(root, 'link', 'new')],
      ...['/etc/gantry', '/proc/self', `${root}/a\0b`, `${root}/CON`, `${root}/.ssh`, '~/.ssh', '~root/x'],
      ...['\\\\server\\share', '//server/share', 'file:///tmp', '\u0000', `${root}/${'x'.repeat(300)}`],
    ];
    row.injected();
    for (const path of directories) await refused('generate_image', { ...SMALL, output_dir: path });
    row.holds(`${directories.length} output directories refused`);
    const pictures = ['/etc/passwd', '/proc/self/environ', join(root, 'photo.png'), join(root, 'link', 'secret.png')];
    const odd = [...pictures, 'https://example.com/a.png', 'data:image/png;base64,AAAA', '../outside/secret.png'];
    for (const path of odd) await refused('edit_image', { image_path: path });
    row.holds(`${odd.length} pictures refused`);
    const names = ['../../outside/x.png', '/etc/x.png', 'CON.png', 'nul', 'a\0b.png', '..', '.hidden', 'x'.repeat(300)];
    for (const filename of names) {
      const { isError, text, json } = await bridge.call('generate_image', { ...SMALL, prompt: 'a fox', filename });
      if (isError) expect(text).toMatch(/^(PATH_DENIED|INVALID_ARGUMENT): /);
      else expect(join(String(json['file_path']), '..')).toBe(root);
    }
    row.holds('a file name never leads out of the directory');
    expect(await readdir(outside)).toEqual(['secret.png']);
    expect(await readFile(join(outside, 'secret.png'), 'utf8')).toBe('a key');
    row.holds('nothing outside the root');
  });

  fault('F39', 'generated arguments', async (row) => {
    await using fleet = await startFleet({ a: {} });
    await untilReady(fleet);
    const bridge = await fleet.bridge(bridgeConfig());
    const { tools } = await bridge.client.listTools();
    await bridge.ask('gpu_status'); // everything that a call needs is loaded
    const watch = await MemoryWatch.start(await watched(bridge, fleet.host('a')));
    const any = fc.oneof(...tools.map(({ name, inputSchema }) => badArguments(name, inputSchema as never))); // wider typed by the SDK
    const calls = await throwAt(bridge, any);
    row.holds(`${calls} calls of ${tools.length} tools refused, each with the name of what was wrong`);
    expect(fleet.host('a').events('job-accepted')).toEqual([]);
    expect(await fleet.outputFiles()).toEqual([]);
    row.holds('nothing written, nothing sent to a host');
    await expectSmall(watch, row);
  });
});

const CALLS = { most: 10_000, least: 500, atOnce: 10, forMs: 8_000 };

/** As many as time allows. The seed is in the message of what fails. */
async function throwAt(bridge: BridgeClient, any: fc.Arbitrary<BadArguments>): Promise<number> {
  const seed = Date.now();
  const endMs = performance.now() + CALLS.forMs;
  let calls = 0;
  while (calls < CALLS.least || (calls < CALLS.most && performance.now() < endMs)) {
    const batch = fc.sample(any, { numRuns: CALLS.atOnce, seed: seed + calls });
    const startedMs = performance.now();
    await Promise.all(batch.map((bad) => expectRefused(bridge, bad, `seed ${seed + calls}`)));
    expect(performance.now() - startedMs, 'ms for a few refusals').toBeLessThan(TEN_REFUSED_WITHIN_MS);
    calls += batch.length;
  }
  return calls;
}

async function expectRefused(bridge: BridgeClient, { tool, args, field }: BadArguments, where: string): Promise<void> {
  const { isError, text } = await bridge.call(tool, args);
  const what = `${where}: ${tool} ${JSON.stringify(args).slice(0, 300)}`;
  expect(isError, what).toBe(true);
  expect(text, what).toMatch(/^INVALID_ARGUMENT: /);
  expect(text, what).not.toMatch(TRACE);
  expect(text.length, what).toBeLessThan(5_000);
  // What cannot be shown is left out of the text, so only plain names can be looked for; a long list is cut.
  if (/^\w{1,40}$/.test(field) && text.length < 3_900) expect(text, what).toContain(field);
}

/** The bridge, the agent and its decoder: whatever of ours sees the input. */
async function watched(bridge: BridgeClient, host: SimulatedHost): Promise<number[]> {
  const ours: number[] = [bridge.transport.pid ?? 0];
  for (const pid of await processTree(host.pid)) {
    const line = await readFile(`/proc/${pid}/cmdline`, 'utf8');
    if (/gantry-agent|picture-worker/.test(line)) ours.push(pid);
  }
  return ours;
}

async function expectSmall(watch: MemoryWatch, row: Parameters<Parameters<typeof fault>[2]>[0]): Promise<void> {
  const grownMiB = await watch.grownMiB();
  expect(grownMiB, 'MiB that bridge, agent and decoder needed on top').toBeLessThan(MAX_GROWTH_MIB);
  row.holds(`processes alive, ${Math.round(grownMiB)} MiB more at most`);
}

/** Files that contain a text, in bytes. */
function grep(text: string, directories: readonly string[]): string[] {
  try {
    const found = execFileSync('grep', ['-rlaF', '--', text, ...directories], { encoding: 'utf8' });
    return found.split('\n').filter(Boolean);
  } catch (error) {
    if (error instanceof Error && 'status' in error && error.status === 1) return []; // none
    throw error;
  }
}
