import { expect, test } from 'vitest';
import { seconds } from '../../../bridge/fleet/host-forecast.ts';
import type { HostView } from '../../../bridge/fleet/host-view.ts';
import { expectedFinishes } from '../../../bridge/fleet/placement.ts';
import { routingText } from '../../../bridge/fleet/routing.ts';
import { host, model, MODEL, request } from './builders.ts';

const measured = (unitMs: number) => ({ fixedMs: 0, unitMs, samples: 3 });
const quick = host('gpu-a', { snap: { models: [model({ service: measured(320) })] } });
const absent = host('gpu-b', {
  snap: { models: [model({ service: measured(120), state: 'released', loadMs: 39_800 })] },
});
const asleep = host('gpu-b', {
  snap: { models: [model({ service: measured(320), state: 'offloaded', wakeMs: 8_000 })] },
});
const busy = host('gpu-b', {
  snap: {
    models: [
      model({
        service: measured(320),
        slots: [{ slotId: 'x', phase: 'running', freeInMs: 30_000, isCancelled: false }],
      }),
    ],
  },
});
const slow = host('gpu-b', { snap: { models: [model({ service: measured(3_200) })] } });
const unknown = host('gpu-b', { snap: { models: [model({ service: { fixedMs: 0, unitMs: 500, samples: 0 } })] } });
const without = host('gpu-c', { snap: { models: [] } });

test.each<[string, HostView[], { host: string; endsInMs: number; isAskedFor?: boolean }, string]>([
  [
    'the other must load',
    [quick, absent],
    { host: 'gpu-a', endsInMs: 3_200 },
    'gpu-a is expected to be fastest: ready in about 3.2 s; gpu-b in about 41 s, because it must load the model.',
  ],
  [
    'the other must wake',
    [quick, asleep],
    { host: 'gpu-a', endsInMs: 3_200 },
    'gpu-a is expected to be fastest: ready in about 3.2 s; gpu-b in about 11 s, because it must wake the model.',
  ],
  [
    'the other is busy',
    [quick, busy],
    { host: 'gpu-a', endsInMs: 3_200 },
    'gpu-a is expected to be fastest: ready in about 3.2 s; gpu-b in about 33 s, because it is busy.',
  ],
  [
    'the other is slow',
    [quick, slow],
    { host: 'gpu-a', endsInMs: 3_200 },
    'gpu-a is expected to be fastest: ready in about 3.2 s; gpu-b in about 32 s.',
  ],
  [
    'the slower one had a slot',
    [quick, slow],
    { host: 'gpu-b', endsInMs: 32_000 },
    'gpu-b had a free slot: ready in about 32 s; gpu-a in about 3.2 s.',
  ],
  [
    'nothing was measured there',
    [unknown],
    { host: 'gpu-b', endsInMs: 5_000 },
    'gpu-b is the only host that can run it now: ready in about 5.0 s (a guess, not measured yet).',
  ],
  [
    'the only one',
    [quick, without],
    { host: 'gpu-a', endsInMs: 3_200 },
    `gpu-a is the only host that can run it now: ready in about 3.2 s. gpu-c: ${MODEL} is not configured there.`,
  ],
  [
    'asked for',
    [quick, slow],
    { host: 'gpu-b', endsInMs: 32_000, isAskedFor: true },
    'gpu-b was asked for: ready in about 32 s.',
  ],
])('why this host: %s', (_, hosts, taken, expected) => {
  expect(routingText(expectedFinishes(request(), { hosts }), { isAskedFor: false, ...taken })).toBe(expected);
});

test.each([
  [3, '0.1 s'],
  [940, '0.9 s'],
  [9_940, '9.9 s'],
  [9_960, '10 s'],
  [119_400, '119 s'],
  [124_000, '2 min'],
])('%i ms reads %s', (ms, expected) => {
  expect(seconds(ms)).toBe(expected);
});
