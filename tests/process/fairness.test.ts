import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import type { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import { eventually, TestFleet, vllm } from '../helpers/fleet.ts';
import { worstDifference } from '../helpers/served.ts';
import type { ServedRun } from '../helpers/served.ts';

// Each takes a third of a minute; the rest is for a machine that does other things as well.
vi.setConfig({ testTimeout: 600_000 });

const MODEL = 'black-forest-labs/FLUX.2-klein-4B';
const OTHER = 'Tongyi-MAI/Z-Image-Turbo';
const STEPS = 4;

describe('two bridges with 40 equal jobs each of one model on the same four hosts', () => {
  test.each([
    { hosts: 'four speeds', tokens: 1, stepsMs: [200, 200, 100, 50] },
    { hosts: 'one speed', tokens: 2, stepsMs: [100, 100, 100, 100] },
  ])('$hosts, $tokens token: served run time differs by at most 10 % after 20 jobs', async ({ stepsMs, tokens }) => {
    await using fleet = await TestFleet.start(
      stepsMs.map((stepMs, at) => ({ name: `h${at}`, models: { klein: vllm(MODEL, { 'step-ms': stepMs }) } })),
    );
    const bridges = await Promise.all([
      connected(fleet.bridge({}, 'laptop-0')),
      connected(fleet.bridge(tokens === 1 ? {} : { hosts: await otherTokens(fleet) }, 'laptop-1')),
    ]);
    // Every host has its model and knows its own speed.
    await ended(bridges[0], await start(bridges[0], { fleet, count: 16, model: MODEL }));
    const differences: number[] = [];
    // Jobs that take what they should leave 0 to 7 %, a wrong order 31 % each time (see docs/decisions.md). In between is a
    // machine with other things to do, which holds up some of the jobs: the same is done again. Six times chance is not what
    // makes a wrong order right.
    do differences.push(worstDifference(await share(fleet, bridges), 20));
    while (differences.length < 6 && Math.min(...differences) > 0.1);
    expect(Math.min(...differences)).toBeLessThanOrEqual(0.1);
  });
});

/** Both start 40 jobs at the same moment: when each ran, by what the agents logged. */
async function share(fleet: TestFleet, bridges: readonly BridgeClient[]): Promise<ServedRun[]> {
  const fromLines = fleet.hosts.map((host) => host.log.length);
  const ids = await Promise.all(bridges.map((bridge) => start(bridge, { fleet, count: 40, model: MODEL })));
  for (const [at, bridge] of bridges.entries()) await ended(bridge, ids[at] ?? '');
  const owners = new Map<string, number>();
  for (const at of bridges.keys()) {
    for (const jobId of await jobIds(fleet, { laptop: `laptop-${at}`, batchId: ids[at] ?? '' })) owners.set(jobId, at);
  }
  const runs = fleet.hosts.flatMap((host, at) =>
    host.events('job-done', { fromLine: fromLines[at] ?? 0 }).flatMap((event): ServedRun[] => {
      const bridge = owners.get(String(event['jobId']));
      return bridge === undefined ? [] : [{ bridge, startMs: event.time - Number(event['runMs']), endMs: event.time }];
    }),
  );
  expect(runs).toHaveLength(80);
  return runs;
}

test('two models on one host: the second comes after one turn and one swap, and nobody swaps more than once a turn', async () => {
  const turnMs = 2_000;
  await using fleet = await TestFleet.start([
    {
      name: 'a',
      models: {
        klein: vllm(MODEL, { 'step-ms': 60, 'weights-mib': 15_000, 'peak-mib': 16_000 }),
        z: vllm(OTHER, { 'step-ms': 60, 'weights-mib': 15_000, 'peak-mib': 16_000 }),
      },
      config: { times: { turn: `${turnMs}ms` }, gpu: { sample_interval: '250ms' } },
    },
  ]);
  const bridges = await Promise.all([connected(fleet.bridge({}, 'laptop-0')), connected(fleet.bridge({}, 'laptop-1'))]);
  const host = fleet.host('a');
  const startedMs = Date.now();
  const first = await start(bridges[0], { fleet, count: 20, model: MODEL });
  // Its turn has begun, its times are known: from now on every job is granted ahead of the end of the one before.
  await eventually('the first has pictures', () => Promise.resolve(host.events('job-done').length >= 3));
  const askedMs = Date.now();
  const second = await start(bridges[1], { fleet, count: 20, model: OTHER });
  await ended(bridges[0], first);
  await ended(bridges[1], second);
  const elapsedMs = Date.now() - startedMs;

  const owned = new Set(await jobIds(fleet, { laptop: 'laptop-1', batchId: second }));
  const done = host.events('job-done').filter((event) => owned.has(String(event['jobId'])));
  const swapMs = Math.max(...host.events('job-done').map(({ time }, at, all) => time - (all[at - 1]?.time ?? time)));
  const runMs = Math.max(...host.events('job-done').map((event) => Number(event['runMs'])));
  expect(done).toHaveLength(20);
  expect((done[0]?.time ?? Infinity) - askedMs).toBeLessThanOrEqual(Math.max(turnMs, 3 * swapMs) + swapMs + 3 * runMs);
  const turnsBegun = host
    .events('job-done')
    .filter(
      (event, at, all) => at > 0 && owned.has(String(event['jobId'])) !== owned.has(String(all[at - 1]?.['jobId'])),
    );
  expect(turnsBegun.length).toBeGreaterThan(1);
  expect(turnsBegun.length).toBeLessThanOrEqual(elapsedMs / turnMs);
});

async function start(bridge: BridgeClient, o: { fleet: TestFleet; count: number; model: string }): Promise<string> {
  const path = join(o.fleet.directory, `prompts-${o.count}.txt`);
  await writeFile(path, Array.from({ length: o.count }, (_, index) => `picture ${index}\n`).join(''));
  const answer = await bridge.ask('batch_generate', {
    ...{ prompts_file: path, model: o.model, width: 256, height: 256, num_inference_steps: STEPS, wait_seconds: 0 },
  });
  return String(answer['batch_id']);
}

async function ended(bridge: BridgeClient, id: string): Promise<void> {
  await eventually(
    'the batch ends',
    async () => (await bridge.ask('get_job', { id, wait_seconds: 0 }))['state'] === 'success',
    300_000,
  );
}

/** Once all its links are up: what is started then is offered to every host at once. */
async function connected(starting: Promise<BridgeClient>): Promise<BridgeClient> {
  const bridge = await starting;
  await eventually('the links are up', async () => (await bridge.ask('list_hosts'))['status'] === 'success');
  return bridge;
}

/** Every host's address with a second token. */
async function otherTokens(fleet: TestFleet): Promise<{ name: string; url: string; token: string }[]> {
  return await Promise.all(
    fleet.hosts.map(async (host) => ({ name: host.name, url: host.url, token: await host.addToken('other') })),
  );
}

/** As they stand in the batch's manifest. */
async function jobIds(fleet: TestFleet, o: { laptop: string; batchId: string }): Promise<string[]> {
  const home = join(fleet.directory, o.laptop);
  const files = await readdir(home, { recursive: true });
  const manifest = files.find((file) => file.endsWith('manifest.jsonl') && file.includes(o.batchId));
  const text = await readFile(join(home, manifest ?? 'manifest.jsonl'), 'utf8');
  return [...new Set(text.match(/(?<="jobId":")[0-9a-f-]{36}/g))];
}
