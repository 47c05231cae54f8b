import { expect, test } from 'vitest';
import { groupWaiting, isOtherOffer, offerLines, ranksOf } from '../../../bridge/fleet/offers.ts';
import type { OfferedJob } from '../../../bridge/fleet/offers.ts';
import { host, MODEL, model, request } from './builders.ts';

const rules = { only: undefined, avoid: [], spread: undefined };
const service = { fixedMs: 100, unitMs: 10, samples: 1 };
const job = (steps: number, o: Partial<OfferedJob> = {}): OfferedJob => ({
  class: 'batch',
  request: request({ steps }),
  rules,
  ...o,
});

test('a line adds up what waits for one model and class', () => {
  const groups = groupWaiting([job(10), job(20), job(5, { class: 'interactive' }), job(7, { rules: { ...rules } })]);
  const inFlight = [{ class: 'batch' as const, model: MODEL }];
  const lines = offerLines({ groups, inFlight, serviceOf: () => service, rankOf: () => 2 });
  expect(lines).toEqual([
    { model: MODEL, class: 'batch', count: 3, workMs: 670, longestMs: 300, maxMegapixels: 1, inFlight: 1, rank: 2 },
    {
      model: MODEL,
      class: 'interactive',
      count: 1,
      workMs: 150,
      longestMs: 150,
      maxMegapixels: 1,
      inFlight: 0,
      rank: 2,
    },
  ]);
});

test('a model the host has not is not offered to it', () => {
  const groups = groupWaiting([job(10), job(10, { request: request({ model: 'other' }) })]);
  const lines = offerLines({
    groups,
    inFlight: [],
    serviceOf: (model) => (model === MODEL ? service : undefined),
    rankOf: () => 0,
  });
  expect(lines.map(({ model }) => model)).toEqual([MODEL]);
});

test('another model or class is another offer, another count is not', () => {
  const lines = (jobs: OfferedJob[]) =>
    offerLines({ groups: groupWaiting(jobs), inFlight: [], serviceOf: () => service, rankOf: () => 0 });
  expect(isOtherOffer(lines([job(1)]), lines([job(1), job(2)]))).toBe(false);
  expect(isOtherOffer(lines([job(1)]), lines([job(1, { class: 'interactive' })]))).toBe(true);
  expect(isOtherOffer(lines([job(1)]), [])).toBe(true);
  expect(isOtherOffer([], [])).toBe(false);
});

test('hosts are ranked by speed, those of about one speed by their agents, whatever they are called here', () => {
  const named = (name: string, agentId: string, unitMs: number) =>
    host(name, { snap: { agentId, models: [model({ service: { fixedMs: 0, unitMs, samples: 9 } })] } });
  const hosts = [
    named('fast', 'z', 25),
    named('mine', 'y', 101),
    named('yours', 'x', 99),
    host('none', { snap: { models: [] } }),
  ];
  expect([...ranksOf(MODEL, hosts)]).toEqual([
    ['yours', 0],
    ['mine', 1],
    ['fast', 2],
  ]);
});

test('two hosts of one speed keep their order, whatever they have learned', () => {
  for (const unitMs of [10, 30, 100, 300, 1_000].flatMap((each) =>
    [1, 1.05, 1.1, 1.15, 1.2, 1.25].map((by) => each * by),
  )) {
    const hosts = [
      host('b', {
        snap: { agentId: 'b', models: [model({ service: { fixedMs: 0, unitMs: unitMs * 1.1, samples: 9 } })] },
      }),
      host('a', { snap: { agentId: 'a', models: [model({ service: { fixedMs: 0, unitMs, samples: 9 } })] } }),
    ];
    expect(ranksOf(MODEL, hosts).get('a')).toBe(0);
  }
});
