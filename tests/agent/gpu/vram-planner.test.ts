import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Resident, VramPlan, VramView, VramWant } from '../../../agent/gpu/vram-planner.ts';
import { planVram } from '../../../agent/gpu/vram-planner.ts';

const RESERVE = 500;

function gpu(uuid: string, freeMiB: number, more: Partial<VramView['gpus'][number]> = {}): VramView['gpus'][number] {
  return { uuid, totalMiB: 24_000, freeMiB, reserveMiB: RESERVE, usable: true, ...more };
}

function resident(slotId: string, more: Partial<Resident> = {}): Resident {
  return {
    slotId,
    gpus: ['A'],
    heldMiB: 8_000,
    state: 'ready',
    inFlight: 0,
    isPinned: false,
    isOffered: false,
    idleMs: 60_000,
    reloadMs: 30_000,
    canOffload: true,
    offloadedMiB: 1_000,
    ...more,
  };
}

function view(gpus: VramView['gpus'], residents: readonly Resident[] = [], hostRamFreeMiB = 64_000): VramView {
  return { gpus, residents, hostRamFreeMiB };
}

const want = (needMiB: number, more: Partial<VramWant> = {}): VramWant => ({
  slotId: 'w',
  needMiB,
  gpuCount: 1,
  ...more,
});

const ROWS: [rule: string, want: VramWant, view: VramView, plan: VramPlan][] = [
  [
    'fits where there is room above the reserve',
    want(9_500),
    view([gpu('A', 10_000)]),
    { kind: 'fits', gpus: ['A'], evict: [] },
  ],
  [
    'does not use the reserve',
    want(9_501),
    view([gpu('A', 10_000)]),
    { kind: 'impossible', shortMiB: 1, largestMiB: 9_500 },
  ],
  [
    'takes the GPU with the fewest evictions',
    want(9_000),
    view([gpu('A', 4_000), gpu('B', 10_000)], [resident('a')]),
    { kind: 'fits', gpus: ['B'], evict: [] },
  ],
  [
    'then the one with the most free',
    want(2_000),
    view([gpu('A', 4_000), gpu('B', 10_000)]),
    { kind: 'fits', gpus: ['B'], evict: [] },
  ],
  [
    'takes no GPU that is not usable',
    want(2_000),
    view([gpu('A', 4_000), gpu('B', 10_000, { usable: false })]),
    { kind: 'fits', gpus: ['A'], evict: [] },
  ],
  [
    'offloads an idle model',
    want(8_000),
    view([gpu('A', 4_000)], [resident('a')]),
    { kind: 'fits', gpus: ['A'], evict: [{ slotId: 'a', by: 'offload' }] },
  ],
  [
    'releases it where host RAM cannot hold it',
    want(8_000),
    view([gpu('A', 4_000)], [resident('a')], 6_999),
    { kind: 'fits', gpus: ['A'], evict: [{ slotId: 'a', by: 'release' }] },
  ],
  [
    'releases it where its engine cannot offload',
    want(8_000),
    view([gpu('A', 4_000)], [resident('a', { canOffload: false })]),
    { kind: 'fits', gpus: ['A'], evict: [{ slotId: 'a', by: 'release' }] },
  ],
  [
    'releases it where the residue of an offload is what is missing',
    want(11_400),
    view([gpu('A', 4_000)], [resident('a')]),
    { kind: 'fits', gpus: ['A'], evict: [{ slotId: 'a', by: 'release' }] },
  ],
  [
    'releases one that is offloaded already for its residue',
    want(4_000),
    view([gpu('A', 4_000)], [resident('a', { state: 'offloaded', heldMiB: 1_500 })]),
    { kind: 'fits', gpus: ['A'], evict: [{ slotId: 'a', by: 'release' }] },
  ],
  [
    'evicts the one that has been idle longest',
    want(8_000),
    view([gpu('A', 4_000)], [resident('a', { idleMs: 10_000 }), resident('b', { idleMs: 90_000 })]),
    { kind: 'fits', gpus: ['A'], evict: [{ slotId: 'b', by: 'offload' }] },
  ],
  [
    'counts one that is offered work as used this moment',
    want(8_000),
    view([gpu('A', 4_000)], [resident('a', { idleMs: 10_000 }), resident('b', { idleMs: 90_000, isOffered: true })]),
    { kind: 'fits', gpus: ['A'], evict: [{ slotId: 'a', by: 'offload' }] },
  ],
  [
    'evicts the one that is back soonest',
    want(8_000),
    view([gpu('A', 4_000)], [resident('a'), resident('b', { reloadMs: 5_000 })]),
    { kind: 'fits', gpus: ['A'], evict: [{ slotId: 'b', by: 'offload' }] },
  ],
  [
    'lets nobody go in vain',
    want(12_000),
    view(
      [gpu('A', 4_000)],
      [
        resident('a', { heldMiB: 2_000, reloadMs: 10, offloadedMiB: 0 }),
        resident('b', { heldMiB: 10_000, offloadedMiB: 0 }),
      ],
    ),
    { kind: 'fits', gpus: ['A'], evict: [{ slotId: 'b', by: 'offload' }] },
  ],
  [
    'waits for a busy one, and names it',
    want(8_000),
    view([gpu('A', 4_000)], [resident('a', { inFlight: 1 })]),
    { kind: 'wait', blockedBy: ['a'] },
  ],
  [
    'waits for one on its way somewhere',
    want(8_000),
    view([gpu('A', 4_000)], [resident('a', { state: 'loading' })]),
    { kind: 'wait', blockedBy: ['a'] },
  ],
  [
    'never counts on a pinned one',
    want(8_000),
    view([gpu('A', 4_000)], [resident('a', { isPinned: true })]),
    { kind: 'impossible', shortMiB: 4_500, largestMiB: 3_500 },
  ],
  [
    'never evicts another replica of the same model',
    want(8_000, { slotId: 'a#2' }),
    view([gpu('A', 4_000)], [resident('a')]),
    { kind: 'impossible', shortMiB: 4_500, largestMiB: 3_500 },
  ],
  [
    'needs nothing more where it holds its peak already',
    want(0, { onGpus: ['A'] }),
    view([gpu('A', 0)]),
    { kind: 'fits', gpus: ['A'], evict: [] },
  ],
  [
    'stays on the GPU where it is placed',
    want(3_000, { onGpus: ['A'] }),
    view([gpu('A', 1_000), gpu('B', 20_000)], [resident('a')]),
    { kind: 'fits', gpus: ['A'], evict: [{ slotId: 'a', by: 'offload' }] },
  ],
  [
    'divides a model over two GPUs',
    want(16_000, { gpuCount: 2 }),
    view([gpu('A', 4_000), gpu('B', 9_000), gpu('C', 10_000)]),
    { kind: 'fits', gpus: ['B', 'C'], evict: [] },
  ],
  [
    'says the largest that would fit over two GPUs',
    want(40_000, { gpuCount: 2 }),
    view([gpu('A', 4_000), gpu('B', 9_000)]),
    { kind: 'impossible', shortMiB: 33_000, largestMiB: 7_000 },
  ],
  ['is impossible without a GPU', want(1), view([]), { kind: 'impossible', shortMiB: 1, largestMiB: 0 }],
];

