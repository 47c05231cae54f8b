import { pino } from 'pino';
import { expect, test } from 'vitest';
import { Admission } from '../../../agent/model/admission.ts';
import { Changes } from '../../../agent/model/changes.ts';
import type { Evictor } from '../../../agent/model/evictor.ts';
import { GpuLocks } from '../../../agent/model/gpu-locks.ts';
import type { Learned } from '../../../agent/model/learned.ts';
import type { ModelServer } from '../../../agent/model/model-server.ts';
import type { Room } from '../../../agent/model/room.ts';
import { newSlot } from '../../../agent/model/slot.ts';
import { WorkInHand } from '../../../agent/model/work-in-hand.ts';
import { Weights } from '../../../agent/weights/weights.ts';
import { never, omni } from './model-host.ts';

/** One GPU with room for one of two models. `other` comes while `late` waits for the lock: only then must it go for `late`. */
function oneGpu() {
  const server = () => ({
    state: { kind: 'released' },
    inFlight: 0,
    gpus: ['GPU-0'],
    settled: () => Promise.resolve(),
  });
  const slots = ['late', 'other'].map((alias) =>
    newSlot(alias, { model: omni(alias), server: server() as unknown as ModelServer }),
  );
  const [late] = slots;
  if (late === undefined) throw new Error('it is the first');
  const evicted: string[] = [];
  const locks = new GpuLocks();
  const changes = new Changes(() => undefined);
  let isOtherThere = false;
  const plan = () => ({
    kind: 'fits',
    gpus: ['GPU-0'],
    evict: isOtherThere ? [{ slotId: 'other', by: 'release' }] : [],
  });
  const room = { plan, planFresh: () => Promise.resolve(plan()), peakMiB: () => 8_000, measure: () => undefined };
  const evictor = {
    evict: (slot: { slotId: string }) => {
      evicted.push(slot.slotId);
      throw new Error('enough is known');
    },
  };
  const log = pino({ level: 'silent' });
  const times = { stallMs: 1_000, retryFirstMs: 1_000 };
  const admission = new Admission({
    room: room as unknown as Room,
    evictor: evictor as unknown as Evictor,
    learned: {} as Learned,
    weights: new Weights({
      ...{ stateDir: '/nowhere', logDir: '/nowhere', log, ...times },
      ...{ onChange: () => undefined, onProgress: () => undefined },
    }),
    ...{ locks, changes, work: new WorkInHand(), slots: () => slots, signal: never },
  });
  return { admission, locks, late, evicted, comes: () => (isOtherThere = true) };
}

test('a preload that found room evicts nobody who took it while it waited for the GPU; a job does', async () => {
  for (const [mayEvict, gone] of [
    [false, []],
    [true, ['other']],
  ] as const) {
    const { admission, locks, late, evicted, comes } = oneGpu();
    const busy = await locks.acquire(['GPU-0'], never);
    const brought = admission.bring(late, { megapixels: 1, mayEvict }).catch(() => undefined);
    await new Promise(setImmediate); // it waits for the lock by now
    expect(late.detail).toMatch(/waiting for another model/);
    comes();
    busy[Symbol.dispose]();
    await brought;
    expect(evicted).toEqual(gone);
    expect(late).toMatchObject({ bringing: undefined, promisedMiB: 0 });
  }
});
