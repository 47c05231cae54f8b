import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { ChoiceView, LineView, SlotView } from '../../../agent/job/choice.ts';
import { choose } from '../../../agent/job/slot-scheduler.ts';
import type { TurnMemory } from '../../../agent/job/turn-memory.ts';
import { EMPTY_MEMORY } from '../../../agent/job/turn-memory.ts';
import type { VirtualLine } from './virtual-host.ts';
import { VirtualHost } from './virtual-host.ts';

const A = { model: 'A', needMiB: 20_000, swapMs: 40_000 };
const B = { model: 'B', needMiB: 20_000, swapMs: 40_000 };

function line(change: Partial<VirtualLine> & Pick<VirtualLine, 'model' | 'jobs'>): VirtualLine {
  return { sessionId: `s-${change.model}`, tokenId: 'token', class: 'batch', runMs: 8_000, ...change };
}

describe('two bridges that want two models of one GPU', () => {
  test('both make progress, in turns: about 6 swaps for 2 x 40 jobs of 8 s with a swap of 40 s', () => {
    const host = new VirtualHost({ gpus: 1, gpuMiB: 24_000, models: [A, B] });
    host.lines = [line({ model: 'A', jobs: 40, tokenId: 'x' }), line({ model: 'B', jobs: 40, tokenId: 'y' })];
    host.run();
    expect(host.served.filter((each) => each.model === 'A')).toHaveLength(40);
    expect(host.served.filter((each) => each.model === 'B')).toHaveLength(40);
    expect(host.swaps).toBeGreaterThanOrEqual(4);
    expect(host.swaps).toBeLessThanOrEqual(7);
    expect(host.nowMs).toBeLessThanOrEqual(1.05 * (80 * 8_000 + 6 * 40_000));
    const first = host.served.find((each) => each.model === 'B');
    expect(first?.atMs).toBeLessThanOrEqual(40_000 + 120_000 + 8_000); // one swap, one turn, one job
  });

  test('where both fit, nobody is ever evicted and they alternate', () => {
    const host = new VirtualHost({ gpus: 1, gpuMiB: 48_000, models: [A, B] });
    host.lines = [line({ model: 'A', jobs: 10, tokenId: 'x' }), line({ model: 'B', jobs: 10, tokenId: 'y' })];
    host.run();
    expect(host.served).toHaveLength(20);
    expect(host.swaps).toBe(2);
  });

  test('on two GPUs each has its own', () => {
    const host = new VirtualHost({ gpus: 2, gpuMiB: 24_000, models: [A, B] });
    host.lines = [line({ model: 'A', jobs: 10 }), line({ model: 'B', jobs: 10 })];
    host.run();
    expect(host.swaps).toBe(2);
    expect(host.nowMs).toBe(40_000 + 10 * 8_000);
  });
});

/** A view of one 24 GB GPU, made of what a rule is about. */
function view(o: {
  slots: (Partial<SlotView> & { slotId: string })[];
  lines: (Partial<LineView> & { model: string })[];
  nowMs?: number;
  gpus?: string[];
  leadMs?: number;
}): ChoiceView {
  const gpus = o.gpus ?? ['g0'];
  const slots = o.slots.map((slot) => ({
    model: slot.slotId,
    phase: 'idle' as const,
    cannot: false,
    isReady: false,
    isMoving: false,
    isHeldAway: false,
    gpus: slot.isReady || (slot.phase ?? 'idle') !== 'idle' ? ['g0'] : [],
    swapMs: 40_000,
    work: [],
    endsInMs: null,
    hasNext: false,
    ...slot,
  }));
  return {
    nowMs: o.nowMs ?? 1_000_000,
    slots,
    lines: o.lines.map((each, at) => ({
      lineId: `${at}`,
      sessionId: `s${at}`,
      tokenId: `t${at}`,
      bridgeId: `b${at}`,
      class: 'batch' as const,
      count: 10,
      workMs: 80_000,
      inFlight: 0,
      rank: 0,
      waitingMs: 0,
      isDeclined: false,
      wants: slots
        .filter((slot) => slot.model === each.model)
        .map(({ slotId, gpus: on }) => ({
          slotId,
          needMiB: on.length > 0 ? 0 : 20_000,
          gpuCount: 1,
          ...(on.length > 0 && { onGpus: on }),
        })),
      ...each,
    })),
    vram: {
      gpus: gpus.map((uuid) => {
        const heldMiB = 20_000 * slots.filter((slot) => slot.gpus.includes(uuid)).length;
        return { uuid, totalMiB: 24_000, freeMiB: 24_000 - heldMiB, reserveMiB: 0, usable: true, isOut: false };
      }),
      residents: slots
        .filter((slot) => slot.gpus.length > 0)
        .map((slot) => ({
          slotId: slot.slotId,
          gpus: slot.gpus,
          heldMiB: 20_000,
          state: slot.isMoving ? ('loading' as const) : ('ready' as const),
          inFlight: slot.phase === 'running' ? 1 : 0,
          isPinned: false,
          isOffered: true,
          idleMs: 0,
          reloadMs: slot.swapMs,
          wakeMs: slot.swapMs,
          canOffload: false,
          offloadedMiB: 0,
        })),
      hostRamFreeMiB: 0,
    },
    leadMs: o.leadMs ?? 0,
    turnMs: 30_000,
  };
}

