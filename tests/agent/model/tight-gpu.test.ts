import { expect, test, vi } from 'vitest';
import { planVram } from '../../../agent/gpu/vram-planner.ts';
import { generate, ModelHost, never, omni, QUIET, until } from './model-host.ts';

// Real processes: how long they take to start is up to the machine.
vi.setConfig({ testTimeout: 120_000 });

const MEGAPIXEL = { width: 1024, height: 1024 };

test('the next job on a nearly full GPU is admitted at once: readings still show the peak of the last one as used', async () => {
  const tight = omni('a', ['--weights-mib', '14000', '--peak-mib', '22000', '--step-ms', '1000'], { vramMiB: 14_000 });
  await using host = await ModelHost.start([tight], { gpusMiB: [24_000], reserveMiB: 1_000, queryTimeoutMs: 3_000 });
  await runBig(host); // its real peak is learned
  await until(() => host.residency.slotFacts('a').peakMiB >= 22_000);
  const next = (): string =>
    planVram(host.residency.wantFor('a', { megapixels: 1 }), host.residency.vramView(new Set())).kind;

  using lease = await host.admit('a', 1);
  const run = lease.run(generate(MEGAPIXEL), [], QUIET);
  await until(() => host.usedMiB() >= 22_000);
  await host.sampler.sampleNow(never);
  await host.hangNvidiaSmi(); // from here on no newer reading comes
  await run;
  lease[Symbol.dispose]();
  expect(host.sampler.readings()[0]?.freeMiB, 'the reading is of the last job').toBeLessThan(3_000);
  expect(next()).toBe('fits');
  await host.mendNvidiaSmi();
});

async function runBig(host: ModelHost): Promise<void> {
  using lease = await host.admit('a', 1);
  await lease.run(generate(MEGAPIXEL), [], QUIET);
}
