import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import sharp from 'sharp';
import { expect, test } from 'vitest';
import type { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import { eventually, isAlive, processTree, TestFleet, vllm } from '../helpers/fleet.ts';

const MODEL = 'black-forest-labs/FLUX.2-klein-4B';
/** A lost host is believed lost after a tenth of the shipped time, so that the fault, not the wait, fills the tests. */
const FACTOR = 0.1;
const BRIDGE = { times: { silence: `${45_000 * FACTOR}ms`, reconnect_max: '1s' } };
process.stdout.write(`fault tests: time factor ${FACTOR}, where not said otherwise\n`);
const PROMPTS = Array.from({ length: 10 }, (_, index) => `picture ${index}`);

async function twoHosts(): Promise<TestFleet> {
  const model = { ...vllm(MODEL, { 'step-ms': 150, fork: true }), preload: true };
  return TestFleet.start([
    { name: 'a', models: { klein: model } },
    { name: 'b', models: { klein: model } },
  ]);
}

async function startBatch(bridge: BridgeClient): Promise<string> {
  const answer = await bridge.ask('batch_generate', { prompts: PROMPTS, width: 256, height: 256, wait_seconds: 0 });
  return String(answer['batch_id']);
}

type Progress = { completed: number };

async function completed(bridge: BridgeClient, id: string, wait = 0): Promise<{ state: string; completed: number }> {
  const answer = await bridge.ask('get_job', { id, wait_seconds: wait });
  return { state: String(answer['state']), completed: (answer['progress'] as Progress).completed }; // shape of the tool's schema
}

async function atWork(bridge: BridgeClient, id: string): Promise<void> {
  await eventually('two images done', async () => (await completed(bridge, id)).completed >= 2);
}

/** Every picture is there once, whole, under a name of its own, and nothing else is. */
async function expectAllFiles(fleet: TestFleet): Promise<void> {
  const files = await fleet.outputFiles();
  expect(files).toHaveLength(PROMPTS.length);
  expect(files.filter((file) => !file.endsWith('.png'))).toEqual([]);
  const prompts = await Promise.all(
    files.map(async (file) => {
      const image = await readFile(join(fleet.output, file));
      await sharp(image, { failOn: 'truncated' }).raw().toBuffer();
      return /picture \d/.exec(image.toString('latin1'))?.[0];
    }),
  );
  expect(new Set(prompts).size).toBe(PROMPTS.length);
}

test.each([
  ['a', BRIDGE],
  ['b', BRIDGE],
  ['a, at the times as shipped', {}],
])('F14, F26: the agent of host %s is killed in the middle of a batch', async (which, times) => {
  const name = which.slice(0, 1);
  await using fleet = await twoHosts();
  const bridge = await fleet.bridge(times);
  const id = await startBatch(bridge);
  await atWork(bridge, id);
  const host = fleet.host(name);
  const tree = (await processTree(host.pid)).filter((pid) => pid !== host.pid);
  const killedAtMs = performance.now();
  await host.stopAgent('SIGKILL');
  const end = await eventually(
    'the batch ends',
    async () => (await completed(bridge, id)).state !== 'running' && true,
    60_000,
  );
  expect(end).toBe(true);
  expect(performance.now() - killedAtMs).toBeLessThan(60_000);
  await expectAllFiles(fleet);
  await host.startAgent();
  await eventually(
    'the old tree is gone',
    async () => (await Promise.all(tree.map(isAlive))).every((alive) => !alive),
    15_000,
  );
});

test('F14: an agent that is killed and comes back at once finishes its share', async () => {
  await using fleet = await twoHosts();
  const bridge = await fleet.bridge(BRIDGE);
  const id = await startBatch(bridge);
  await atWork(bridge, id);
  for (const host of fleet.hosts) {
    await host.stopAgent('SIGKILL');
    await host.startAgent();
  }
  await eventually('the batch ends', async () => (await completed(bridge, id)).state === 'success', 60_000);
  await expectAllFiles(fleet);
});

test.each(['leader', 'worker'])('F02, F03: the %s of each engine is killed in the middle of a batch', async (which) => {
  await using fleet = await twoHosts();
  const bridge = await fleet.bridge(BRIDGE);
  const id = await startBatch(bridge);
  await atWork(bridge, id);
  for (const host of fleet.hosts) {
    const [worker] = await host.computePids();
    expect(worker).toBeDefined();
    const leader = /\) \S (\d+)/.exec(await readFile(`/proc/${worker ?? 0}/stat`, 'utf8'))?.[1];
    process.kill(which === 'worker' ? (worker ?? 0) : Number(leader), 'SIGKILL');
  }
  const state = await eventually(
    'the batch ends',
    async () => {
      const now = await completed(bridge, id);
      return now.state === 'running' ? undefined : now.state;
    },
    60_000,
  );
  expect(state).toBe('success');
  await expectAllFiles(fleet);
});

test('all hosts gone: the batch stays, says which hosts and why, and goes on by itself', async () => {
  await using fleet = await twoHosts();
  const bridge = await fleet.bridge(BRIDGE);
  const id = await startBatch(bridge);
  await atWork(bridge, id);
  for (const host of fleet.hosts) await host.stopAgent('SIGKILL');
  const hosts = await eventually('both links are down', async () => {
    const answer = await bridge.ask('list_hosts');
    const text = JSON.stringify(answer);
    return text.includes('AGENT_UNREACHABLE') && text;
  });
  expect(hosts).toMatch(/127\.0\.0\.1/);
  for (const host of fleet.hosts) await host.startAgent();
  await eventually('the batch ends', async () => (await completed(bridge, id)).state === 'success', 60_000);
  await expectAllFiles(fleet);
});
