import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { GpuRoom, Resident, VramPlan, VramView, VramWant } from '../../../agent/gpu/vram-planner.ts';
import { planVram } from '../../../agent/gpu/vram-planner.ts';

const RESERVE = 500;

function gpu(uuid: string, freeMiB: number, more: Partial<GpuRoom> = {}): GpuRoom {
  return { uuid, totalMiB: 80_000, freeMiB, reserveMiB: RESERVE, usable: true, isOut: false, ...more };
}

function resident(slotId: string, more: Partial<Resident> = {}): Resident {
  const times = { idleMs: 60_000, reloadMs: 30_000, wakeMs: 3_000 };
  const flags = { inFlight: 0, isPinned: false, isOffered: false, canOffload: true, offloadedMiB: 1_000 };
  return { slotId, gpus: ['A'], heldMiB: 8_000, state: 'ready', ...times, ...flags, ...more };
}

/** Of a server that holds 8000 MiB on GPU A, for a job with this peak. */
function want(peakMiB: number, more: Partial<VramWant> = {}): VramWant {
  return { slotId: 'w', needMiB: peakMiB - 8_000, gpuCount: 1, onGpus: ['A'], elsewhereMiB: peakMiB, ...more };
}

const view = (gpus: readonly GpuRoom[], residents: readonly Resident[] = [resident('w')]): VramView => {
  return { gpus, residents, hostRamFreeMiB: 64_000 };
};

describe('a server whose peak its GPU cannot give', () => {
  const small = gpu('A', 3_000);
  const rows: [rule: string, want: VramWant, view: VramView, plan: VramPlan][] = [
    [
      'is started anew on one that can',
      want(20_000),
      view([small, gpu('B', 24_000)]),
      { kind: 'fits', gpus: ['B'], evict: [{ slotId: 'w', by: 'release' }] },
    ],
    [
      'evicts there who is idle, after itself',
      want(20_000),
      view([small, gpu('B', 12_000)], [resident('w'), resident('b', { gpus: ['B'], heldMiB: 12_000 })]),
      {
        kind: 'fits',
        gpus: ['B'],
        evict: [
          { slotId: 'w', by: 'release' },
          { slotId: 'b', by: 'offload' },
        ],
      },
    ],
    [
      'stays where an eviction beside it does',
      want(12_000),
      view([small, gpu('B', 24_000)], [resident('w'), resident('a')]),
      { kind: 'fits', gpus: ['A'], evict: [{ slotId: 'a', by: 'offload' }] },
    ],
    [
      'stays where the end of a job beside it does',
      want(12_000),
      view([small, gpu('B', 24_000)], [resident('w'), resident('a', { inFlight: 1 })]),
      { kind: 'wait', blockedBy: ['a'] },
    ],
    [
      'waits for the GPU that can',
      want(20_000),
      view([small, gpu('B', 12_000)], [resident('w'), resident('b', { gpus: ['B'], heldMiB: 12_000, inFlight: 1 })]),
      { kind: 'wait', blockedBy: ['b'] },
    ],
    [
      'stays while it works, or is not ours to end',
      want(20_000, { elsewhereMiB: undefined }),
      view([small, gpu('B', 24_000)]),
      { kind: 'impossible', shortMiB: 9_500, largestMiB: 2_500 },
    ],
    [
      'is refused with what is missing on the best of them',
      want(30_000),
      view([small, gpu('B', 24_000)]),
      { kind: 'impossible', shortMiB: 6_500, largestMiB: 15_500 },
    ],
    [
      'does not move while nothing is known of its own GPU',
      want(20_000),
      view([gpu('A', 3_000, { usable: false }), gpu('B', 24_000)]),
      { kind: 'impossible', shortMiB: 12_000, largestMiB: 0 },
    ],
  ];
  test.each(rows)('%s', (_, wanted, host, plan) => {
    expect(planVram(wanted, host)).toEqual(plan);
  });

  test('is never refused where some GPU of the host could give it with all that is idle gone', () => {
    const mib = fc.integer({ min: 0, max: 40_000 });
    const uuids = ['A', 'B', 'C'];
    const others = fc.array(fc.record({ on: fc.constantFrom(...uuids), heldMiB: mib }), { maxLength: 5 });
    const kinds = new Set<string>();
    let moves = 0;
    fc.assert(
      fc.property(fc.tuple(mib, mib, mib), others, fc.integer({ min: 8_000, max: 60_000 }), (free, drawn, peakMiB) => {
        const residents = drawn.map(({ on, heldMiB }, at) =>
          resident(`r${at}`, { gpus: [on], heldMiB, offloadedMiB: Math.min(heldMiB, 1_000) }),
        );
        const self = resident('w');
        const gpus = uuids.map((uuid, at) => gpu(uuid, free[at] ?? 0));
        const plan = planVram(want(peakMiB), view(gpus, [self, ...residents]));
        kinds.add(plan.kind);
        const after = (uuid: string, gone: (resident: Resident) => number): number =>
          [self, ...residents].reduce(
            (sum, each) => sum + (each.gpus.includes(uuid) ? gone(each) : 0),
            (gpus.find((each) => each.uuid === uuid)?.freeMiB ?? 0) - RESERVE,
          );
        const couldFit = uuids.some((uuid) => after(uuid, ({ heldMiB }) => heldMiB) >= peakMiB);
        if (peakMiB > 8_000) expect(plan.kind).toBe(couldFit ? 'fits' : 'impossible');
        if (plan.kind !== 'fits') return;
        const isMoved = plan.evict.some(({ slotId }) => slotId === 'w');
        if (isMoved) moves += 1;
        const freed = ({ slotId, heldMiB, offloadedMiB }: Resident): number => {
          const by = plan.evict.find((each) => each.slotId === slotId)?.by;
          if (by === undefined) return 0;
          return by === 'release' ? heldMiB : heldMiB - offloadedMiB;
        };
        const needMiB = isMoved ? peakMiB : peakMiB - 8_000;
        if (needMiB > 0) for (const uuid of plan.gpus) expect(after(uuid, freed)).toBeGreaterThanOrEqual(needMiB);
      }),
      { numRuns: 1_000 },
    );
    expect([...kinds].sort()).toEqual(['fits', 'impossible']);
    expect(moves).toBeGreaterThan(20);
  });
});

describe('MIG instances', () => {
  const parts = [gpu('MIG-a', 20_000, { isMigInstance: true }), gpu('MIG-b', 20_000, { isMigInstance: true })];
  const spread: VramWant = { slotId: 'w', needMiB: 20_000, gpuCount: 2 };

  test('are no place for a server of several GPUs, which would see one of them', () => {
    expect(planVram(spread, view(parts, []))).toMatchObject({ kind: 'impossible' });
    expect(planVram({ ...spread, gpuCount: 1, needMiB: 10_000 }, view(parts, []))).toMatchObject({ gpus: ['MIG-a'] });
  });

  test('leave it the whole GPUs beside them', () => {
    const whole = [gpu('GPU-1', 12_000), gpu('GPU-2', 12_000)];
    expect(planVram(spread, view([...parts, ...whole], []))).toMatchObject({ gpus: ['GPU-1', 'GPU-2'] });
    expect(planVram(spread, view([...parts, gpu('GPU-1', 60_000)], []))).toMatchObject({ kind: 'impossible' });
  });
});
