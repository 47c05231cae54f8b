import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import type { LedgerGpu, Marker } from '../../../scripts/sim/lib/ledger.ts';
import { ModelHost, omni, until } from './model-host.ts';
import { INSTANCES } from './simulated-gpus.ts';

vi.setConfig({ testTimeout: 120_000 });

const FOREIGN_MIB = 6_000;

async function mark(host: ModelHost, marker: Marker): Promise<void> {
  await writeFile(join(host.directory, 'ledger', marker), '');
}

/** What nvidia-smi shows from the next answer on. */
async function reshape(host: ModelHost, gpus: readonly LedgerGpu[]): Promise<void> {
  await writeFile(join(host.directory, 'ledger/gpus.json'), JSON.stringify(gpus));
}

function status(host: ModelHost, gpu = 0) {
  const found = host.residency.gpuStatus()[gpu];
  if (found === undefined) throw new Error(`no GPU ${gpu}`);
  return found;
}

describe.each<Marker>(['renumbers-pids', 'hides-processes', 'hides-memory-of-processes'])(
  'where the driver %s',
  (marker) => {
    test('a server is loaded, offloaded, woken, evicted and released by the change of free memory', async () => {
      await using host = await ModelHost.start([
        omni('a', ['--enable-sleep-mode']),
        omni('b', ['--weights-mib', '12000'], { vramMiB: 12_000 }),
      ]);
      await mark(host, marker);
      host.plant(FOREIGN_MIB);
      await host.run('a');
      const held = (): number => host.residency.modelStatus()[0]?.heldMiB ?? -1;
      expect(held()).toBeGreaterThan(7_900);
      expect(held()).toBeLessThan(host.usedMiB() - FOREIGN_MIB + 64);
      expect(status(host).oursMiB).toBe(held());

      const offload = await host.move('a', 'offload');
      expect(offload).toMatchObject({ done: 'offload' });
      expect(host.state('a')).toBe('offloaded');
      expect(held()).toBeLessThan(2_000);
      await host.run('a');
      expect(held()).toBeGreaterThan(7_900);

      await host.run('b'); // there is room for one of them only
      expect(host.state('a')).not.toBe('ready');
      await host.move('b', 'release');
      await host.move('a', 'release');
      expect(host.usedMiB()).toBe(FOREIGN_MIB);
      expect(status(host)).toMatchObject({ isDegraded: false, oursMiB: 0 });
    });
  },
);

test('numbers of another machine name nobody: neither the server nor the others', async () => {
  await using host = await ModelHost.start([omni('a')]);
  await mark(host, 'renumbers-pids');
  host.plant(FOREIGN_MIB);
  await host.run('a');
  await until(() => host.residency.gpuStatus()[0]?.unlisted !== undefined);
  expect(status(host).foreign).toEqual([]);
  expect(status(host).unlisted).toMatch(/^6\d{3} MiB are in use by others; who they are cannot be told/);
});

test('a process without memory rows is still named', async () => {
  await using host = await ModelHost.start([omni('a')]);
  await mark(host, 'hides-memory-of-processes');
  host.plant(FOREIGN_MIB);
  await host.run('a');
  expect(status(host).foreign).toMatchObject([{ pid: process.pid, usedMiB: 0 }]);
  expect(status(host).unlisted).toMatch(/^6\d{3} MiB are in use by nothing that nvidia-smi lists/);
});

test('memory that does not come back is told with its MiB and its holders, stops all work there, and heals', async () => {
  const slow = omni('a', ['--vram-linger-ms', '600000']);
  await using host = await ModelHost.start([slow, omni('b')], {
    gpusMiB: [24_576, 24_576],
    times: { vramBackMs: 200 },
  });
  await mark(host, 'lists-lingering');
  await host.run('a');
  const uuid = host.residency.modelStatus()[0]?.gpus[0];
  const pids = host.pids();
  await host.move('a', 'release');
  const degraded = () => host.residency.gpuStatus().find((gpu) => gpu.uuid === uuid);
  expect(degraded()).toMatchObject({ isDegraded: true });
  expect(degraded()?.degraded).toMatch(/^8\d{3} MiB of the ended server .* did not come back; nvidia-smi still lists /);
  expect(pids.some((pid) => degraded()?.degraded?.includes(`(pid ${pid}, `))).toBe(true);
  await host.run('b'); // the other GPU works
  expect(host.residency.modelStatus()[1]?.gpus).not.toContain(uuid);
  host.returnMemory();
  await until(() => degraded()?.isDegraded === false);
  expect(degraded()?.degraded).toBeUndefined();
});