describe('planVram', () => {
  test.each(ROWS)('%s', (_, wanted, host, plan) => {
    expect(planVram(wanted, host)).toEqual(plan);
  });
});

const UUIDS = ['A', 'B', 'C'] as const;
const mib = fc.integer({ min: 0, max: 24_000 });
const arbitraryResident = fc.record({
  gpus: fc.subarray([...UUIDS], { minLength: 1, maxLength: 2 }),
  heldMiB: mib,
  state: fc.constantFrom('ready', 'offloaded', 'loading', 'releasing', 'offloading'),
  inFlight: fc.constantFrom(0, 0, 1),
  isPinned: fc.boolean(),
  isOffered: fc.boolean(),
  idleMs: fc.integer({ min: 0, max: 600_000 }),
  reloadMs: fc.integer({ min: 1, max: 120_000 }),
  canOffload: fc.boolean(),
  residue: fc.double({ min: 0, max: 1, noNaN: true }),
});
const arbitrary = fc.record({
  free: fc.array(mib, { minLength: 1, maxLength: 3 }),
  usable: fc.array(fc.boolean(), { minLength: 3, maxLength: 3 }),
  residents: fc.array(arbitraryResident, { maxLength: 5 }),
  hostRamFreeMiB: mib,
  needMiB: fc.integer({ min: 1, max: 60_000 }),
  gpuCount: fc.integer({ min: 1, max: 2 }),
});

