import { EventEmitter, once } from 'node:events';
import { expect, test } from 'vitest';
import { z } from 'zod';
import { StatusFeed } from '../../../agent/rpc/status-feed.ts';
import type { HostSnapshot } from '../../../shared/host-snapshot.ts';
import { NOTIFICATIONS, parseNotification } from '../../../shared/protocol.ts';

const EMPTY: HostSnapshot = {
  agentId: 'a',
  hostname: 'h',
  agentVersion: '0',
  isSimulated: false,
  isDraining: false,
  driver: null,
  problems: [],
  gpus: [],
  memory: { totalMiB: 2, freeMiB: 1 },
  disk: { freeMiB: null },
  models: [],
  offered: [],
};

test('only what changed is sent, with revisions that fit the snapshot', async () => {
  await using host = new Host();
  host.feed.subscribe(host.listen);
  expect(parse(host.feed.snapshotFrame())).toEqual({ method: 'snapshot', params: { revision: 0, snapshot: EMPTY } });
  await host.change({ isDraining: true });
  await host.change({ offered: [{ model: 'm', class: 'batch', count: 1, workMs: 5 }], driver: '570' });
  expect(host.deltas).toEqual([
    { revision: 1, changed: { isDraining: true } },
    { revision: 2, changed: { driver: '570', offered: [{ model: 'm', class: 'batch', count: 1, workMs: 5 }] } },
  ]);
  expect(parse(host.feed.snapshotFrame())?.params).toMatchObject({ revision: 2, snapshot: { isDraining: true } });
});

test('many changes in one moment are one delta', async () => {
  await using host = new Host();
  host.feed.subscribe(host.listen);
  const delta = once(host.events, 'delta');
  for (let free = 0; free < 100; free += 1) host.set({ memory: { totalMiB: 2, freeMiB: free } });
  await delta;
  expect(host.deltas).toEqual([{ revision: 1, changed: { memory: { totalMiB: 2, freeMiB: 99 } } }]);
});

test('what others wait for is told at once, the rest when the gap is over', async () => {
  await using host = new Host({ minGapMs: 60_000, atOnce: (snapshot) => String(snapshot.isDraining) });
  host.feed.subscribe(host.listen);
  await host.change({ driver: '570' });
  host.set({ driver: '580' }); // would wait a minute by itself
  expect(host.deltas).toHaveLength(1);
  await host.change({ isDraining: true });
  await host.change({ isDraining: false });
  expect(host.deltas.slice(1)).toEqual([
    { revision: 2, changed: { driver: '580', isDraining: true } },
    { revision: 3, changed: { isDraining: false } },
  ]);
});

test('a second subscriber costs no build, and its snapshot fits the next delta', async () => {
  await using host = new Host();
  host.feed.subscribe(host.listen);
  await host.change({ isDraining: true });
  const { builds } = host;
  host.feed.subscribe(() => undefined);
  expect(host.feed.snapshotFrame()).toBe(host.feed.snapshotFrame());
  expect(parse(host.feed.snapshotFrame())?.params).toMatchObject({ revision: 1, snapshot: { isDraining: true } });
  expect(host.builds).toBe(builds);
  await host.change({ isDraining: false });
  expect(host.deltas.at(-1)).toEqual({ revision: 2, changed: { isDraining: false } });
});

test('ages that run by themselves are no change', async () => {
  await using host = new Host();
  host.feed.subscribe(host.listen);
  const gpu = { uuid: 'u', index: 0, name: 'n', totalMiB: 1, usedMiB: 1, freeMiB: 0, utilisationPercent: 0 } as const;
  const rest = { temperatureC: 1, powerW: 1, health: 'ok', isDegraded: false, oursMiB: 0, foreign: [] } as const;
  await host.change({ gpus: [{ ...gpu, ...rest, foreign: [], ageMs: 10 }] });
  host.set({ gpus: [{ ...gpu, ...rest, foreign: [], ageMs: 900 }] });
  await host.change({ isDraining: true });
  expect(host.deltas.at(-1)).toEqual({ revision: 2, changed: { isDraining: true } });
});

test('nothing is built while nobody listens, and a late subscriber starts whole', async () => {
  await using host = new Host();
  const unsubscribe = host.feed.subscribe(host.listen);
  unsubscribe();
  const builds = host.builds;
  host.set({ isDraining: true });
  expect(host.builds).toBe(builds);
  host.feed.subscribe(host.listen);
  expect(parse(host.feed.snapshotFrame())?.params).toMatchObject({ snapshot: { isDraining: true } });
  expect(host.deltas).toEqual([]);
});

/** A host whose state the test writes. */
class Host implements AsyncDisposable {
  readonly deltas: unknown[] = [];
  readonly events = new EventEmitter();
  readonly feed: StatusFeed;
  builds = 0;
  #state = EMPTY;

  constructor({
    minGapMs = 1,
    atOnce = () => '',
  }: { minGapMs?: number; atOnce?: (state: HostSnapshot) => string } = {}) {
    this.feed = new StatusFeed({
      build: () => {
        this.builds += 1;
        return this.#state;
      },
      atOnce: () => atOnce(this.#state),
      minGapMs,
    });
  }

  readonly listen = (frame: Buffer): void => {
    this.deltas.push(parse(frame)?.params);
    this.events.emit('delta');
  };

  set(change: Partial<HostSnapshot>): void {
    this.#state = { ...this.#state, ...change };
    this.feed.changed();
  }

  async change(change: Partial<HostSnapshot>): Promise<void> {
    const delta = once(this.events, 'delta');
    this.set(change);
    await delta;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.feed[Symbol.asyncDispose]();
  }
}

function parse(frame: Buffer) {
  const envelope = z.object({ jsonrpc: z.literal('2.0'), method: z.string(), params: z.unknown() });
  const { method, params } = envelope.parse(JSON.parse(frame.toString()));
  expect(Object.keys(NOTIFICATIONS)).toContain(method);
  return parseNotification(method, params);
}
