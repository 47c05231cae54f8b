import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Resident, VramView } from '../../../agent/gpu/vram-planner.ts';
import type { YieldMemory } from '../../../agent/model/yield-policy.ts';
import { CALM, whatToYield } from '../../../agent/model/yield-policy.ts';

const NOW = 5_000_000;
const RESERVE = 1_000;

function resident(slotId: string, more: Partial<Resident> = {}): Resident {
  return {
    ...{ slotId, gpus: ['A'], heldMiB: 8_000, state: 'ready', inFlight: 0, isPinned: false, isOffered: false },
    ...{ idleMs: 60_000, reloadMs: 30_000, wakeMs: 3_000, canOffload: true, offloadedMiB: 1_000 },
    ...more,
  };
}

function view(freeMiB: number, residents: readonly Resident[], more: Partial<VramView['gpus'][number]> = {}): VramView {
  const gpu = { uuid: 'A', totalMiB: 24_000, freeMiB, reserveMiB: RESERVE, usable: true, isOut: false, ...more };
  return { gpus: [gpu], residents, hostRamFreeMiB: 64_000 };
}

/** Before, others held 2000 MiB and there was room; now they hold 4000. */
const GROWN = { A: 4_000 };
const before: YieldMemory = { ...CALM, calmMiB: { A: 2_000 } };

type Row = { rule: string; view: VramView; foreignMiB?: Record<string, number>; memory?: YieldMemory; gone: string[] };
const ROWS: Row[] = [
  { rule: 'an idle model is offloaded', view: view(900, [resident('a')]), gone: ['a offload'] },
  { rule: 'nobody goes while the reserve is free', view: view(1_000, [resident('a')]), gone: [] },
  {
    rule: 'nobody goes where no other program has grown: our own jobs need more',
    view: view(900, [resident('a')]),
    foreignMiB: { A: 2_064 },
    gone: [],
  },
  {
    rule: 'it is enough to have grown a little',
    view: view(900, [resident('a')]),
    foreignMiB: { A: 2_065 },
    gone: ['a offload'],
  },
  { rule: 'nobody goes where nothing was seen before', view: view(900, [resident('a')]), memory: CALM, gone: [] },
  { rule: 'a busy model stays', view: view(900, [resident('a', { inFlight: 1 })]), gone: [] },
  { rule: 'a pinned model stays', view: view(900, [resident('a', { isPinned: true })]), gone: [] },
  { rule: 'one on its way stays', view: view(900, [resident('a', { state: 'loading' })]), gone: [] },
  { rule: 'one on another GPU stays', view: view(900, [resident('a', { gpus: ['B'] })]), gone: [] },
  {
    rule: 'where it cannot be offloaded it is released',
    view: view(900, [resident('a', { canOffload: false })]),
    gone: ['a release'],
  },
  {
    rule: 'where host RAM cannot hold it it is released',
    view: { ...view(900, [resident('a')]), hostRamFreeMiB: 6_999 },
    gone: ['a release'],
  },
  {
    rule: 'least regret first, and no more than needed',
    view: view(900, [resident('a'), resident('b', { idleMs: 600_000 }), resident('c', { isOffered: true })]),
    gone: ['b offload'],
  },
  {
    rule: 'a margin above the reserve comes free, or the next few MiB would cost one more model',
    view: view(900, [resident('a', { heldMiB: 1_300, wakeMs: 1 }), resident('b', { wakeMs: 9_000 })]),
    gone: ['b offload'],
  },
  {
    rule: 'where not even all of them are enough, all go',
    view: view(-9_000, [resident('a', { heldMiB: 3_000 }), resident('b', { heldMiB: 3_000 })]),
    gone: ['a offload', 'b offload'],
  },
  {
    rule: 'of these as many are offloaded as host RAM holds together, and one that cannot be is released',
    view: {
      ...view(-19_000, [
        resident('a', { heldMiB: 3_000 }),
        resident('b', { heldMiB: 3_000 }),
        resident('c', { heldMiB: 2_000, canOffload: false }),
      ]),
      hostRamFreeMiB: 3_999,
    },
    gone: ['a offload', 'b release', 'c release'],
  },
  {
    rule: 'but what is left of offloaded ones not before all others',
    view: view(-9_000, [resident('a', { heldMiB: 1_000, state: 'offloaded' }), resident('b', { heldMiB: 3_000 })]),
    gone: ['b offload'],
  },
  {
    rule: 'and what is left of offloaded ones goes last',
    view: view(-9_000, [resident('a', { heldMiB: 1_000, state: 'offloaded' }), resident('b', { inFlight: 1 })]),
    gone: ['a release'],
  },
  {
    rule: 'without a reading nobody goes',
    view: view(900, [resident('a')], { usable: false }),
    gone: [],
  },
];

