import { expect, test } from 'vitest';
import { forecastNew, plannedEnds } from '../../../bridge/fleet/forecast.ts';
import { peakMiBAt } from '../../../bridge/fleet/host-forecast.ts';
import type { HostView } from '../../../bridge/fleet/host-view.ts';
import { host, model, request } from './builders.ts';
import { Laptop, opened } from './fleet-fixture.ts';
import { ScriptedAgent } from './scripted-agent.ts';

const ANYWHERE = { only: undefined, avoid: [], spread: undefined };
/** 10 steps at 1 megapixel: 1 s and 3 s an image. */
const fast = host('fast', { snap: { models: [model({ service: { fixedMs: 0, unitMs: 100, samples: 5 } })] } });
const slow = host('slow', { snap: { models: [model({ service: { fixedMs: 0, unitMs: 300, samples: 5 } })] } });

function ends(hosts: readonly HostView[], count: number, before = 0) {
  const present = { class: 'batch' as const, hosts, holdings: [], nowMs: 0 };
  const waiting = Array.from({ length: before }, () => ({ request: request(), rules: ANYWHERE }));
  const requests = Array.from({ length: count }, () => request());
  return forecastNew(requests, { ...present, before: waiting, own: new Map() }).ends;
}

test('images are put where each is done first', () => {
  expect(ends([fast, slow], 4)).toEqual([
    { host: 'fast', endMs: 1_000, runMs: 1_000 },
    { host: 'fast', endMs: 2_000, runMs: 1_000 },
    { host: 'fast', endMs: 3_000, runMs: 1_000 },
    { host: 'slow', endMs: 3_000, runMs: 3_000 },
  ]);
});

test('with a most at a time only so many slots are reckoned with, as for a batch', () => {
  const present = { class: 'batch' as const, hosts: [fast, slow], holdings: [], nowMs: 0, before: [], own: new Map() };
  const requests = Array.from({ length: 4 }, () => request());
  const { ends: planned } = forecastNew(requests, { ...present, maxConcurrent: 1 });
  expect(planned.map((end) => [end?.host, end?.endMs])).toEqual([1_000, 2_000, 3_000, 4_000].map((ms) => ['fast', ms]));
});

test('what waits already comes first', () => {
  expect(ends([fast], 1, 2)).toEqual([{ host: 'fast', endMs: 3_000, runMs: 1_000 }]);
});

test('a host on which the model is not loaded loads it first', () => {
  const cold = host('cold', { snap: { models: [model({ state: 'released', heldMiB: 0, loadMs: 40_000 })] } });
  expect(ends([cold], 1)).toEqual([{ host: 'cold', endMs: 41_000, runMs: 1_000 }]);
});

test('a host that can never run one of this size gets none, and says why', () => {
  const capacity = { mostMiB: 24_000, fitsMegapixels: 0.5, peaks: [{ megapixels: 1, peakMiB: 30_000 }] };
  const small = host('small', {
    snap: { models: [model({ capacity, service: { fixedMs: 0, unitMs: 1, samples: 5 } })] },
  });
  const present = { class: 'batch' as const, hosts: [small, slow], holdings: [], nowMs: 0, before: [], own: new Map() };
  const { ends: planned, placement } = forecastNew([request()], present);
  expect(planned).toMatchObject([{ host: 'slow' }]);
  expect(placement.refused).toMatchObject([{ host: 'small', isForever: true }]);
});

test('one model does not wait for another', () => {
  const both = host('both', {
    snap: { models: [model(), model({ model: 'acme/other', alias: 'other', gpus: ['GPU-1'] })] },
  });
  const wanted = [request(), request({ model: 'acme/other' }), request()].map((one) => ({
    request: one,
    rules: ANYWHERE,
  }));
  const planned = plannedEnds(wanted, { class: 'batch', hosts: [both], holdings: [], nowMs: 0 });
  expect(planned.map((end) => end?.endMs)).toEqual([1_000, 1_000, 2_000]);
});

test('nothing is planned for a model that no host has', () => {
  const wanted = [{ request: request({ model: 'acme/none' }), rules: ANYWHERE }];
  expect(plannedEnds(wanted, { class: 'batch', hosts: [fast], holdings: [], nowMs: 0 })).toEqual([undefined]);
});

test('an estimate is what a batch is told when it begins', async () => {
  await using a = await ScriptedAgent.start('a', { isManual: true, runMs: 120 });
  await using b = await ScriptedAgent.start('b', { isManual: true, runMs: 500 });
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([a, b]));
  const order = laptop.order(7);
  const { ends: foreseen } = fleet.forecast(
    order.jobs.map((job) => job.request),
    'batch',
  );
  const lastMs = Math.max(...foreseen.map((end) => end?.endMs ?? Infinity));
  const batch = await fleet.start(order);
  expect(batch.view().etaMs).toBe(Math.round(lastMs));
  // The next estimate has this batch before it.
  const { ends: later } = fleet.forecast([order.jobs[0]?.request ?? request()], 'batch');
  expect(later[0]?.endMs).toBeGreaterThanOrEqual(lastMs);
  await batch.cancel();
});

test.each<[string, Parameters<typeof model>[0], number, number]>([
  ['between two measured sizes', { capacity: peaks([1, 30_000], [2, 40_000]) }, 1.5, 35_000],
  ['above the largest', { capacity: peaks([1, 30_000], [2, 40_000]) }, 3, 50_000],
  ['without measured sizes, by the growth over the model', { loadedMiB: 20_000, peakMiB: 30_000 }, 2, 40_000],
  ['a small picture needs the fixed part all the same', { loadedMiB: 20_000, peakMiB: 30_000 }, 0.25, 30_000],
])('the peak of a job: %s', (_, o, megapixels, expected) => {
  expect(peakMiBAt(megapixels, model(o))).toBe(expected);
});

function peaks(...sizes: [number, number][]) {
  return {
    mostMiB: 80_000,
    fitsMegapixels: 8,
    peaks: sizes.map(([megapixels, peakMiB]) => ({ megapixels, peakMiB })),
  };
}
