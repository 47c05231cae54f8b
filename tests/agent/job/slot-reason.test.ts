import { expect, test, vi } from 'vitest';
import { SlotBoard } from '../../../agent/job/slot-board.ts';
import { ModelHost, omni, until } from '../model/model-host.ts';

// Real processes: how long they take to start is up to the machine.
vi.setConfig({ testTimeout: 120_000 });

test('a slot whose model finds no room says how much is missing and which programs hold it', async () => {
  await using host = await ModelHost.start([omni('a')], { gpusMiB: [12_000] });
  const board = new SlotBoard(host.residency);
  const status = () => board.status('a', { reason: undefined, isLeaving: false, dueModel: undefined });
  expect(status()).toMatchObject({ phase: 'idle' });
  host.plant(6_000);
  await until(() => status().phase === 'cannot');
  await host.admit('a').catch(() => undefined); // looks at who holds what
  expect(status().reason).toMatch(
    new RegExp(
      `^a needs \\d+ MiB of VRAM .* more than this host can free \\(5488 MiB\\). .*pid ${process.pid}, 6000 MiB on GPU 0`,
    ),
  );
});

test('a slot is measured against the smallest size that is offered for it', async () => {
  await using host = await ModelHost.start([omni('a')], { gpusMiB: [12_000] });
  const board = new SlotBoard(host.residency);
  const status = (sizes: number[]) =>
    board.status('a', { reason: undefined, isLeaving: false, dueModel: undefined, sizes });
  await until(() => status([1]).phase === 'idle');
  expect(status([60]).phase).toBe('cannot');
  expect(status([60]).reason).toMatch(/^a needs \d+ MiB of VRAM on 1 GPU/);
  expect(status([60, 1]).phase).toBe('idle');
});