const MINUTES = 60_000;
const NOW = 1_000_000;
/** A has been ready for so long. */
function since(ms: number, more: Partial<TurnMemory> = {}): TurnMemory {
  return { ...EMPTY_MEMORY, turns: { A: NOW - ms }, ...more };
}

const readyA = { slotId: 'A', isReady: true };
const absentB = { slotId: 'B' };
const interactive = { class: 'interactive' as const, count: 1, workMs: 8_000 };

type Row = {
  rule: string;
  view: ChoiceView;
  memory?: TurnMemory;
  grants: string[];
  closed?: string[];
};

const rows: Row[] = [
  {
    rule: '1: an idle slot is granted to a line of its model',
    view: view({ slots: [readyA], lines: [{ model: 'A' }] }),
    grants: ['A:0'],
  },
  {
    rule: '1: no line, no grant',
    view: view({ slots: [readyA], lines: [] }),
    grants: [],
  },
  {
    rule: '1: a declined line is left alone until it is sent again',
    view: view({ slots: [readyA], lines: [{ model: 'A', isDeclined: true }] }),
    grants: [],
  },
  {
    rule: '1: a line gets no more grants than it has jobs',
    view: view({
      slots: [
        { ...readyA, model: 'M' },
        { slotId: 'A2', model: 'M' },
      ],
      lines: [{ model: 'M', count: 1 }],
      gpus: ['g0', 'g1'],
    }),
    grants: ['A:0'],
  },
  {
    rule: '1: a slot that cannot is never granted',
    view: view({ slots: [{ ...readyA, cannot: true }], lines: [{ model: 'A' }] }),
    grants: [],
  },
  {
    rule: '1: ready models come first, on a GPU that fits only one',
    view: view({ slots: [absentB, readyA], lines: [{ model: 'B', workMs: 9e6 }, { model: 'A' }] }),
    memory: since(0),
    grants: ['A:1'],
  },
  {
    rule: '1: an absent model takes a free GPU without waiting for anybody',
    view: view({ slots: [readyA, absentB], lines: [{ model: 'A' }, { model: 'B' }], gpus: ['g0', 'g1'] }),
    memory: since(0),
    grants: ['A:0', 'B:1'],
  },
  {
    rule: '1: of two absent models the one with more work comes first',
    view: view({ slots: [{ slotId: 'A' }, absentB], lines: [{ model: 'A' }, { model: 'B', workMs: 90_000 }] }),
    grants: ['B:1'],
  },
  {
    rule: '2: a turn lasts three swap times',
    view: view({ slots: [{ ...readyA, phase: 'running' }, absentB], lines: [{ model: 'A' }, { model: 'B' }] }),
    memory: since(119_000),
    grants: [],
    closed: [],
  },
  {
    rule: '2: when the turn is over the absent model is due and the slot closes',
    view: view({ slots: [{ ...readyA, phase: 'running' }, absentB], lines: [{ model: 'A' }, { model: 'B' }] }),
    memory: since(121_000),
    grants: [],
    closed: ['A'],
  },
  {
    rule: '2: a turn lasts at least 30 s',
    view: view({ slots: [{ ...readyA, swapMs: 1_000 }, absentB], lines: [{ model: 'A' }, { model: 'B' }] }),
    memory: since(29_000),
    grants: ['A:0'],
  },
  {
    rule: '2: once idle, the due model gets its grant',
    view: view({ slots: [readyA, absentB], lines: [{ model: 'A' }, { model: 'B' }] }),
    memory: since(121_000),
    grants: ['B:1'],
    closed: ['A'],
  },
  {
    rule: '2: a ready model without candidates gives way at once',
    view: view({ slots: [readyA, absentB], lines: [{ model: 'B' }] }),
    memory: since(0),
    grants: ['B:0'],
    closed: ['A'],
  },
  {
    rule: '2: due is the model with the most work per worker',
    view: view({
      slots: [{ ...readyA, phase: 'running' }, absentB, { slotId: 'C' }],
      lines: [{ model: 'A' }, { model: 'B', workMs: 90_000, inFlight: 2 }, { model: 'C', workMs: 40_000 }],
    }),
    memory: since(10 * MINUTES),
    grants: [],
    closed: ['A<C'],
  },
  {
    rule: '2: who is due already stays before who has more work',
    view: view({
      slots: [{ ...readyA, phase: 'running' }, absentB, { slotId: 'C' }],
      lines: [{ model: 'A' }, { model: 'B', workMs: 1_000 }, { model: 'C', workMs: 40_000 }],
    }),
    memory: since(10 * MINUTES, { due: [{ slotId: 'B', isEarly: false }] }),
    grants: [],
    closed: ['A<B'],
  },
  {
    rule: '2: after a refusal it is not due, and the slot is open again',
    view: view({ slots: [readyA, absentB], lines: [{ model: 'A' }, { model: 'B' }] }),
    memory: since(10 * MINUTES, { notDueUntilMs: { B: NOW + 1 } }),
    grants: ['A:0'],
    closed: [],
  },
  {
    rule: '2: 5 s after a refusal it is due again',
    view: view({ slots: [readyA, absentB], lines: [{ model: 'A' }, { model: 'B' }] }),
    memory: since(10 * MINUTES, { notDueUntilMs: { B: NOW } }),
    grants: ['B:1'],
    closed: ['A'],
  },
  {
    rule: '2: a person who waits 10 s does not wait for the end of the turn',
    view: view({
      slots: [readyA, absentB],
      lines: [{ model: 'A' }, { model: 'B', ...interactive, waitingMs: 10_000 }],
    }),
    memory: since(15_000),
    grants: ['B:1'],
    closed: ['A'],
  },
  {
    rule: '2: nor for less than 10 s',
    view: view({ slots: [readyA, absentB], lines: [{ model: 'A' }, { model: 'B', ...interactive, waitingMs: 9_999 }] }),
    memory: since(15_000),
    grants: ['A:0'],
  },
  {
    rule: '2: what takes less time than coming back for it is done first',
    view: view({
      slots: [readyA, absentB],
      lines: [
        { model: 'A', workMs: 39_999 },
        { model: 'B', ...interactive, waitingMs: 49_999 },
      ],
    }),
    memory: since(60_000),
    grants: ['A:0'],
  },
  {
    rule: '2: not for longer than coming back takes',
    view: view({
      slots: [readyA, absentB],
      lines: [
        { model: 'A', workMs: 39_999 },
        { model: 'B', ...interactive, waitingMs: 50_000 },
      ],
    }),
    memory: since(40_000),
    grants: ['B:1'],
    closed: ['A'],
  },
  {
    rule: '2: unless the model has only just come',
    view: view({
      slots: [readyA, absentB],
      lines: [
        { model: 'A', workMs: 39_999 },
        { model: 'B', ...interactive, waitingMs: 50_000 },
      ],
    }),
    memory: since(39_999),
    grants: ['A:0'],
  },
  {
    rule: '2: nor for less than a quarter of the swap time',
    view: view({
      slots: [readyA, { ...absentB, swapMs: 80_000 }],
      lines: [{ model: 'A' }, { model: 'B', ...interactive, waitingMs: 19_999 }],
    }),
    memory: since(15_000),
    grants: ['A:0'],
  },
  {
    rule: '2: early at most once per swap time',
    view: view({
      slots: [readyA, absentB],
      lines: [{ model: 'A' }, { model: 'B', ...interactive, waitingMs: 10_000 }],
    }),
    memory: since(15_000, { earlyAt: { g0: NOW - 39_999 } }),
    grants: ['A:0'],
  },
  {
    rule: '2: and again after it',
    view: view({
      slots: [readyA, absentB],
      lines: [{ model: 'A' }, { model: 'B', ...interactive, waitingMs: 10_000 }],
    }),
    memory: since(15_000, { earlyAt: { g0: NOW - 40_000 } }),
    grants: ['B:1'],
    closed: ['A'],
  },
  {
    rule: '2: who is due early stays due while the running job ends',
    view: view({
      slots: [{ ...readyA, phase: 'running' }, absentB],
      lines: [{ model: 'A' }, { model: 'B', ...interactive, waitingMs: 12_000 }],
    }),
    memory: since(15_000, { earlyAt: { g0: NOW - 2_000 }, due: [{ slotId: 'B', isEarly: true }] }),
    grants: [],
    closed: ['A<B'],
  },
  {
    rule: '2: batch work never cuts a turn short',
    view: view({ slots: [readyA, absentB], lines: [{ model: 'A' }, { model: 'B', waitingMs: 10 * MINUTES }] }),
    memory: since(15_000),
    grants: ['A:0'],
  },
  {
    rule: '3: interactive before batch',
    view: view({ slots: [readyA], lines: [{ model: 'A' }, { model: 'A', ...interactive }] }),
    grants: ['A:1'],
  },
  {
    rule: '3: but three in a row at most while batch waits',
    view: view({ slots: [readyA], lines: [{ model: 'A' }, { model: 'A', ...interactive }] }),
    memory: since(0, { streaks: { A: 3 } }),
    grants: ['A:0'],
  },
  {
    rule: '3: the token with the fewest served ms',
    view: view({ slots: [readyA], lines: [{ model: 'A' }, { model: 'A' }] }),
    memory: since(0, { servedMs: { t0: 6_000, t1: 1_000 } }),
    grants: ['A:1'],
  },
  {
    rule: '3: what runs now counts as served',
    view: view({
      slots: [
        {
          slotId: 'A',
          model: 'M',
          isReady: true,
          phase: 'running',
          work: [{ tokenId: 't1', sessionId: 's1', expectedMs: 8_000 }],
        },
        { slotId: 'A2', model: 'M', isReady: true, gpus: ['g1'] },
      ],
      lines: [{ model: 'M' }, { model: 'M' }],
      gpus: ['g0', 'g1'],
    }),
    memory: since(0, { servedMs: { t0: 2_000, t1: 1_000 } }),
    grants: ['A2:0'],
  },
  {
    rule: '3: a token that comes back starts at the lowest of those present',
    view: view({
      slots: [readyA],
      lines: [
        { model: 'A', tokenId: 'back', waitingMs: 0 },
        { model: 'A', tokenId: 'low' },
        { model: 'A', tokenId: 'high' },
      ],
    }),
    memory: since(0, { servedMs: { low: 5_000, high: 19_000 }, sessionMs: { s0: 9_000, s1: 1_000 } }),
    grants: ['A:1'], // equal to 'low', whose session has had less
  },
  {
    rule: '3: behind by less than half a job is level: the bridges in order',
    view: view({ slots: [readyA], lines: [{ model: 'A' }, { model: 'A' }] }),
    memory: since(0, { servedMs: { t0: 4_900, t1: 1_000 } }),
    grants: ['A:0'],
  },
  {
    rule: '3: and on the next host, as the rank says, beginning with another one',
    view: view({
      slots: [readyA],
      lines: [
        { model: 'A', rank: 1 },
        { model: 'A', rank: 7 },
      ],
    }),
    memory: since(0, { servedMs: { t0: 1_000, t1: 4_900 } }),
    grants: ['A:1'],
  },
  {
    rule: '3: of a token the session that has had the least',
    view: view({
      slots: [readyA],
      lines: [
        { model: 'A', tokenId: 't' },
        { model: 'A', tokenId: 't' },
      ],
    }),
    memory: since(0, { servedMs: { t: 10_000 }, sessionMs: { s0: 7_000, s1: 2_000 } }),
    grants: ['A:1'],
  },
  {
    rule: '4: one running job per GPU',
    view: view({
      slots: [
        { ...readyA, phase: 'running' },
        { slotId: 'B', isReady: true },
      ],
      lines: [{ model: 'B' }],
    }),
    memory: since(0),
    grants: [],
  },
  {
    rule: '4: a granted slot keeps its GPU from everybody else',
    view: view({ slots: [{ slotId: 'A', phase: 'granted' }, absentB], lines: [{ model: 'B' }] }),
    grants: [],
  },
  {
    rule: '4: one transition per GPU at a time',
    view: view({
      slots: [{ slotId: 'A', isMoving: true, gpus: ['g0'] }, absentB],
      lines: [{ model: 'A' }, { model: 'B' }],
    }),
    grants: [],
  },
  {
    rule: '4: a model that a person sent away is not brought back by batch lines',
    view: view({ slots: [{ ...absentB, isHeldAway: true }], lines: [{ model: 'B' }] }),
    grants: [],
  },
  {
    rule: '4: but by an interactive line',
    view: view({ slots: [{ ...absentB, isHeldAway: true }], lines: [{ model: 'B' }, { model: 'B', ...interactive }] }),
    grants: ['B:1'],
  },
  {
    rule: 'lead: in the last ms of a running job one more may be granted',
    view: view({ slots: [{ ...readyA, phase: 'running', endsInMs: 400 }], lines: [{ model: 'A' }], leadMs: 500 }),
    grants: ['A:0'],
  },
  {
    rule: 'lead: never earlier',
    view: view({ slots: [{ ...readyA, phase: 'running', endsInMs: 501 }], lines: [{ model: 'A' }], leadMs: 500 }),
    grants: [],
  },
  {
    rule: 'lead: never a second one',
    view: view({
      slots: [{ ...readyA, phase: 'running', endsInMs: 0, hasNext: true }],
      lines: [{ model: 'A' }],
      leadMs: 500,
    }),
    grants: [],
  },
  {
    rule: 'lead: not while another model is due',
    view: view({
      slots: [{ ...readyA, phase: 'running', endsInMs: 0 }, absentB],
      lines: [{ model: 'A' }, { model: 'B' }],
      leadMs: 500,
    }),
    memory: since(10 * MINUTES),
    grants: [],
    closed: ['A<B'],
  },
];

