import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Eviction, Resident, VramPlan, VramView, VramWant } from '../../../agent/gpu/vram-planner.ts';
import { cheapestEvictions } from '../../../agent/gpu/evictions.ts';
import { planVram } from '../../../agent/gpu/vram-planner.ts';

const RESERVE = 500;

function gpu(uuid: string, freeMiB: number, more: Partial<VramView['gpus'][number]> = {}): VramView['gpus'][number] {
  return { uuid, totalMiB: 24_000, freeMiB, reserveMiB: RESERVE, usable: true, isOut: false, ...more };
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
    wakeMs: 3_000,
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
    'evicts all that is idle where the last MiB of it is needed',
    want(24_000, { gpuCount: 2 }),
    view([gpu('A', 4_500), gpu('B', 12_500)], [resident('a', { canOffload: false })]),
    { kind: 'fits', gpus: ['A', 'B'], evict: [{ slotId: 'a', by: 'release' }] },
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
    view([gpu('A', 4_000)], [resident('a'), resident('b', { wakeMs: 500 })]),
    { kind: 'fits', gpus: ['A'], evict: [{ slotId: 'b', by: 'offload' }] },
  ],
  [
    'offloads one that is back soon rather than releasing one that starts a little faster',
    want(8_000),
    view([gpu('A', 4_000)], [resident('a', { canOffload: false, reloadMs: 20_000 }), resident('b')]),
    { kind: 'fits', gpus: ['A'], evict: [{ slotId: 'b', by: 'offload' }] },
  ],
  [
    'evicts one cheap large one rather than two cheap small ones that cost more together',
    want(9_500),
    view(
      [gpu('A', 2_000)],
      [
        resident('a', { heldMiB: 5_000, offloadedMiB: 0, reloadMs: 10_000, canOffload: false }),
        resident('b', { heldMiB: 3_000, offloadedMiB: 0, reloadMs: 6_100, canOffload: false }),
        resident('c', { heldMiB: 8_000, offloadedMiB: 0, reloadMs: 16_090, canOffload: false }),
      ],
    ),
    { kind: 'fits', gpus: ['A'], evict: [{ slotId: 'c', by: 'release' }] },
  ],
  [
    'chooses the GPU by regret, not by how many have to go',
    want(9_500),
    view(
      [gpu('A', 2_000), gpu('B', 2_000)],
      [
        resident('a', { idleMs: 0, wakeMs: 20_000, heldMiB: 9_000 }),
        resident('b', { gpus: ['B'], heldMiB: 5_000, wakeMs: 1_000 }),
        resident('c', { gpus: ['B'], heldMiB: 5_000, wakeMs: 1_000 }),
      ],
    ),
    { kind: 'fits', gpus: ['B'], evict: ['b', 'c'].map((slotId) => ({ slotId, by: 'offload' })) },
  ],
  [
    'lets nobody go in vain',
    want(12_000),
    view(
      [gpu('A', 4_000)],
      [
        resident('a', { heldMiB: 2_000, wakeMs: 10, offloadedMiB: 0 }),
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
    'waits for one whose process ends, pinned or not',
    want(8_000),
    view([gpu('A', 4_000)], [resident('a', { state: 'releasing', isPinned: true })]),
    { kind: 'wait', blockedBy: ['a'] },
  ],
  [
    'offloads only as many as host RAM holds together',
    want(16_000),
    view([gpu('A', 4_000)], [resident('a'), resident('b', { reloadMs: 40_000 })], 12_000),
    {
      kind: 'fits',
      gpus: ['A'],
      evict: [
        { slotId: 'a', by: 'release' },
        { slotId: 'b', by: 'offload' },
      ],
    },
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
    'needs no reading for that',
    want(0, { onGpus: ['A'] }),
    view([gpu('A', 0, { usable: false })]),
    { kind: 'fits', gpus: ['A'], evict: [] },
  ],
  [
    'begins nothing on a GPU that is out, not even what is placed there',
    want(0, { onGpus: ['A'] }),
    view([gpu('A', 9_000, { isOut: true }), gpu('B', 9_000)]),
    { kind: 'impossible', shortMiB: 0, largestMiB: 0 },
  ],
  [
    'takes no GPU that is out',
    want(2_000),
    view([gpu('A', 4_000), gpu('B', 10_000, { isOut: true })]),
    { kind: 'fits', gpus: ['A'], evict: [] },
  ],
  [
    'says how much is missing where others have eaten into the reserve',
    want(2_000),
    view([gpu('A', 200)]),
    { kind: 'impossible', shortMiB: 2_300, largestMiB: 0 },
  ],
  [
    'names those who block the GPU where the fewest do',
    want(8_000),
    view(
      [gpu('A', 500), gpu('B', 500)],
      [
        resident('a', { heldMiB: 5_000, inFlight: 1 }),
        resident('b', { heldMiB: 5_000, inFlight: 1 }),
        resident('c', { gpus: ['B'], inFlight: 1, heldMiB: 9_000 }),
      ],
    ),
    { kind: 'wait', blockedBy: ['c'] },
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
const arbitraryResident = fc.record({
  gpus: fc.constantFrom<string[][]>(['A'], ['A'], ['B'], ['B'], ['C'], ['A', 'B'], ['B', 'C']),
  heldMiB: fc.integer({ min: 0, max: 12_000 }),
  state: fc.constantFrom<Resident['state'][]>(
    'ready',
    'ready',
    'ready',
    'ready',
    'offloaded',
    'loading',
    'releasing',
    'offloading',
  ),
  inFlight: fc.constantFrom(0, 0, 0, 1),
  isPinned: fc.constantFrom(false, false, false, false, true),
  isOffered: fc.boolean(),
  idleMs: fc.integer({ min: 0, max: 600_000 }),
  reloadMs: fc.integer({ min: 1, max: 120_000 }),
  wakeMs: fc.integer({ min: 1, max: 20_000 }),
  canOffload: fc.boolean(),
  residue: fc.constantFrom(0, 0.1, 0.4, 1),
});
const arbitrary = fc.record({
  free: fc.array(fc.integer({ min: 0, max: 6_000 }), { minLength: 1, maxLength: 3, size: 'max' }),
  usable: fc.array(fc.constantFrom(true, true, true, true, false), { minLength: 3, maxLength: 3 }),
  isOut: fc.array(fc.constantFrom(false, false, false, false, false, true), { minLength: 3, maxLength: 3 }),
  residents: fc.array(arbitraryResident, { maxLength: 6, size: 'max' }),
  hostRamFreeMiB: fc.integer({ min: 0, max: 20_000 }),
  needMiB: fc.integer({ min: 1, max: 24_000 }),
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
  }));
  const gpus = drawn.free.map((freeMiB, at) =>
    gpu(UUIDS[at] ?? 'A', freeMiB, { usable: drawn.usable[at] ?? true, isOut: drawn.isOut[at] ?? false }),
  );
  return {
    wanted: want(drawn.needMiB, { gpuCount: drawn.gpuCount }),
    host: view(gpus, residents, drawn.hostRamFreeMiB),
  };
}

/** Room on each of these GPUs, above the reserve, once these evictions are done. */
function roomAfter(gpus: readonly string[], host: VramView, evict: readonly Eviction[]): number[] {
  return gpus.map((uuid) => {
    const found = host.gpus.find((candidate) => candidate.uuid === uuid);
    const freed = evict.map(({ slotId, by }) => {
      const { gpus: on, heldMiB, offloadedMiB } = residentOf(host, slotId);
      return on.includes(uuid) ? Math.floor((heldMiB - (by === 'offload' ? offloadedMiB : 0)) / on.length) : 0;
    });
    return (found?.freeMiB ?? 0) - RESERVE + freed.reduce((sum, one) => sum + one, 0);
  });
}

function residentOf(host: VramView, slotId: string): Resident {
  const found = host.residents.find((candidate) => candidate.slotId === slotId);
  if (found === undefined) throw new Error(`evicts ${slotId}, which is not there`);
  return found;
}

function toRamMiB(host: VramView, evict: readonly Eviction[]): number {
  const offloaded = evict.filter(({ by }) => by === 'offload').map(({ slotId }) => residentOf(host, slotId));
  return offloaded.reduce((sum, { heldMiB, offloadedMiB }) => sum + heldMiB - offloadedMiB, 0);
}

function regretOf(host: VramView, evict: readonly Eviction[]): number {
  return evict.reduce((sum, { slotId, by }) => {
    const { reloadMs, wakeMs, idleMs, isOffered } = residentOf(host, slotId);
    const backMs = by === 'offload' ? Math.min(wakeMs, reloadMs) : reloadMs;
    return sum + backMs / (60_000 + (isOffered ? 0 : idleMs));
  }, 0);
}

const isIdle = ({ isPinned, inFlight, state }: Resident): boolean =>
  !isPinned && inFlight === 0 && (state === 'ready' || state === 'offloaded');

/** Every way there is: all GPUs, and for each idle server staying, offload or release. */
function* everyWay(wanted: VramWant, host: VramView): Generator<{ gpus: readonly string[]; evict: Eviction[] }> {
  const usable = host.gpus.filter((each) => each.usable && !each.isOut).map(({ uuid }) => uuid);
  const pairs = usable.flatMap((a, at) => usable.slice(at + 1).map((b) => [a, b]));
  const ways = host.residents
    .filter(isIdle)
    .reduce<Eviction[][]>(
      (sets, { slotId, state, canOffload }) =>
        sets.flatMap((set) => [
          set,
          [...set, { slotId, by: 'release' as const }],
          ...(canOffload && state === 'ready' ? [[...set, { slotId, by: 'offload' as const }]] : []),
        ]),
      [[]],
    );
  for (const gpus of wanted.gpuCount === 1 ? usable.map((uuid) => [uuid]) : pairs) {
    for (const evict of ways) {
      if (toRamMiB(host, evict) > host.hostRamFreeMiB) continue;
      const room = roomAfter(gpus, host, evict);
      if (Math.min(...room) >= wanted.needMiB / wanted.gpuCount) yield { gpus, evict };
    }
  }
}

function always(check: (wanted: VramWant, host: VramView, plan: VramPlan) => void): void {
  const kinds = new Set<string>();
  fc.assert(
    fc.property(arbitrary, (drawn) => {
      const { wanted, host } = build(drawn);
      const plan = planVram(wanted, host);
      kinds.add(plan.kind);
      check(wanted, host, plan);
    }),
    { numRuns: 1_000 },
  );
  expect([...kinds].sort(), 'all kinds of plan were drawn').toEqual(['fits', 'impossible', 'wait']);
}

describe('whatever the host looks like, planVram', () => {
  test('never evicts who is busy, pinned or on its way', () => {
    always((_, host, plan) => {
      if (plan.kind !== 'fits') return;
      for (const { slotId } of plan.evict) expect(isIdle(residentOf(host, slotId))).toBe(true);
    });
  });

  test('never promises more than there is, on no GPU and in no host RAM, nor a GPU that is not to be used', () => {
    always((wanted, host, plan) => {
      if (plan.kind !== 'fits') return;
      expect(new Set(plan.gpus).size).toBe(wanted.gpuCount);
      for (const each of host.gpus.filter(({ uuid }) => plan.gpus.includes(uuid)))
        expect([each.usable, each.isOut]).toEqual([true, false]);
      for (const room of roomAfter(plan.gpus, host, plan.evict))
        expect(room).toBeGreaterThanOrEqual(wanted.needMiB / wanted.gpuCount);
      expect(toRamMiB(host, plan.evict)).toBeLessThanOrEqual(host.hostRamFreeMiB);
    });
  });

  test('evicts nobody without need', () => {
    always((wanted, host, plan) => {
      if (plan.kind !== 'fits') return;
      for (const spared of plan.evict) {
        const rest = plan.evict.filter((eviction) => eviction !== spared);
        expect(Math.min(...roomAfter(plan.gpus, host, rest))).toBeLessThan(wanted.needMiB / wanted.gpuCount);
      }
    });
  });

  test('releases nobody whose offload would do', () => {
    always((wanted, host, plan) => {
      if (plan.kind !== 'fits') return;
      for (const released of plan.evict.filter(({ by }) => by === 'release')) {
        const { canOffload, state, heldMiB, offloadedMiB } = residentOf(host, released.slotId);
        if (!canOffload || state !== 'ready' || heldMiB === offloadedMiB) continue;
        const softer = plan.evict.map((each) => (each === released ? { ...each, by: 'offload' as const } : each));
        const fits = Math.min(...roomAfter(plan.gpus, host, softer)) >= wanted.needMiB / wanted.gpuCount;
        expect(fits && toRamMiB(host, softer) <= host.hostRamFreeMiB).toBe(false);
      }
    });
  });

  test('finds the way with the least regret of all ways on all GPUs, and one wherever there is one', () => {
    always((wanted, host, plan) => {
      const ways = [...everyWay(wanted, host)];
      expect(plan.kind === 'fits').toBe(ways.length > 0);
      if (plan.kind !== 'fits') return;
      const least = Math.min(...ways.map(({ evict }) => regretOf(host, evict)));
      expect(regretOf(host, plan.evict)).toBeLessThanOrEqual(least + 1e-5); // regret is counted in millionths
    });
  });

  test('refuses with exact numbers: less by what is short it would not be refused, by 1 MiB less it would', () => {
    always((wanted, host, plan) => {
      if (plan.kind !== 'impossible') return;
      expect(plan.shortMiB).toBeGreaterThan(0);
      expect(plan.largestMiB).toBe(Math.max(0, wanted.needMiB - plan.shortMiB));
      if (!host.gpus.some((each) => each.usable && !each.isOut) || wanted.gpuCount > host.gpus.length) return;
      const smaller = (byMiB: number): VramPlan => planVram({ ...wanted, needMiB: wanted.needMiB - byMiB }, host);
      if (plan.largestMiB > 0) expect(smaller(plan.shortMiB).kind).not.toBe('impossible');
      if (plan.shortMiB <= wanted.needMiB) expect(smaller(plan.shortMiB - 1).kind).toBe('impossible');
    });
  });

  test('waits only where it would fit if those it names were idle, and names only who ends by itself', () => {
    always((wanted, host, plan) => {
      if (plan.kind !== 'wait') return;
      expect(plan.blockedBy.length).toBeGreaterThan(0);
      for (const slotId of plan.blockedBy) {
        const { inFlight, state, isPinned } = residentOf(host, slotId);
        expect(inFlight > 0 || !['ready', 'offloaded'].includes(state)).toBe(true);
        expect(isPinned && state !== 'releasing').toBe(false);
      }
      const idle = { state: 'ready', inFlight: 0, isPinned: false } as const;
      const residents = host.residents.map((each) =>
        plan.blockedBy.includes(each.slotId) ? { ...each, ...idle } : each,
      );
      expect(planVram(wanted, { ...host, residents }).kind).toBe('fits');
    });
  });

  test('evicts nobody without need either where the search for the cheapest is cut short', () => {
    const residents = [1, 2, 3, 4, 5].map((k) =>
      resident(`r${k}`, { heldMiB: k * 1_000, offloadedMiB: 0, wakeMs: k * k }),
    );
    const found = cheapestEvictions(new Map([['A', 6_500]]), { from: residents, hostRamFreeMiB: 99_000, maxSteps: 1 });
    expect(found?.evict.map(({ slotId }) => slotId)).toEqual(['r1', 'r2', 'r4']); // r3 came before r4, which made it unnecessary
  });

  test('takes milliseconds on a host with 8 GPUs and 20 models', () => {
    const uuids = Array.from({ length: 8 }, (_, at) => `g${at}`);
    const random = fc.sample(fc.integer({ min: 0, max: 1_000 }), { seed: 7, numRuns: 200 });
    const pick = (at: number, below: number): number => (random[at] ?? 0) % below;
    const residents = Array.from({ length: 20 }, (_, at) =>
      resident(`r${at}`, {
        gpus: [...new Set([uuids[pick(at, 8)] ?? '', uuids[pick(at + 20, 8)] ?? ''])],
        heldMiB: 4_000 + pick(at + 40, 500) * 16,
        // As large as expensive: nothing can be left out of the search early.
        reloadMs: 4_000 + pick(at + 40, 500) * 16,
        wakeMs: 4_000 + pick(at + 40, 500) * 16,
        idleMs: 0,
        offloadedMiB: 500,
      }),
    );
    const host = view(
      uuids.map((uuid) => gpu(uuid, 2_000)),
      residents,
      40_000,
    );
    const plan = (gpuCount: number): VramPlan => planVram(want(8_000 * gpuCount, { gpuCount }), host);
    for (const gpuCount of [1, 2, 4, 8]) expect(plan(gpuCount).kind).not.toBe('wait');
    const startMs = performance.now();
    for (let round = 0; round < 5; round += 1) for (const gpuCount of [1, 2, 4, 8]) plan(gpuCount);
    expect((performance.now() - startMs) / 20).toBeLessThan(1_000); // some 5 ms on a quiet machine
  });
});
