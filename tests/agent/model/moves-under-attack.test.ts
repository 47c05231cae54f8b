import { expect, test, vi } from 'vitest';
import type { Destination } from '../../../agent/model/model-moves.ts';
import { SEVERAL_AT_ONCE } from '../../helpers/at-once.ts';
import { ModelHost, omni, until } from './model-host.ts';

// Real processes: how long they take to start is up to the machine.
vi.setConfig({ testTimeout: 120_000, ...SEVERAL_AT_ONCE });

/** What leads into a transition, and the state that it has then. */
const TRANSITIONS = {
  'a load': { before: [], move: 'load', state: 'loading' },
  'an offload': { before: ['load'], move: 'offload', state: 'offloading' },
  'a wake': { before: ['load', 'offload'], move: 'load', state: 'loading' },
  'a release': { before: ['load'], move: 'release', state: 'releasing' },
  'a release of what was offloaded': { before: ['load', 'offload'], move: 'release', state: 'releasing' },
} satisfies Record<string, { before: Destination[]; move: Destination; state: string }>;

const FAULTS = {
  'its worker is killed': { inject: (host: ModelHost) => signal(host, 'SIGKILL'), mend: () => undefined },
  'its worker is stopped': { inject: (host: ModelHost) => signal(host, 'SIGSTOP'), mend: () => undefined },
  'nvidia-smi hangs': {
    inject: (host: ModelHost) => host.hangNvidiaSmi(),
    mend: (host: ModelHost) => host.mendNvidiaSmi(),
  },
};

const CASES: [transition: keyof typeof TRANSITIONS, fault: keyof typeof FAULTS][] = [
  ['a load', 'its worker is killed'],
  ['an offload', 'its worker is killed'],
  ['a wake', 'its worker is killed'],
  ['a release', 'its worker is killed'],
  ['a release of what was offloaded', 'its worker is killed'],
  ['an offload', 'its worker is stopped'],
  ['a wake', 'its worker is stopped'],
  ['a load', 'nvidia-smi hangs'],
  ['a wake', 'nvidia-smi hangs'],
  ['a release', 'nvidia-smi hangs'],
];

const slow = omni('a', ['--load-ms', '500', '--sleep-ms', '700', '--exit-delay-ms', '300', '--fork'], {
  warmsUp: true,
});
const options = { times: { startDeadlineMs: 20_000, jobFloorMs: 6_000 }, queryTimeoutMs: 3_000 };

test.each(CASES)('%s during which %s ends, and the next job works', async (transition, fault) => {
  const { before, move, state } = TRANSITIONS[transition];
  const { inject, mend } = FAULTS[fault];
  await using host = await ModelHost.start([slow], options);
  for (const to of before) await host.move('a', to);
  const moved = host.move('a', move).catch((error: unknown) => error); // it may or may not fail
  await until(() => host.state('a') === state);
  await inject(host);
  await moved;
  await mend(host);
  expect(['ready', 'offloaded', 'released', 'failed']).toContain(host.state('a'));
  await until(() => {
    const { state: now, retryInMs } = host.residency.slotFacts('a');
    const [gpu] = host.residency.gpuStatus();
    return (now !== 'failed' || retryInMs === 0) && gpu?.health === 'ok' && !gpu.isDegraded;
  });
  expect((await host.run('a')).image.length).toBeGreaterThan(0);
  await host.move('a', 'release');
  expect(host.pids()).toEqual([]);
  expect(host.usedMiB()).toBe(0);
});

/** All that the ledger knows: the workers, which hold the memory. */
function signal(host: ModelHost, name: NodeJS.Signals): void {
  for (const pid of host.pids()) process.kill(pid, name);
}
