import type { MetricFacts } from '../../../agent/http/metrics.ts';
import type { HostSnapshot } from '../../../shared/host-snapshot.ts';

const GPU = {
  ...{
    uuid: 'GPU-a',
    index: 0,
    name: 'L4',
    totalMiB: 24_564,
    usedMiB: 10_000,
    freeMiB: 14_564,
    utilisationPercent: 50,
  },
  ...{ temperatureC: null, powerW: 71, health: 'ok', ageMs: 3, isDegraded: false, oursMiB: 9_000 },
  foreign: [{ pid: 7, name: 'blender --secret', usedMiB: 1_000 }],
};
const MODEL = {
  ...{ model: 'Qwen/Qwen-Image@abc', alias: 'qwen', state: 'ready', detail: 'a red fox', heldMiB: 9_000 },
  ...{ loads: 2, wakes: 1, offloads: 1, releases: 0, slots: [{ slotId: 'qwen', phase: 'running', freeInMs: 1 }] },
};

/** What an agent with one GPU, one model and a few jobs behind it would say. Only what is read is there. */
export const FACTS: MetricFacts = {
  snapshot: {
    ...{ agentVersion: '0.1.0', isDraining: false, problems: ['GPU 1: lost'], gpus: [GPU], models: [MODEL] },
    ...{ memory: { totalMiB: 64_000, freeMiB: 32_000 }, disk: { freeMiB: null } },
    offered: [{ model: 'Qwen/Qwen-Image@abc', class: 'batch', count: 12, workMs: 1 }],
  } as unknown as HostSnapshot,
  jobs: new Map([
    ['Qwen/Qwen-Image@abc', { done: 3, cancelled: 1, runMs: 4_500, failed: new Map([['INTERRUPTED' as const, 2]]) }],
    ['gone/model', { done: 1, cancelled: 0, runMs: 1_000, failed: new Map() }],
  ]),
  evictions: [{ model: 'qwen', by: 'offload', count: 4 }],
  isReady: true,
  links: 2,
};
