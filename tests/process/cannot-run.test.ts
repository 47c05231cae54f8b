import { expect, test } from 'vitest';
import { eventually, TestFleet, vllm } from '../helpers/fleet.ts';

const KLEIN = 'black-forest-labs/FLUX.2-klein-4B';
const SMALL = { width: 256, height: 256 };
const LARGE = { width: 1920, height: 1920 };
const FLAGS = { 'weights-mib': 8_000, 'peak-mib': 8_500 };

test('a picture that fits on no host is refused within seconds, with the reason of each host', async () => {
  const klein = () => ({ klein: vllm(KLEIN, FLAGS) });
  await using fleet = await TestFleet.start([
    { name: 'a', gpuMiB: [14_000], models: klein() },
    { name: 'b', gpuMiB: [15_000], models: klein() },
  ]);
  const bridge = await fleet.bridge();
  const startMs = performance.now();
  const answer = await bridge.call('generate_image', { prompt: 'a fox', ...LARGE, wait_seconds: 45 });
  expect(performance.now() - startMs).toBeLessThan(40_000);
  expect(answer.isError, answer.text).toBe(true);
  expect(answer.text).toMatch(
    /^NO_HOST: .*a: klein needs about \d+\.\d GB of VRAM at 1920x1920 and can have \d+\.\d GB/s,
  );
  expect(answer.text).toMatch(
    /b: klein needs about .* and can have \d+\.\d GB at most; try \d+\.\d+ megapixels or less/,
  );
  expect(await bridge.ask('generate_image', { prompt: 'a fox', ...SMALL, wait_seconds: 45 })).toMatchObject({
    status: 'success',
  });
});

test('a batch with pictures that fit only on one host has them all done, those on that host', async () => {
  // Really too large for the small host, whatever it learns: 22 GB at 1920x1920.
  const flags = { ...FLAGS, 'peak-mib': 12_000 };
  await using fleet = await TestFleet.start([
    { name: 'a', gpuMiB: [14_000], models: { klein: vllm(KLEIN, flags) } },
    { name: 'b', gpuMiB: [24_000], models: { klein: vllm(KLEIN, { ...flags, 'step-ms': 100 }) } },
  ]);
  const bridge = await fleet.bridge();
  const large = await bridge.ask('batch_generate', { prompts: ['l1', 'l2'], ...LARGE, wait_seconds: 0 });
  const small = await bridge.ask('batch_generate', { prompts: ['s1', 's2', 's3', 's4'], ...SMALL, wait_seconds: 0 });
  for (const { batch_id: id } of [large, small]) {
    const done = await eventually(
      'all pictures',
      async () => {
        const now = await bridge.ask('get_job', { id, wait_seconds: 5 });
        return now['state'] === 'running' ? undefined : now;
      },
      60_000,
    );
    expect(done['state'], JSON.stringify(done)).toBe('success');
  }
  expect(fleet.host('a').events('job-accepted').length, 'the small host had small ones').toBeGreaterThan(0);
  expect(fleet.host('b').events('job-accepted').length).toBeGreaterThanOrEqual(2);
});
