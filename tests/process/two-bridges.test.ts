import { expect, test } from 'vitest';
import type { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import { eventually, TestFleet, vllm } from '../helpers/fleet.ts';

const FIRST = 'black-forest-labs/FLUX.2-klein-4B';
const SECOND = 'Tongyi-MAI/Z-Image-Turbo';
const prompts = Array.from({ length: 12 }, (_, index) => `picture ${index}`);

/** One GPU of 24 GiB, two models of 15 GiB: only one fits at a time, so the host must take turns. */
test('two bridges that want two different models of one host both make progress', async () => {
  await using fleet = await TestFleet.start([
    {
      name: 'a',
      models: {
        klein: vllm(FIRST, { 'step-ms': 60, 'weights-mib': 15_000, 'peak-mib': 16_000 }),
        z: vllm(SECOND, { 'step-ms': 30, 'weights-mib': 15_000, 'peak-mib': 16_000 }),
      },
      config: { times: { turn: '2s' }, gpu: { sample_interval: '250ms' } },
    },
  ]);
  const bridges = [await fleet.bridge(), await fleet.bridge()] as const;
  const ids = await Promise.all([start(bridges[0], FIRST), start(bridges[1], SECOND)]);
  // Both have pictures while neither is finished: neither waited for the end of the other.
  const halfway = await eventually(
    'both bridges have a picture',
    async () => {
      const done = await Promise.all([progress(bridges[0], ids[0]), progress(bridges[1], ids[1])]);
      return done.every(({ completed }) => completed > 0) ? done : undefined;
    },
    60_000,
  );
  expect(Math.min(...halfway.map(({ completed }) => completed))).toBeLessThan(prompts.length);
  for (const [index, bridge] of bridges.entries()) {
    await eventually(
      'the batch ends',
      async () => (await progress(bridge, ids[index] ?? '')).state === 'success',
      60_000,
    );
  }
  expect(await fleet.outputFiles()).toHaveLength(2 * prompts.length);
});

async function start(bridge: BridgeClient, model: string): Promise<string> {
  const answer = await bridge.ask('batch_generate', { prompts, model, width: 256, height: 256, wait_seconds: 0 });
  return String(answer['batch_id']);
}

async function progress(bridge: BridgeClient, id: string): Promise<{ state: string; completed: number }> {
  const answer = await bridge.ask('get_job', { id, wait_seconds: 0 });
  return { state: String(answer['state']), completed: (answer['progress'] as { completed: number }).completed }; // the tool's schema
}
