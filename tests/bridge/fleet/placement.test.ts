import { expect, test } from 'vitest';
import type { HostView } from '../../../bridge/fleet/host-view.ts';
import { progressLine } from '../../../bridge/cli/progress-text.ts';
import { expectedFinishes, refusalText } from '../../../bridge/fleet/placement.ts';
import { AppError } from '../../../shared/errors.ts';
import { gpu, host, model, MODEL, request, slot } from './builders.ts';

const fast = model({ service: { fixedMs: 200, unitMs: 100, samples: 9 } }); // 1.2 s for the request
const slow = model({ service: { fixedMs: 0, unitMs: 400, samples: 9 } }); // 4 s

function ms(hosts: HostView[], own?: ReadonlyMap<string, number>): Record<string, number> {
  const { ranked } = expectedFinishes(request(), { hosts, ...(own && { own }) });
  return Object.fromEntries(ranked.map(({ host: name, finishMs }) => [name, finishMs]));
}

test('the finish is the sum of its parts', () => {
  expect(ms([host('a', { snap: { models: [fast] } })])).toEqual({ a: 1_200 });
  const busy = { ...fast, slots: [slot({ phase: 'running', freeInMs: 3_000 })] };
  expect(ms([host('a', { snap: { models: [busy] }, statusAgeMs: 1_000, transferMs: 50 })])).toEqual({ a: 3_250 });
  expect(ms([host('a', { snap: { models: [{ ...fast, state: 'released' }] } })])).toEqual({ a: 41_200 });
  expect(ms([host('a', { snap: { models: [{ ...fast, state: 'offloaded' }] } })])).toEqual({ a: 3_200 });
  expect(ms([host('a', { snap: { models: [fast] } })], new Map([['a', 500]]))).toEqual({ a: 1_700 });
});

test('making room costs, when the free VRAM is not enough', () => {
  const other = model({ model: 'other', heldMiB: 70_000, wakeMs: 3_500, gpus: ['GPU-0'] });
  const absent = { ...fast, state: 'offloaded' as const, heldMiB: 500 };
  const gpus = [gpu({ freeMiB: 9_000 })];
  expect(ms([host('a', { snap: { models: [absent, other], gpus } })])).toEqual({ a: 2_000 + 3_500 + 1_200 });
});

test('another model at work on the same GPU delays the start', () => {
  const other = model({ model: 'other', slots: [slot({ slotId: 'o', phase: 'running', freeInMs: 7_000 })] });
  expect(ms([host('a', { snap: { models: [fast, other] } })])).toEqual({ a: 8_200 });
});

test('a host that has run nothing yet is reckoned with the median of its like, then of the fleet', () => {
  const unknown = model({ service: { fixedMs: 0, unitMs: 999, samples: 0 } });
  const like = (name: string): Partial<HostView['snapshot']> => ({ gpus: [gpu({ name })] });
  const hosts = [
    host('new', { snap: { models: [unknown], ...like('Small') } }),
    host('a', { snap: { models: [slow], ...like('Small') } }),
    host('b', { snap: { models: [fast], ...like('Big') } }),
  ];
  expect(ms(hosts)).toEqual({ new: 4_000, a: 4_000, b: 1_200 });
  expect(ms([host('new', { snap: { models: [unknown], ...like('Odd') } }), ...hosts.slice(2)])['new']).toBe(1_200);
  expect(ms([host('new', { snap: { models: [unknown] } })])).toEqual({ new: 9_990 });
});

test.each<[string, HostView[], string[]]>([
  [
    'the smallest finish wins',
    [host('a', { snap: { models: [slow] } }), host('b', { snap: { models: [fast] } })],
    ['b', 'a'],
  ],
  [
    'within 250 ms the resident model wins',
    [
      host('a', { snap: { models: [{ ...fast, state: 'offloaded', wakeMs: 0 }] } }),
      host('b', { snap: { models: [{ ...fast, service: { fixedMs: 300, unitMs: 110, samples: 1 } }] } }),
    ],
    ['b', 'a'],
  ],
  [
    'within 5 % more free VRAM wins',
    [
      host('a', { snap: { models: [slow], gpus: [gpu({ freeMiB: 10_000 })] } }),
      host('b', { snap: { models: [{ ...slow, service: { ...slow.service, unitMs: 415 } }] } }),
    ],
    ['b', 'a'],
  ],
])('%s', (_, hosts, expected) => {
  expect(expectedFinishes(request(), { hosts }).ranked.map((one) => one.host)).toEqual(expected);
});

