import { describe, expect, test } from 'vitest';
import { planSlots } from '../../../bridge/fleet/plan-slots.ts';
import { gpu, host, MODEL, model, slot } from './builders.ts';

const want = { model: MODEL, class: 'batch' as const };
const nothing = { holdings: [], nowMs: 1_000 };

describe('a model that would have to push out another one', () => {
  const absent = model({ state: 'released', gpus: [], heldMiB: 0 });
  const resident = model({ model: 'acme/other', alias: 'other', heldMiB: 70_000 });
  const full = { gpus: [gpu({ freeMiB: 10_000, oursMiB: 70_000 })], models: [absent, resident] };
  const offered = [{ model: 'acme/other', class: 'batch' as const, count: 3, workMs: 3_000, sessions: 1 }];
  const here = host('here');

  test('is no forecast while that one has work', () => {
    const hosts = [here, host('there', { snap: { ...full, offered } })];
    expect(planSlots(want, { ...nothing, hosts }).map((one) => one.host)).toEqual(['here']);
  });

  test('is one when nobody wants that one', () => {
    const hosts = [here, host('there', { snap: full })];
    expect(planSlots(want, { ...nothing, hosts }).map((one) => one.host)).toEqual(['here', 'there']);
  });

  test('is one when there is nothing else, and when its slot is granted', () => {
    const hosts = [host('there', { snap: { ...full, offered } })];
    expect(planSlots(want, { ...nothing, hosts })).toHaveLength(1);
    const granted = { host: 'there', slotId: 'painter', startsInMs: 5_000 };
    expect(planSlots(want, { ...nothing, hosts, granted })).toMatchObject([{ host: 'there', startsInMs: 5_000 }]);
  });
});

describe('crowding', () => {
  const waiting = { count: 4, units: 40 }; // 4 s of work with 100 ms a unit
  const crowdingWith = (workMs: number, sessions?: number): number | undefined => {
    const offered = [
      { model: MODEL, class: 'batch' as const, count: 9, workMs, ...(sessions !== undefined && { sessions }) },
    ];
    return planSlots(want, { ...nothing, waiting, hosts: [host('a', { snap: { offered } })] })[0]?.crowding;
  };
  test.each<[string, number, number | undefined, number]>([
    ['alone', 4_000, 1, 1],
    ['alone, and the status is older than the last take', 8_000, 1, 1],
    ['another bridge with as much', 8_000, 2, 2],
    ['another bridge with a quarter', 5_000, 2, 1.25],
    ['another bridge with a mountain gets every second turn only', 4_000_000, 2, 2],
    ['an older agent does not tell', 8_000, undefined, 1],
    ['the status does not show our own yet', 0, 1, 1],
  ])('%s', (_, workMs, sessions, expected) => expect(crowdingWith(workMs, sessions)).toBe(expected));
});

test('a slot is free when its host says so, or when our own job there ends', () => {
  const hosts = [
    host('a', { statusAgeMs: 100, snap: { models: [model({ slots: [slot({ phase: 'running', freeInMs: 600 })] })] } }),
  ];
  expect(planSlots(want, { ...nothing, hosts })[0]?.startsInMs).toBe(500);
  const holdings = [{ host: 'a', slotId: 'painter', endsAtMs: 1_900 }];
  expect(planSlots(want, { holdings, nowMs: 1_000, hosts })[0]?.startsInMs).toBe(900);
});
