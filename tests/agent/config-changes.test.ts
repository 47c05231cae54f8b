import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { configChanges, takenOver } from '../../agent/config-changes.ts';
import type { AgentConfig } from '../../agent/config.ts';
import { loadAgentConfig } from '../../agent/config.ts';

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'gantry-changes-'));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const A = 'a: { engine: vllm-omni, model: x/a, revision: r }';

async function load(text: string): Promise<AgentConfig> {
  const config = join(dir, 'agent.yaml');
  await writeFile(config, text);
  return await loadAgentConfig({ config }, {});
}

async function between(before: string, after: string): Promise<ReturnType<typeof configChanges>> {
  return configChanges(await load(before), await load(after));
}

describe('what a running agent takes over', () => {
  test.each([
    ['gpu: { reserve: 2GiB }', 'gpu.reserve'],
    ['gpu: { yield_to_foreign: true }', 'gpu.yield_to_foreign'],
    ['memory: { reserve: 9GiB }', 'memory.reserve'],
    ['log_level: debug', 'log_level'],
    ['times: { stop_grace: 1s }', 'times.stop_grace'],
    ['times: { vram_back_offloaded: 1s }', 'times.vram_back_offloaded'],
    ['times: { held_away: 1s }', 'times.held_away'],
  ])('%s', async (text, key) => {
    expect(await between('', text)).toEqual({ changes: [`${key}: changed`], atNextStart: [] });
    const [before, after] = [await load(''), await load(text)];
    expect(configChanges(takenOver(before, after), after), 'afterwards it is in force').toEqual({
      changes: [],
      atNextStart: [],
    });
  });

  test('models: added, removed, replaced, changed in place', async () => {
    const model = (alias: string, more = ''): string =>
      `${alias}: { engine: vllm-omni, model: x/${alias}, revision: r${more} }`;
    const { changes } = await between(
      `models: { ${[model('a'), model('b'), model('c'), model('d')].join(', ')} }`,
      `models: { ${[model('a'), model('b', ', args: [--x]'), model('c', ', pin: true'), model('e')].join(', ')} }`,
    );
    expect(changes).toEqual([
      'models.d: removed; what runs ends first',
      'models.b: its server is replaced when its work has ended',
      'models.c: changed, its server stays',
      'models.e: added',
    ]);
  });
});

describe('what waits for the next start', () => {
  test.each([
    ['listen: 127.0.0.1:9', 'listen'],
    ['names: [x]', 'names'],
    ['state_dir: /other\nlog_dir: /var/lib/gantry/logs', 'state_dir'],
    ['log_dir: /other', 'log_dir'],
    ['gpu: { nvidia_smi: /other }', 'gpu.nvidia_smi'],
    ['gpu: { sample_interval: 9s }', 'gpu.sample_interval'],
    ['logs: { keep: 9 }', 'logs'],
    ['times: { grant: 9s }', 'times.grant'],
    ['times: { ping_every: 9s }', 'times.ping_every'],
    ['times: { health_poll: 9s }', 'times.health_poll'],
  ])('%s', async (text, key) => {
    expect(await between('', text)).toEqual({ changes: [], atNextStart: [key] });
    const [before, after] = [await load(''), await load(text)];
    expect(configChanges(takenOver(before, after), after).atNextStart, 'said again at every reload').toEqual([key]);
  });
});

test('the same file is no change', async () => {
  expect(await between(`models: { ${A} }`, `models: { ${A} }`)).toEqual({ changes: [], atNextStart: [] });
});