describe('where other programs need memory', () => {
  test.each(ROWS)('$rule', ({ view: host, foreignMiB = GROWN, memory = before, gone }) => {
    const { yields } = whatToYield({ nowMs: NOW, view: host, foreignMiB }, memory);
    expect(yields.flatMap(({ evict }) => evict).map(({ slotId, by }) => `${slotId} ${by}`)).toEqual(gone);
  });

  test('says what is missing and how much they grew, also where nobody can go', () => {
    const { yields } = whatToYield({ nowMs: NOW, view: view(900, []), foreignMiB: GROWN }, before);
    expect(yields).toEqual([{ uuid: 'A', grownMiB: 2_000, shortMiB: 100, evict: [] }]);
  });

  test('slow growth counts from when there was last room, not from the last look', () => {
    let memory: YieldMemory = CALM;
    const gone = [0, 40, 80, 120].map((grownMiB) => {
      const facts = { nowMs: NOW, view: view(1_030 - grownMiB, [resident('a')]), foreignMiB: { A: 2_000 + grownMiB } };
      const decided = whatToYield(facts, memory);
      memory = decided.memory;
      return decided.yields.length;
    });
    expect(gone).toEqual([0, 0, 1, 1]);
  });

  test('one that spans two pressed GPUs goes once', () => {
    const both = resident('a', { gpus: ['A', 'B'], heldMiB: 16_000 });
    const host = view(900, [both]);
    const gpus = ['A', 'B'].flatMap((uuid) => host.gpus.map((gpu) => ({ ...gpu, uuid })));
    const facts = { nowMs: NOW, view: { ...host, gpus }, foreignMiB: { A: 4_000, B: 4_000 } };
    const { yields } = whatToYield(facts, { ...CALM, calmMiB: { A: 0, B: 0 } });
    expect(yields.map(({ evict }) => evict.length)).toEqual([1, 0]);
  });

  test('batch work waits a minute, and twice as long each time it happens again within ten minutes', () => {
    let memory = before;
    const at = (nowMs: number): number | undefined => {
      const decided = whatToYield({ nowMs, view: view(900, [resident('a')]), foreignMiB: GROWN }, memory);
      memory = decided.memory;
      return decided.yields[0]?.evict[0]?.holdMs;
    };
    const minute = 60_000;
    expect([at(NOW), at(NOW + 2 * minute), at(NOW + 5 * minute)]).toEqual([minute, 2 * minute, 4 * minute]);
    expect([at(NOW + 10 * minute), at(NOW + 19 * minute)]).toEqual([8 * minute, 10 * minute]);
    expect(at(NOW + 30 * minute)).toBe(minute);
  });

  test('never a busy or pinned one goes, and no more room is made than is needed', () => {
    const arbitrary = fc.array(
      fc.record({
        heldMiB: fc.integer({ min: 0, max: 9_000 }),
        state: fc.constantFrom<Resident['state'][]>('ready', 'ready', 'offloaded', 'loading', 'offloading'),
        inFlight: fc.constantFrom(0, 0, 1),
        isPinned: fc.constantFrom(false, false, true),
        canOffload: fc.boolean(),
        idleMs: fc.integer({ min: 0, max: 600_000 }),
      }),
      { maxLength: 5, size: 'max' },
    );
    fc.assert(
      fc.property(arbitrary, fc.integer({ min: -4_000, max: 2_000 }), (drawn, freeMiB) => {
        const residents = drawn.map((each, at) => resident(`r${at}`, { ...each, offloadedMiB: each.heldMiB / 8 }));
        const { yields } = whatToYield({ nowMs: NOW, view: view(freeMiB, residents), foreignMiB: GROWN }, before);
        const evict = yields.flatMap((each) => each.evict);
        const victims = evict.map(({ slotId }) => residents.find((each) => each.slotId === slotId));
        for (const victim of victims) {
          expect([victim?.inFlight, victim?.isPinned]).toEqual([0, false]);
          expect(['ready', 'offloaded']).toContain(victim?.state);
        }
        const freed = evict.map(({ by }, at) => (victims[at]?.heldMiB ?? 0) * (by === 'offload' ? 7 / 8 : 1));
        const sum = freed.reduce((total, mib) => total + mib, 0);
        const needed = RESERVE + 512 - freeMiB;
        if (freeMiB >= RESERVE) expect(evict).toEqual([]);
        else if (sum >= needed + 8) for (const each of freed) expect(Math.floor(sum - each)).toBeLessThan(needed + 8);
      }),
    );
  });
});
