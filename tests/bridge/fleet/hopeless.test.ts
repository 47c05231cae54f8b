import { describe, expect, test } from 'vitest';
import { whyHopeless, whyNeverFits } from '../../../bridge/fleet/hopeless.ts';
import type { HostView } from '../../../bridge/fleet/host-view.ts';
import { AppError } from '../../../shared/errors.ts';
import type { GpuStatus, ModelStatus } from '../../../shared/host-snapshot.ts';
import { gpu, host, model, request, slot } from './builders.ts';

const LARGE = request({ width: 2048, height: 2048 });
const SMALL = request({ width: 512, height: 512 });
const peaks = [
  { megapixels: 1, peakMiB: 30_000 },
  { megapixels: 4, peakMiB: 60_000 },
];
/** Up to two megapixels fit. */
const LIMITED = { capacity: { mostMiB: 40_000, fitsMegapixels: 2, peaks } };
const off = { kind: 'down', error: new AppError('AGENT_UNREACHABLE', 'connection refused'), retryInMs: 1 } as const;

function having(name: string, o: Partial<ModelStatus> = {}, view: Partial<HostView> & { gpus?: GpuStatus[] } = {}) {
  const { gpus, ...rest } = view;
  return host(name, { ...rest, snap: { models: [model({ ...LIMITED, ...o })], ...(gpus !== undefined && { gpus }) } });
}
const unlimited = { capacity: { mostMiB: 80_000, fitsMegapixels: 4.5, peaks } };
const cannot = (reason: string) => ({ ...unlimited, slots: [slot({ phase: 'cannot', reason })] });
const unheard: HostView = { ...host('b', { link: off }), snapshot: undefined };

const neverFits: [string, HostView[]][] = [
  ['on the only host', [having('a')]],
  ['on any of several', [having('a'), having('b')]],
  ['and the other host does not have the model', [having('a'), host('b', { snap: { models: [] } })]],
  ['also while that model is being loaded', [having('a', { state: 'loading' })]],
  ['also while its server has failed', [having('a', { state: 'failed', detail: 'bad flag' })]],
  ['also while the host drains', [host('a', { snap: { isDraining: true, models: [model(LIMITED)] } })]],
  ['and the other host, which is off now, said the same', [having('a'), having('b', {}, { link: off })]],
];
const mayFit: [string, HostView[]][] = [
  ['on another host', [having('a'), having('b', unlimited)]],
  ['on one that is off now', [having('a'), having('b', unlimited, { link: off })]],
  ['when other programs have gone', [having('a', cannot('Other programs hold VRAM: blender.'))]],
  ['when the failed server is tried again', [having('a', cannot('It is tried again in 20 s.'))]],
  ['when the server is mended', [having('a', { ...unlimited, state: 'failed' })]],
  ['when its weights are there', [having('a', { ...unlimited, slots: [slot({ phase: 'closed', freeInMs: 9e5 })] })]],
  ['when the host takes part again', [host('a', { snap: { isDraining: true, models: [model(unlimited)] } })]],
  ['when the reading is fresh again', [having('a', unlimited, { gpus: [gpu({ health: 'stale' })] })]],
  ['when the GPU is back', [having('a', unlimited, { gpus: [gpu({ health: 'lost' })] })]],
  ['when memory of a dead server is back', [having('a', unlimited, { gpus: [gpu({ isDegraded: true })] })]],
  ['when nvidia-smi works again', [having('a', {}, { gpus: [] })]],
  [
    'on a host that is being connected',
    [having('a'), host('b', { link: { kind: 'connecting' }, snapshot: undefined })],
  ],
  ['when the one host with the model is back', [having('a', {}, { link: off })]],
  ['when a host has the model again', [host('a', { snap: { models: [] } })]],
  ['on the server of somebody else', [having('a', { isAttached: true })]],
];

describe('a job that waits', () => {
  test.each(neverFits)('never fits %s', (_, hosts) => {
    const error = whyNeverFits(LARGE, { hosts, only: undefined, class: 'batch' });
    expect(error?.code).toBe('NO_HOST');
    expect(error?.message).toMatch(
      /a: painter needs about \d+\.\d GB of VRAM at 2048x2048 and can have 39\.1 GB at most; try 2\.00 megapixels or less/,
    );
    for (const { name } of hosts) expect(error?.message).toContain(`${name}: `);
  });

  test.each(mayFit)('may still fit %s', (_, hosts) => {
    expect(whyNeverFits(LARGE, { hosts, only: undefined, class: 'interactive' })).toBeUndefined();
    expect(whyNeverFits(LARGE, { hosts, only: undefined, class: 'batch' })).toBeUndefined();
  });

  test('of a batch waits for a host that was never heard, and a single image is told', () => {
    const hosts = [having('a'), unheard];
    expect(whyNeverFits(LARGE, { hosts, only: undefined, class: 'batch' })).toBeUndefined();
    expect(whyNeverFits(LARGE, { hosts, only: undefined, class: 'interactive' })?.message).toMatch(/b: not connected/);
  });

  test('for one host is not helped by another', () => {
    const hosts = [having('a'), having('b', unlimited)];
    expect(whyNeverFits(LARGE, { hosts, only: 'a', class: 'batch' })?.message).not.toContain('b: ');
    expect(whyNeverFits(LARGE, { hosts, only: 'b', class: 'batch' })).toBeUndefined();
  });

  test('fits at the size that is said to fit', () => {
    expect(whyNeverFits(SMALL, { hosts: [having('a')], only: undefined, class: 'batch' })).toBeUndefined();
  });
});

describe('an order', () => {
  const order = (...requests: (typeof LARGE)[]) => ({
    ...{ kind: 'generate' as const, class: 'batch' as const, order: 'fifo' as const, client: 'test' },
    ...{ maxConcurrent: undefined, host: undefined },
    jobs: requests.map((each, index) => ({ index, request: each, directory: '/tmp', name: undefined })),
  });

  test('is refused when none of its jobs ever fits, and not for some of them', () => {
    expect(whyHopeless(order(LARGE, LARGE), [having('a')])?.code).toBe('NO_HOST');
    expect(whyHopeless(order(LARGE, SMALL), [having('a')])).toBeUndefined();
  });

  test('for a host that drains is refused with the way out; others avoid it, and one for nobody in particular waits', () => {
    const a = host('a', { snap: { isDraining: true, models: [model(unlimited)] } });
    const b = having('b', unlimited);
    const forHost = (name: string | undefined) => ({ ...order(LARGE), host: name });
    for (const jobClass of ['interactive', 'batch'] as const) {
      const error = whyHopeless({ ...forHost('a'), class: jobClass }, [a, b]);
      expect(error?.code).toBe('NO_HOST');
      expect(error?.message).toBe(
        'a is draining: it finishes its jobs and takes no new ones. Type `gantry resume a` to end that, or leave `host` out, ' +
          'so that another one does it.',
      );
    }
    expect(whyHopeless(forHost('a'), [a])?.message).toMatch(/`gantry resume a` to end that\.$/);
    expect(whyHopeless(forHost('b'), [a, b])).toBeUndefined();
    expect(whyHopeless(forHost(undefined), [a, b])).toBeUndefined();
    expect(whyHopeless(forHost(undefined), [a])).toBeUndefined();
  });
});