function build(drawn: typeof arbitrary extends fc.Arbitrary<infer T> ? T : never): {
  wanted: VramWant;
  host: VramView;
} {
  const residents = drawn.residents.map(({ residue, ...rest }, at) => ({
    ...rest,
    slotId: `r${at}`,
    offloadedMiB: Math.floor(rest.heldMiB * residue),
  })) as Resident[]; // fast-check widens the states to string
  const gpus = drawn.free.map((freeMiB, at) => gpu(UUIDS[at] ?? 'A', freeMiB, { usable: drawn.usable[at] ?? true }));
  return {
    wanted: want(drawn.needMiB, { gpuCount: drawn.gpuCount }),
    host: view(gpus, residents, drawn.hostRamFreeMiB),
  };
}

/** Room on each GPU of the plan, above the reserve, once these evictions are done. */
function roomAfter(plan: Extract<VramPlan, { kind: 'fits' }>, host: VramView, evict = plan.evict): number[] {
  return plan.gpus.map((uuid) => {
    const found = host.gpus.find((candidate) => candidate.uuid === uuid);
    const freed = evict.map(({ slotId, by }) => {
      const { gpus, heldMiB, offloadedMiB } = residentOf(host, slotId);
      return gpus.includes(uuid) ? (heldMiB - (by === 'offload' ? offloadedMiB : 0)) / gpus.length : 0;
    });
    return (found?.freeMiB ?? 0) - RESERVE + freed.reduce((sum, one) => sum + one, 0);
  });
}

function residentOf(host: VramView, slotId: string): Resident {
  const found = host.residents.find((candidate) => candidate.slotId === slotId);
  if (found === undefined) throw new Error(`evicts ${slotId}, which is not there`);
  return found;
}

function always(check: (wanted: VramWant, host: VramView, plan: VramPlan) => void): void {
  fc.assert(
    fc.property(arbitrary, (drawn) => {
      const { wanted, host } = build(drawn);
      check(wanted, host, planVram(wanted, host));
    }),
    { numRuns: 500 },
  );
}

describe('whatever the host looks like, planVram', () => {
  test('never evicts who is busy, pinned or on its way', () => {
    always((_, host, plan) => {
      if (plan.kind !== 'fits') return;
      for (const { slotId } of plan.evict) {
        const { inFlight, isPinned, state } = residentOf(host, slotId);
        expect([inFlight, isPinned, ['ready', 'offloaded'].includes(state)]).toEqual([0, false, true]);
      }
    });
  });

  test('never promises more than there is', () => {
    always((wanted, host, plan) => {
      if (plan.kind !== 'fits') return;
      expect(plan.gpus).toHaveLength(wanted.gpuCount);
      for (const room of roomAfter(plan, host)) expect(room).toBeGreaterThanOrEqual(wanted.needMiB / wanted.gpuCount);
      const toRam = plan.evict.filter(({ by }) => by === 'offload').map(({ slotId }) => residentOf(host, slotId));
      const ramMiB = toRam.reduce((sum, { heldMiB, offloadedMiB }) => sum + heldMiB - offloadedMiB, 0);
      expect(ramMiB).toBeLessThanOrEqual(host.hostRamFreeMiB);
    });
  });

  test('evicts nobody without need', () => {
    always((wanted, host, plan) => {
      if (plan.kind !== 'fits') return;
      for (const spared of plan.evict) {
        const rest = plan.evict.filter((eviction) => eviction !== spared);
        expect(Math.min(...roomAfter(plan, host, rest))).toBeLessThan(wanted.needMiB / wanted.gpuCount);
      }
    });
  });

  test('refuses with the largest want that would not be refused', () => {
    always((wanted, host, plan) => {
      if (plan.kind !== 'impossible') return;
      expect(plan.largestMiB + plan.shortMiB).toBeCloseTo(wanted.needMiB);
      expect(plan.shortMiB).toBeGreaterThan(0);
      const smaller = Math.floor(plan.largestMiB);
      if (smaller > 0) expect(planVram({ ...wanted, needMiB: smaller }, host).kind).not.toBe('impossible');
    });
  });

  test('waits only for those that end by themselves', () => {
    always((_, host, plan) => {
      if (plan.kind !== 'wait') return;
      expect(plan.blockedBy.length).toBeGreaterThan(0);
      for (const slotId of plan.blockedBy) {
        const { inFlight, state } = residentOf(host, slotId);
        expect(inFlight > 0 || !['ready', 'offloaded'].includes(state)).toBe(true);
      }
    });
  });
});
