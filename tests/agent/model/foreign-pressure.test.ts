import { expect, test, vi } from 'vitest';
import { generate, ModelHost, omni, QUIET, until } from './model-host.ts';

// Real processes: how long they take to start is up to the machine.
vi.setConfig({ testTimeout: 120_000 });

const ON = { gpusMiB: [24_000], reserveMiB: 1_000, yieldsToForeign: true };

test('with yield_to_foreign an idle model makes way for another program, and batch work leaves it away for a while', async () => {
  // A start takes longer than a wake is thought to, so that the idle time decides.
  const slow = (alias: string) => omni(alias, ['--load-ms', '1500']);
  await using host = await ModelHost.start([slow('a'), slow('b')], ON);
  for (const alias of ['a', 'b']) (await host.admit(alias))[Symbol.dispose]();
  await until(() => host.residency.gpuStatus()[0]?.oursMiB === 16_000);
  host.plant(7_500);
  await until(() => host.state('a') === 'offloaded');
  expect(host.state('b')).toBe('ready'); // one is enough
  expect(24_000 - host.usedMiB()).toBeGreaterThan(1_000);
  const problems = host.residency.problems().join(' ');
  expect(problems).toMatch(
    /a was offloaded because another program needs memory on GPU 0; batch work leaves it away for \d+ s/,
  );
  expect(host.residency.heldAwayMs('test/a')).toBeGreaterThan(50_000);
  expect(host.residency.heldAwayMs('test/b')).toBe(0);
  // It does not come back where the reserve would not be left, and the other one goes where it grows on.
  host.plant(14_000);
  await until(() => host.state('b') !== 'ready');
  await until(() => host.usedMiB() <= 23_000);
});

test('a busy and a pinned model stay, and the host says who presses', async () => {
  await using host = await ModelHost.start([omni('a'), omni('b', [], { pin: true })], ON);
  await until(() => host.residency.slotFacts('b').isReady);
  using lease = await host.admit('a');
  host.plant(7_600);
  await until(() => host.residency.problems().length > 0);
  expect(host.residency.problems()[0]).toMatch(
    new RegExp(`GPU 0 have grown by 7600 MiB, and \\d+ MiB are missing to the reserve: .*pid ${process.pid}, 7600 MiB`),
  );
  await lease.run(generate(), [], QUIET);
  expect([host.state('a'), host.state('b')]).toEqual(['ready', 'ready']);
  lease[Symbol.dispose]();
  await until(() => host.state('a') === 'offloaded'); // now it is idle
  expect(host.state('b')).toBe('ready');
});

test('where nvidia-smi lists no process nobody makes way for what cannot be told, and the host says so', async () => {
  await using host = await ModelHost.start([omni('a')], { ...ON, hidesProcesses: true });
  (await host.admit('a'))[Symbol.dispose]();
  host.plant(15_900);
  await until(() => host.residency.problems().length > 0);
  expect(host.residency.problems()).toEqual([expect.stringMatching(/^GPU 0 has less free[^]*yield_to_foreign/)]);
  expect(host.state('a')).toBe('ready');
  host.plant(0);
  await until(() => host.residency.problems().length === 0);
});

test('without it nobody makes way', async () => {
  await using host = await ModelHost.start([omni('a')], { ...ON, yieldsToForeign: false });
  (await host.admit('a'))[Symbol.dispose]();
  host.plant(15_900);
  await until(() => host.residency.gpuStatus()[0]?.freeMiB === 100);
  const startMs = performance.now();
  await until(() => performance.now() - startMs > 400); // eight pulses
  expect(host.state('a')).toBe('ready');
  expect(host.residency.problems()).toEqual([]);
});

test('where a stranger took the memory during a load, it is refused with names until there is room, then tried again', async () => {
  await using host = await ModelHost.start([omni('a', ['--load-ms', '1500'])], { gpusMiB: [12_000] });
  const admitted = host.admit('a').catch((error: unknown) => error);
  await until(() => host.state('a') === 'loading');
  host.plant(11_000);
  expect(await admitted).toMatchObject({ code: expect.stringMatching(/MODEL_FAILED|GPU_OUT_OF_MEMORY/) as string });
  await until(() => host.state('a') === 'failed');
  const facts = host.residency.slotFacts('a');
  expect(facts.retryInMs, 'not never: nothing is wrong with the model').toBeDefined();
  await until(() => host.residency.slotFacts('a').retryInMs === 0);
  const refusal: unknown = await host.admit('a').catch((error: unknown) => error);
  expect(refusal).toMatchObject({ code: 'GPU_OUT_OF_MEMORY' });
  expect(String(refusal)).toContain(`(pid ${process.pid}, 11000 MiB on GPU 0)`);
  host.plant(0);
  (await host.admit('a'))[Symbol.dispose]();
  expect(host.state('a')).toBe('ready');
});

test('a load that runs out of memory beside nobody is not tried again by itself', async () => {
  await using host = await ModelHost.start([omni('a', ['--oom-at-load'])]);
  await expect(host.admit('a')).rejects.toMatchObject({ code: 'MODEL_FAILED' });
  expect(host.residency.slotFacts('a').retryInMs).toBeUndefined();
});
