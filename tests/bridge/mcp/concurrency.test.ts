import { expect, test } from 'vitest';
import { concurrentAtMost, concurrentOn } from '../../../bridge/mcp/concurrency.ts';
import { gpu, model, slot, snapshot } from '../fleet/builders.ts';

const slots = (count: number) => Array.from({ length: count }, (_, n) => slot({ slotId: `painter-${n}` }));

test.each<[string, Parameters<typeof gpu>[0], Parameters<typeof model>[0], number]>([
  ['free VRAM / 2 GB', { freeMiB: 5_000 }, { slots: slots(8) }, 2],
  ['at most four', { freeMiB: 60_000 }, { slots: slots(8) }, 4],
  ['never above the slots', { freeMiB: 60_000 }, { slots: slots(1) }, 1],
  ['at least one, as the job is admitted by real VRAM', { freeMiB: 100 }, { slots: slots(8) }, 1],
  ['none where no slot can run', { freeMiB: 60_000 }, { slots: [slot({ phase: 'cannot' })] }, 0],
  [
    'of a model that is not loaded what it will need is not free',
    { freeMiB: 25_000 },
    { state: 'released', heldMiB: 0, loadedMiB: 20_000, slots: slots(8) },
    2,
  ],
  [
    'what another model of ours holds may go for it',
    { freeMiB: 4_000, oursMiB: 40_000 },
    { state: 'released', heldMiB: 0, loadedMiB: 38_000, slots: slots(8) },
    2,
  ],
  ['a GPU that does not tell', { freeMiB: null }, { slots: slots(8) }, 1],
  ['a server elsewhere, whose GPU nobody sees', {}, { gpus: ['GPU-x'], isAttached: true, slots: slots(3) }, 1],
])('%s', (_, gpuFacts, modelFacts, expected) => {
  const one = model(modelFacts);
  expect(concurrentOn(snapshot({ gpus: [gpu(gpuFacts)], models: [one] }), one)).toBe(expected);
});

test('models that share a GPU take turns, so that a host does no more than its best model', () => {
  const other = model({ model: 'acme/other', slots: slots(2) });
  expect(concurrentAtMost(snapshot({ models: [model(), other] }))).toBe(2);
  expect(concurrentAtMost(snapshot({ models: [] }))).toBe(0);
});
