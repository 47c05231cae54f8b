import { expect } from 'vitest';
import type { BridgeClient } from '../../scripts/lib/bridge-client.ts';
import { eventually, TestFleet, vllm } from '../helpers/fleet.ts';
import { modelOf } from '../helpers/host-status.ts';
import { MODEL, untilEnded, untilReady } from './batch.ts';
import { fault } from './fault.ts';
import { expectHistory, manifestOf } from './history.ts';
import { agentConfig, bridgeConfig, FACTOR, scaledMs } from './scale.ts';

const OTHER = 'Tongyi-MAI/Z-Image-Turbo';
/** Of either model. A call takes at most 20 prompts. */
const IMAGES = 40;
const PER_PROMPT = 2;
/** Only one of the two fits on the GPU. */
const LARGE = { 'weights-mib': 15_000, 'peak-mib': 16_000 };
const TURN_MS = 30_000;

fault('F41', 'two bridges want two models of one host', async (row) => {
  await using fleet = await TestFleet.start([
    {
      name: 'a',
      models: {
        klein: { ...vllm(MODEL, { ...LARGE, 'step-ms': 30 }), preload: true },
        z: vllm(OTHER, { ...LARGE, 'step-ms': 25 }),
      },
      config: agentConfig(),
    },
  ]);
  await untilReady(fleet);
  const host = fleet.host('a');
  const bridges = [await fleet.bridge(bridgeConfig()), await fleet.bridge(bridgeConfig())] as const;
  const first = await start(bridges[0], MODEL);
  await eventually('the first model works', async () => host.events('job-done').length > 0);
  row.injected();
  const second = await start(bridges[1], OTHER);
  const isSaved = async (): Promise<boolean> => (await manifestOf(fleet, second)).some(({ type }) => type === 'saved');
  // As it was measured on this machine; programs start no faster for a smaller factor.
  const swapMs = (await modelOf(host, 'klein')).loadMs / FACTOR;
  const turnMs = Math.max(TURN_MS, 3 * swapMs);
  await row.sees("the second bridge's first image, within a turn and a swap", turnMs + swapMs, isSaved);
  expect(host.events('job-done').length, 'images of the first by then').toBeLessThan(IMAGES);
  expect(await untilEnded(bridges[0], first)).toBe('success');
  expect(await untilEnded(bridges[1], second)).toBe('success');
  row.holds('both progress');
  const ready = host.events('model-ready');
  const [from = 0] = ready.map(({ time }) => time);
  const ran = host.events('job-done').map(({ time }) => time);
  const swaps = ready.length - 1;
  expect(swaps).toBeLessThanOrEqual(Math.ceil((Math.max(...ran) - from) / scaledMs(turnMs)));
  row.holds('swaps <= run time / turn');
  await expectHistory(fleet, first, second);
});

async function start(bridge: BridgeClient, model: string): Promise<string> {
  const prompts = Array.from({ length: IMAGES / PER_PROMPT }, (_, index) => `picture ${index}`);
  const answer = await bridge.ask('batch_generate', {
    ...{ prompts, images_per_prompt: PER_PROMPT, model, width: 256, height: 256, wait_seconds: 0 },
  });
  return String(answer['batch_id']);
}
