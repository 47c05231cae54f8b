import { expect, test, vi } from 'vitest';
import { SEVERAL_AT_ONCE } from '../../helpers/at-once.ts';
import { generate, ModelHost, omni, QUIET, step1x, until } from './model-host.ts';

// Real processes: how long they take to start is up to the machine.
vi.setConfig({ testTimeout: 120_000, ...SEVERAL_AT_ONCE });

test.each([
  ['', false],
  [', also where nvidia-smi lists no process', true],
])(
  'a job that outgrows the GPU evicts the idle model with the least regret, by offload%s',
  async (_, hidesProcesses) => {
    // A wake takes well below a second: two of them are regretted less than one start.
    const models = ['a', 'b', 'c'].map((alias) => omni(alias, ['--load-ms', '2500']));
    await using host = await ModelHost.start(models, { gpusMiB: [20_000], hidesProcesses });
    for (const alias of ['a', 'b', 'c']) await host.run(alias);
    expect(host.state('a')).toBe('offloaded');
    expect(host.state('c')).toBe('ready');
    expect(host.usedMiB()).toBeLessThanOrEqual(20_000);
    using again = await host.admit('a');
    expect(host.state('a')).toBe('ready');
    await again.run(generate(), [], QUIET);
    expect(host.residency.slotFacts('a').heldMiB).toBe(8_000);
    expect(host.residency.gpuStatus()[0]).toMatchObject({ isDegraded: false });
  },
);

test('a job waits for no GPU that a running job needs; the load that a person asked for comes after it', async () => {
  await using host = await ModelHost.start([omni('a'), omni('b')], { gpusMiB: [12_000] });
  const lease = await host.admit('a');
  await expect(host.admit('b')).rejects.toMatchObject({ code: 'GPU_BUSY' });
  const load = host.move('b', 'load');
  await until(() => host.residency.modelStatus()[1]?.detail?.includes('using now') === true);
  lease[Symbol.dispose]();
  expect(await load).toMatchObject({ state: 'ready', done: 'load' });
});

test('a job that never fits is refused with numbers and the names of strangers', async () => {
  await using host = await ModelHost.start([omni('a')], { gpusMiB: [12_000] });
  host.plant(6_000);
  const refusal: unknown = await host.admit('a').catch((error: unknown) => error);
  expect(refusal).toMatchObject({ code: 'GPU_OUT_OF_MEMORY' });
  expect(String(refusal)).toMatch(/a needs \d+ MiB.*Other programs hold VRAM: .*pid \d+, 6000 MiB on GPU 0/);
  expect(host.residency.gpuStatus()[0]?.foreign).toMatchObject([{ pid: process.pid, usedMiB: 6_000 }]);
});

test('a job that runs out of memory is tried once more if idle models can make room, else fails; its server lives', async () => {
  const failing = omni('b', ['--oom', 'exception', '--oom-at', '1']);
  await using host = await ModelHost.start([
    omni('a'),
    failing,
    omni('c', ['--oom', 'engine-output', '--oom-at', '1']),
  ]);
  (await host.admit('a'))[Symbol.dispose]();
  {
    using lease = await host.admit('b');
    const { notes } = await lease.run(generate({ model: 'test/b' }), [], QUIET);
    expect(notes.join()).toContain('second try');
    expect(host.state('a')).toBe('offloaded');
  }
  await host.move('a', 'release');
  await host.move('b', 'release');
  using lease = await host.admit('c');
  const run = () => lease.run(generate({ model: 'test/c' }), [], QUIET);
  await expect(run()).rejects.toMatchObject({ code: 'GPU_OUT_OF_MEMORY' });
  await expect(run()).resolves.toMatchObject({ notes: [] });
});

test.each([
  ['freed too little', omni('a', ['--free-only-mib', '500'])],
  ['was refused by the engine', omni('a', ['--sleep-ack-error'])],
  ['moved nothing, as with Step1X-Edit', step1x(['--offload', 'noop'])],
])('an eviction falls back to release when the offload %s', async (_, model) => {
  await using host = await ModelHost.start([model, omni('b')], { gpusMiB: [12_000] });
  (await host.admit(model.alias))[Symbol.dispose]();
  using lease = await host.admit('b');
  expect(lease.gpuNames).toHaveLength(1);
  expect(host.state(model.alias)).toBe('released');
});

test('an eviction never takes a pinned model', async () => {
  await using host = await ModelHost.start([omni('a', [], { pin: true }), omni('b')], { gpusMiB: [12_000] });
  await until(() => host.residency.slotFacts('a').isReady);
  await expect(host.admit('b')).rejects.toMatchObject({ code: 'GPU_OUT_OF_MEMORY' });
  expect(host.state('a')).toBe('ready');
});