describe('the choice', () => {
  test.each(rows)('$rule', ({ view: given, memory = EMPTY_MEMORY, grants, closed }) => {
    const choice = choose(given, memory);
    expect(choice.grants.map((grant) => `${grant.slotId}:${grant.line.lineId}`)).toEqual(grants);
    if (closed === undefined) return;
    const shown = [...choice.closed].map(([slotId, due]) =>
      closed.some((each) => each.includes('<')) ? `${slotId}<${due}` : slotId,
    );
    expect(shown).toEqual(closed);
  });

  test('a grant that evicts names its victims and the time of the swap', () => {
    const given = view({ slots: [readyA, absentB], lines: [{ model: 'B' }] });
    expect(choose(given, since(0)).grants[0]).toMatchObject({
      slotId: 'B',
      gpus: ['g0'],
      evict: [{ slotId: 'A', by: 'release' }],
      startsInMs: 40_000,
      isDue: true,
    });
  });

  test('it says when time alone will change it: the end of the turn', () => {
    const given = view({ slots: [{ ...readyA, phase: 'running' }, absentB], lines: [{ model: 'A' }, { model: 'B' }] });
    expect(choose(given, since(100_000)).againInMs).toBe(20_000);
  });

  test('nothing waits: nothing to wake up for', () => {
    expect(choose(view({ slots: [readyA], lines: [] }), since(100_000)).againInMs).toBeUndefined();
  });
});

