import { describe, expect, test } from 'vitest';
import { hostProblems, readiness } from '../../agent/host-problems.ts';
import type { GpuStatus } from '../../shared/host-snapshot.ts';
import { omni } from './model/model-host.ts';

type Facts = Parameters<typeof hostProblems>[0];

const GPU: GpuStatus = {
  ...{ uuid: 'GPU-0', index: 0, name: 'x', totalMiB: 24_000, usedMiB: 0, freeMiB: 24_000, oursMiB: 0, foreign: [] },
  ...{ utilisationPercent: 0, temperatureC: 40, powerW: 30, health: 'ok', ageMs: 100, isDegraded: false },
};
const DEGRADED = { ...GPU, isDegraded: true, degraded: '8000 MiB of pid 7 did not come back.' };

/** What is known of a host with one model of its own. */
function facts(
  gpus: readonly GpuStatus[],
  more: { refusal?: string; reason?: string; foreign?: string; damaged?: string; away?: string } = {},
): Facts {
  const { refusal, reason, foreign, damaged, away } = more;
  return {
    exchange: { refusal },
    sampler: {
      readings: () => gpus.map((gpu) => ({ ...gpu })),
      problem: reason === undefined ? undefined : { reason, sinceMs: 0 },
    } as unknown as Facts['sampler'], // only what is asked for
    residency: {
      slots: [{ slotId: 'a', model: omni('a') }],
      gpuStatus: () => [...gpus],
      problems: () => (foreign === undefined ? [] : [foreign]),
      modelStatus: () => [
        { isAttached: true, state: away === undefined ? 'ready' : 'failed', detail: away ?? 'well' },
        { isAttached: false, state: 'failed', detail: 'our own, which the model says' },
      ],
    },
    damaged: { sentences: () => (damaged === undefined ? [] : [damaged]) },
  };
}

describe('the problems of a host', () => {
  test.each([
    ['none', facts([GPU]), []],
    ['a refusal of all work', facts([GPU], { refusal: 'The host is draining.' }), ['The host is draining.']],
    ['a driver that does not answer', facts([], { reason: 'it hangs' }), ['No GPU can be read: it hangs.']],
    ['memory that did not come back', facts([GPU, DEGRADED]), [`GPU 0: ${DEGRADED.degraded}`]],
    ['a GPU that is lost', facts([{ ...GPU, health: 'lost' }]), [expect.stringMatching(/^GPU 0: .*Restart/)]],
    [
      'a note that names its GPU',
      facts([GPU, { ...GPU, index: 1, health: 'lost', note: 'GPU 1 is lost.' }]),
      ['GPU 1 is lost.'],
    ],
    [
      'the last GPU, whose loss is why none can be read',
      facts([{ ...GPU, health: 'lost', note: 'GPU 0 is lost. Reboot.' }], { reason: 'GPU 0 is lost. Reboot.' }),
      ['No GPU can be read: GPU 0 is lost. Reboot.'],
    ],
    ['a damaged file', facts([GPU], { damaged: 'learned.json was damaged.' }), ['learned.json was damaged.']],
    ['a server of somebody else that is not there', facts([GPU], { away: 'Nobody listens.' }), ['Nobody listens.']],
    ['what other programs cost', facts([GPU], { foreign: 'python3 holds 20 GiB.' }), ['python3 holds 20 GiB.']],
  ])('%s', (_, known, problems) => {
    expect(hostProblems(known)).toEqual(problems);
  });

  test('the first moments are one for readyz alone', () => {
    expect(hostProblems(facts([]))).toEqual([]);
    expect(readiness(facts([]))()).toEqual(['No GPU can be read: nvidia-smi has not answered yet.']);
  });

  test('one GPU out of two does not make a host unready; the last one does', () => {
    expect(readiness(facts([GPU, DEGRADED]))()).toEqual([]);
    expect(readiness(facts([DEGRADED]))()).toEqual([`GPU 0: ${DEGRADED.degraded}`]);
  });
});
