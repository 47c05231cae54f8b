import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { eventually, isAlive, processTree, TestFleet, vllm } from '../helpers/fleet.ts';

const MODEL = 'black-forest-labs/FLUX.2-klein-4B';
const SMALL = { prompt: 'a fox', width: 256, height: 256 };

test('offload and release give back what nvidia-smi shows, and the model comes back when asked', async () => {
  await using fleet = await TestFleet.start([{ name: 'a', models: { klein: vllm(MODEL, { fork: true }) } }]);
  const bridge = await fleet.bridge();
  const host = fleet.host('a');
  await bridge.ask('generate_image', SMALL);
  const held = await usedMiB(host);
  expect(held).toBeGreaterThanOrEqual(8_000);
  const offloaded = await bridge.ask('offload_gpu', { model: MODEL, wait_seconds: 45 });
  expect(JSON.stringify(offloaded)).toMatch(/load_model/);
  expect(await usedMiB(host)).toBeLessThan(held / 2);
  await bridge.ask('generate_image', SMALL); // an interactive call wakes it
  expect(await usedMiB(host)).toBeGreaterThanOrEqual(8_000);
  const tree = await host.computePids();
  await bridge.ask('release_gpu', { model: MODEL, wait_seconds: 45 });
  expect(await host.computePids()).toEqual([]);
  expect((await Promise.all(tree.map(isAlive))).some(Boolean)).toBe(false);
});

test('SIGTERM ends the agent with every process, port and unfinished file of it', async () => {
  await using fleet = await TestFleet.start([
    {
      name: 'a',
      models: { klein: { ...vllm(MODEL, { fork: true, 'ignore-sigterm': true }), preload: true } },
      config: { times: { stop_grace: '300ms' } },
    },
  ]);
  const host = fleet.host('a');
  await eventually('the model holds VRAM', async () => (await host.computePids()).length > 0);
  const tree = await processTree(host.pid);
  expect(tree.length).toBeGreaterThan(2);
  expect(await host.stopAgent()).toBe(0);
  expect((await Promise.all(tree.map(isAlive))).some(Boolean)).toBe(false);
});

test('a bridge that comes back resumes the batch and redoes nothing', async () => {
  await using fleet = await TestFleet.start([{ name: 'a', models: { klein: vllm(MODEL, { 'step-ms': 100 }) } }]);
  const first = await fleet.bridge({}, 'laptop');
  const prompts = Array.from({ length: 8 }, (_, index) => `picture ${index}`);
  const { batch_id: id } = await first.ask('batch_generate', { prompts, width: 256, height: 256, wait_seconds: 0 });
  await eventually(
    'two files',
    async () => (await fleet.outputFiles()).filter((name) => name.endsWith('.png')).length >= 2,
  );
  process.kill(first.transport.pid ?? 0, 'SIGKILL');
  const second = await fleet.bridge({}, 'laptop');
  const state = await eventually(
    'the batch ends',
    async () => {
      const answer = await second.ask('get_job', { id, wait_seconds: 0 });
      return answer['state'] === 'running' ? undefined : answer['state'];
    },
    60_000,
  );
  expect(state).toBe('success');
  const files = await fleet.outputFiles();
  expect(files).toHaveLength(8);
  const texts = await Promise.all(files.map((file) => readFile(join(fleet.output, file), 'latin1')));
  expect(new Set(texts.map((text) => /picture \d/.exec(text)?.[0])).size).toBe(8);
});

async function usedMiB(host: { nvidiaSmi: (...args: string[]) => Promise<string> }): Promise<number> {
  return Number(await host.nvidiaSmi('--query-gpu=memory.used', '--format=csv,noheader,nounits'));
}