test('a due model that is refused lets the ready one go on, and is due again 5 s later', () => {
  const host = new VirtualHost({ gpus: 1, gpuMiB: 24_000, models: [A, B] });
  host.lines = [line({ model: 'A', jobs: 60 }), line({ model: 'B', jobs: 5 })];
  let refused = 0;
  host.refuses = (grant) => {
    if (grant.line.model !== 'B' || refused > 0) return false;
    refused += 1;
    return true;
  };
  host.run(300_000);
  const b = host.lines.find((each) => each.model === 'B');
  expect(refused).toBe(1);
  expect(host.served.at(-1)?.model).toBe('A');
  if (b) b.isDeclined = false; // sent again
  host.run();
  expect(host.served.filter((each) => each.model === 'B')).toHaveLength(5);
  expect(host.served.filter((each) => each.model === 'A')).toHaveLength(60);
});

test('a person gets an image of an absent model within patience, one job and one swap', () => {
  const host = new VirtualHost({ gpus: 1, gpuMiB: 24_000, models: [A, B] });
  host.lines = [line({ model: 'A', jobs: 40 })];
  host.run(60_000);
  host.lines.push(line({ model: 'B', jobs: 1, class: 'interactive', sinceMs: host.nowMs }));
  const askedMs = host.nowMs;
  host.run();
  const granted = host.served.find((each) => each.model === 'B');
  expect((granted?.atMs ?? Infinity) - askedMs).toBeLessThanOrEqual(10_000 + 8_000);
  expect(host.served).toHaveLength(41);
});