const down = new AppError('AGENT_UNREACHABLE', 'connection refused.');
test.each<[string, HostView, RegExp, boolean]>([
  [
    'its weights are on their way',
    host('a', {
      snap: {
        models: [
          {
            ...fast,
            state: 'loading',
            slots: [
              slot({ phase: 'closed', freeInMs: 480_000, reason: 'downloading 12 of 54 GiB, 85 MiB/s, 8 min left' }),
            ],
          },
        ],
      },
    }),
    /gives no slot of painter now: downloading 12 of 54 GiB, 85 MiB\/s, 8 min left/,
    false,
  ],
  [
    'link down',
    host('a', { link: { kind: 'down', error: down, retryInMs: 1 } }),
    /not connected: connection refused/,
    false,
  ],
  ['no snapshot yet', host('a', { snapshot: undefined }), /has not reported/, false],
  ['connecting', host('a', { link: { kind: 'connecting' } }), /being connected/, false],
  ['model not configured', host('a', { snap: { models: [] } }), /is not configured there/, true],
  ['draining', host('a', { snap: { isDraining: true } }), /draining/, false],
  [
    'failed',
    host('a', { snap: { models: [model({ state: 'failed', detail: 'bad flag' })] } }),
    /failed: bad flag/,
    false,
  ],
  [
    'VRAM too small',
    host('a', { snap: { gpus: [gpu({ totalMiB: 24_000 })] } }),
    /needs 29\.3 GB .* have 23\.4 GB/,
    true,
  ],
  ['degraded', host('a', { snap: { gpus: [gpu({ isDegraded: true })] } }), /degraded/, false],
  ['lost', host('a', { snap: { gpus: [gpu({ health: 'lost' })] } }), /lost/, false],
  [
    'slot cannot',
    host('a', { snap: { models: [model({ slots: [slot({ phase: 'cannot', reason: 'disk full' })] })] } }),
    /disk full/,
    false,
  ],
])('a host cannot: %s', (_, view, reason, isForever) => {
  const { ranked, refused } = expectedFinishes(request(), { hosts: [view] });
  expect(ranked).toEqual([]);
  expect(refused).toMatchObject([{ host: 'a', reason: expect.stringMatching(reason) as string, isForever }]);
});

test('a model that cannot edit refuses an edit for ever', () => {
  const { width, height, ...rest } = request();
  expect([width, height]).toEqual([1000, 1000]);
  const edit = { ...rest, kind: 'edit' as const, inputs: ['a'.repeat(64)] };
  expect(expectedFinishes(edit, { hosts: [host('a')] }).refused[0]).toMatchObject({ isForever: true });
});

test('what a person moved off stays off for batch work, not for a single image', () => {
  const away = host('a', { snap: { models: [model({ state: 'offloaded', heldAwayMs: 540_000 })] } });
  const { refused } = expectedFinishes(request(), { hosts: [away], class: 'batch' });
  expect(refused[0]?.reason).toMatch(/another 9 min/);
  // What ends the wait stands where a narrow terminal still shows it.
  expect(progressLine({ message: `0 of 6 done; ${refusalText(MODEL, refused)}`, fraction: 0 }, 80)).toMatch(
    /Load \S+ to end this wait\. No host/,
  );
  expect(expectedFinishes(request(), { hosts: [away], class: 'interactive' }).ranked).toHaveLength(1);
});

test('a stale or unreadable telemetry of an attached model refuses nothing', () => {
  const attached = host('a', { snap: { models: [model({ isAttached: true })], gpus: [gpu({ health: 'absent' })] } });
  expect(expectedFinishes(request(), { hosts: [attached] }).ranked).toHaveLength(1);
  const stale = host('a', { snap: { gpus: [gpu({ health: 'stale', ageMs: 60_000 })] } });
  expect(expectedFinishes(request(), { hosts: [stale] }).ranked).toHaveLength(1);
});

test('a refusal names each host with its reason', () => {
  const none = expectedFinishes(request(), { hosts: [host('gpu-c', { snap: { models: [] } })] });
  expect(refusalText(MODEL, none.refused)).toBe(
    `No host can run ${MODEL} now: gpu-c: ${MODEL} is not configured there.`,
  );
});

test('a pinned job knows only its host', () => {
  const { ranked, refused } = expectedFinishes(request(), { hosts: [host('a'), host('b')], only: 'b' });
  expect([ranked.map((one) => one.host), refused]).toEqual([['b'], []]);
});