test('a context whose process is gone is shown as memory without an owner', async () => {
  await using host = await ModelHost.start([omni('a')]);
  await host.run('a'); // its pids prove whose numbers these are
  await mark(host, 'lists-lingering');
  const dead = {
    pid: 4_000_000,
    startTime: '1',
    gpuUuid: 'GPU-0',
    usedMiB: 3_000,
    name: '/usr/bin/python3',
    lingerMs: 60_000,
  };
  host.ledger.note(dead);
  await host.run('a');
  await host.residency.move('a', 'release', new AbortController().signal);
  expect(status(host).foreign).toMatchObject([{ pid: 4_000_000, name: 'unowned VRAM, was python3', usedMiB: 3_000 }]);
  expect(status(host).isDegraded).toBe(false);
});

test('on a GPU cut into instances each is a GPU of its own, and so is what runs there', async () => {
  await using host = await ModelHost.start([omni('x'), omni('y')]);
  await reshape(host, [{ uuid: 'GPU-0', index: 0, name: 'Simulated H100', totalMiB: 40_000, mig: INSTANCES }]);
  await until(() => host.sampler.readings().length === 2);
  expect(host.residency.gpuStatus()).toMatchObject([
    { uuid: 'MIG-a', name: 'Simulated H100 MIG 1g.12gb #0', totalMiB: 12_000, freeMiB: 12_000, health: 'ok' },
    { uuid: 'MIG-b', name: 'Simulated H100 MIG 1g.12gb #1', totalMiB: 12_000, health: 'ok' },
  ]);
  await host.run('x');
  await host.run('y', { model: 'test/y' });
  expect(host.residency.modelStatus().map(({ gpus }) => gpus)).toEqual([['MIG-a'], ['MIG-b']]);
  expect(host.ledger.usedMiB('MIG-a')).toBeGreaterThan(7_900);
  expect(host.residency.gpuStatus()[0]).toMatchObject({ foreign: [], oursMiB: host.ledger.usedMiB('MIG-a') });
  await host.move('x', 'release');
  expect(host.residency.gpuStatus()).toMatchObject([
    { freeMiB: 12_000, oursMiB: 0, isDegraded: false },
    { oursMiB: host.ledger.usedMiB('MIG-b') },
  ]);
});

test('an integrated GPU has the memory of the host, and its server is seen by its rows', async () => {
  await using host = await ModelHost.start([omni('a', ['--weights-mib', '300'], { vramMiB: 300 })]);
  await reshape(host, [{ uuid: 'GPU-0', index: 0, name: 'Simulated GB10', totalMiB: 131_072, isUnified: true }]);
  await until(() => host.sampler.readings()[0]?.isUnified === true);
  await host.run('a');
  expect(status(host)).toMatchObject({ isUnified: true, health: 'ok', oursMiB: host.usedMiB() });
  expect(status(host).unlisted).toBeUndefined();
  await host.move('a', 'release');
});

test('without nvidia-smi in the middle of its work a host degrades nothing for ever', async () => {
  await using host = await ModelHost.start([omni('a')], { times: { vramBackMs: 300 } });
  await host.run('a');
  await writeFile(join(host.directory, 'ledger/nvidia-smi.fault.json'), '{"mode":"exit","code":9,"text":"no driver"}');
  await until(() => status(host).health === 'unreadable');
  await host.move('a', 'release');
  expect(status(host).isDegraded).toBe(true); // nobody can say that it is back
  await rm(join(host.directory, 'ledger/nvidia-smi.fault.json'));
  await until(() => status(host).health === 'ok' && !status(host).isDegraded);
});

test('another program is named soon after it came, and gone soon after it went', async () => {
  await using host = await ModelHost.start([omni('a')]);
  await until(() => status(host).usedMiB === 0);
  host.plant(FOREIGN_MIB);
  await until(() => status(host).foreign.some(({ pid }) => pid === process.pid), 20_000);
  host.plant(0);
  await until(() => status(host).foreign.length === 0, 20_000);
});