test('two tokens of one model share it equally, whoever brings more', () => {
  const host = new VirtualHost({ gpus: 1, gpuMiB: 24_000, models: [A] });
  host.lines = [
    line({ model: 'A', jobs: 40, tokenId: 'x', sessionId: 'x' }),
    line({ model: 'A', jobs: 10, tokenId: 'y', sessionId: 'y' }),
  ];
  host.run();
  const firstTwenty = host.served.slice(0, 20).filter((each) => each.tokenId === 'y');
  expect(firstTwenty).toHaveLength(10);
});

const anyLine = fc.record({
  session: fc.integer({ min: 0, max: 3 }),
  token: fc.integer({ min: 0, max: 2 }),
  model: fc.integer({ min: 0, max: 3 }),
  class: fc.constantFrom('batch' as const, 'interactive' as const),
  jobs: fc.integer({ min: 1, max: 12 }),
  runMs: fc.integer({ min: 500, max: 20_000 }),
});
const anyHost = fc.record({
  gpus: fc.integer({ min: 1, max: 3 }),
  models: fc.array(
    fc.record({ needMiB: fc.integer({ min: 2_000, max: 24_000 }), swapMs: fc.integer({ min: 1_000, max: 90_000 }) }),
    { minLength: 1, maxLength: 4 },
  ),
  lines: fc.array(anyLine, { minLength: 1, maxLength: 8 }),
});

