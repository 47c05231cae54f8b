import { execa } from 'execa';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { COMPUTE_APPS_ARGS } from '../../../agent/gpu/smi-rows.ts';
import { Ledger, startTimeOf } from '../../../scripts/sim/lib/ledger.ts';
import { ModelHost } from './model-host.ts';

test('the quick answer about GPU processes is that of the simulator', async () => {
  await using host = await ModelHost.start([], { gpusMiB: [24_576, 24_576] });
  host.plant(6_000, 0);
  host.plant(0, 1);
  const ledger = new Ledger(join(host.directory, 'ledger'));
  const parent = { pid: process.ppid, startTime: startTimeOf(process.ppid) ?? '', name: 'parent' };
  ledger.note({ ...parent, gpuUuid: 'GPU-1', usedMiB: 70 });
  const dead = { pid: process.pid, startTime: '1', gpuUuid: 'GPU-1', usedMiB: 3, name: 'dead', lingerMs: 60_000 };
  ledger.note(dead);
  const quick = await execa(join(host.directory, 'bin/nvidia-smi'), [...COMPUTE_APPS_ARGS]);
  const env = { GANTRY_SIM_LEDGER: join(host.directory, 'ledger') };
  const simulated = await execa('dist/sim/nvidia-smi', [...COMPUTE_APPS_ARGS], { env });
  const rows = [`${process.pid}, GPU-0, 6000, foreign`, `${process.ppid}, GPU-1, 70, parent`].sort();
  expect(quick.stdout.split('\n').sort()).toEqual(rows);
  expect(simulated.stdout.split('\n').sort()).toEqual(rows);
});
