import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { generate, ModelHost, omni, QUIET, until } from './model-host.ts';

// Real processes: how long they take to start is up to the machine.
vi.setConfig({ testTimeout: 120_000 });

const ONE = { gpusMiB: [12_000] };

async function fault(host: ModelHost, fields: object): Promise<void> {
  await writeFile(join(host.directory, 'ledger/nvidia-smi.fault.json'), JSON.stringify(fields));
}

test('a victim that takes a job at the same moment keeps its GPU, or goes before it: one of the two waits, neither breaks', async () => {
  await using host = await ModelHost.start([omni('a'), omni('b')], ONE);
  (await host.admit('a'))[Symbol.dispose]();
  for (let round = 0; round < 4; round += 1) {
    const ends = await Promise.allSettled(
      ['b', 'a'].map(async (alias) => {
        using lease = await host.admit(alias);
        return await lease.run(generate({ model: `test/${alias}` }), [], QUIET);
      }),
    );
    const refused = ends.flatMap((end) => (end.status === 'rejected' ? [end.reason as unknown] : []));
    expect(refused.length).toBeLessThan(2);
    for (const reason of refused) expect(reason).toMatchObject({ code: 'GPU_BUSY' });
    expect(host.usedMiB()).toBeLessThanOrEqual(12_000);
  }
});

test.each([
  ['offloaded', omni('a', ['--sleep-ms', '1500'])],
  ['released', omni('a', ['--ignore-sigterm'], { offload: 'none' })],
])('a victim that dies while it is %s makes room all the same', async (_, victim) => {
  await using host = await ModelHost.start([victim, omni('b')], { ...ONE, times: { stopGraceMs: 1_500 } });
  (await host.admit('a'))[Symbol.dispose]();
  const pids = host.pids();
  const admitted = host.admit('b');
  await until(() => ['offloading', 'releasing'].includes(host.state('a')));
  for (const pid of pids) process.kill(pid, 'SIGKILL');
  (await admitted)[Symbol.dispose]();
  expect(host.state('b')).toBe('ready');
  expect(['failed', 'released']).toContain(host.state('a'));
  expect(host.residency.gpuStatus()[0]).toMatchObject({ isDegraded: false, oursMiB: 8_000 });
});

test('memory that a stranger takes while room is made is not loaded into', async () => {
  await using host = await ModelHost.start([omni('a', ['--sleep-ms', '1000']), omni('b')], ONE);
  (await host.admit('a'))[Symbol.dispose]();
  const admitted = host.admit('b').catch((error: unknown) => error);
  await until(() => host.state('a') === 'offloading' || host.state('a') === 'releasing');
  host.plant(3_000);
  const refusal = await admitted;
  expect(refusal).toMatchObject({ code: 'GPU_OUT_OF_MEMORY' });
  expect(String(refusal)).toContain(`pid ${process.pid}, 3000 MiB on GPU 0`);
  expect(host.residency.modelStatus()[1]).toMatchObject({ state: 'released', loads: 0 });
});

test('a GPU that is lost between the plan and the load gets no server; one that is back is used again', async () => {
  await using host = await ModelHost.start([omni('slow', ['--load-ms', '1500', '--weights-mib', '1000']), omni('b')]);
  const slow = host.admit('slow').catch((error: unknown) => error);
  await until(() => host.state('slow') === 'loading');
  const admitted = host.admit('b').catch((error: unknown) => error); // waits for the lock of the GPU
  await until(() => host.residency.modelStatus()[1]?.detail?.startsWith('waiting') === true);
  await fault(host, { mode: 'lost', index: 0 });
  expect(await admitted).toMatchObject({ code: 'GPU_LOST' });
  expect(host.residency.modelStatus()[1]).toMatchObject({ state: 'released', loads: 0 });
  await slow;
  await host.mendNvidiaSmi();
  await until(() => host.residency.gpuStatus()[0]?.health === 'ok');
  (await host.admit('b'))[Symbol.dispose]();
});

test('a driver that hangs in the middle of a plan ends the admission in time, and nothing is started on old numbers', async () => {
  const slowly = omni('slow', ['--load-ms', '1500', '--weights-mib', '1000']);
  await using host = await ModelHost.start([slowly, omni('b')], { queryTimeoutMs: 3_000 });
  const slow = host.admit('slow').catch((error: unknown) => error);
  await until(() => host.state('slow') === 'loading');
  const admitted = host.admit('b').catch((error: unknown) => error);
  await until(() => host.residency.modelStatus()[1]?.detail?.startsWith('waiting') === true);
  await host.hangNvidiaSmi();
  expect(await admitted).toMatchObject({ code: 'GPU_LOST' });
  expect(host.residency.modelStatus()[1]).toMatchObject({ state: 'released', loads: 0 });
  await slow;
  await host.mendNvidiaSmi();
});