test('whatever is offered, every job is served, no GPU is shared, and memory is never over-committed', () => {
  fc.assert(
    fc.property(anyHost, ({ gpus, models, lines }) => {
      const host = new VirtualHost({
        gpus,
        gpuMiB: 24_000,
        models: models.map((model, at) => ({ ...model, model: `m${at}` })),
      });
      const wanted = lines.filter((each) => each.model < models.length);
      const unique = new Map(wanted.map((each) => [`${each.session} ${each.class} ${each.model}`, each]));
      host.lines = [...unique.values()].map((each) => ({
        ...each,
        sessionId: `s${each.session}`,
        tokenId: `t${each.token}`,
        model: `m${each.model}`,
      }));
      const jobs = host.lines.reduce((sum, each) => sum + each.jobs, 0);
      host.run(); // throws at the first sharing or over-commitment
      expect(host.served).toHaveLength(jobs);
    }),
    { numRuns: 150 },
  );
});

test('a slot that cannot is never granted, and nothing is granted twice', () => {
  const slot = fc.record({
    phase: fc.constantFrom('idle' as const, 'granted' as const, 'accepted' as const, 'running' as const),
    cannot: fc.boolean(),
    isReady: fc.boolean(),
    isMoving: fc.boolean(),
    endsInMs: fc.option(fc.integer({ min: 0, max: 1_000 })),
    hasNext: fc.boolean(),
  });
  fc.assert(
    fc.property(fc.array(slot, { minLength: 1, maxLength: 4 }), fc.array(anyLine, { maxLength: 6 }), (slots, lines) => {
      const given = view({
        slots: slots.map((each, at) => ({ ...each, slotId: `m${at}` })),
        lines: lines.map(({ model, class: kind, jobs }) => ({ model: `m${model}`, class: kind, count: jobs })),
        leadMs: 500,
      });
      const { grants } = choose(given, EMPTY_MEMORY);
      for (const grant of grants) {
        const granted = given.slots.find((each) => each.slotId === grant.slotId);
        expect(granted?.cannot).toBe(false);
        expect(granted?.hasNext && granted.phase === 'running').toBe(false);
        expect(['idle', 'running']).toContain(granted?.phase);
      }
      const onGpu = grants.filter((grant) => grant.gpus.includes('g0'));
      expect(onGpu.length).toBeLessThanOrEqual(1);
      expect(new Set(grants.map((grant) => grant.slotId)).size).toBe(grants.length);
    }),
    { numRuns: 500 },
  );
});
