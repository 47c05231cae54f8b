import { describe, expect, test } from 'vitest';
import type { GpuReading } from '../../../agent/gpu/gpu-sampler.ts';
import type { VramLook } from '../../../agent/gpu/vram-measure.ts';
import type { Numbering } from '../../../agent/model/pid-numbering.ts';
import { numberingOf } from '../../../agent/model/pid-numbering.ts';
import type { Holder, Person } from '../../../agent/model/vram-owners.ts';
import { ownersOf } from '../../../agent/model/vram-owners.ts';

const UUID = 'GPU-0';

const READING: GpuReading = {
  ...{ index: 0, uuid: UUID, name: 'GPU', totalMiB: 24_000, usedMiB: 10_000, freeMiB: 14_000 },
  ...{ utilisationPercent: 0, temperatureC: 30, powerW: 50, health: 'ok', ageMs: 0 },
};

const app = (pid: number, usedMiB: number | null, name?: string) => ({ pid, gpuUuid: UUID, usedMiB, name });

function owners(
  apps: VramLook['apps'],
  {
    holders = [],
    people = {},
    ...look
  }: { holders?: Holder[]; people?: Record<number, Person>; isNumberedHere?: boolean },
) {
  return ownersOf(READING, {
    look: { readings: [READING], apps, isNumberedHere: true, ...look },
    holders,
    personOf: (pid) => people[pid],
  });
}

describe('whose VRAM it is', () => {
  const server: Holder = { gpus: [UUID], pids: [7], heldMiB: 5_000 };

  test('ours by the rows of its processes, on this GPU only', () => {
    const elsewhere = { ...app(7, 900), gpuUuid: 'GPU-1' };
    expect(owners([app(7, 9_500), elsewhere], { holders: [server] })).toEqual({ oursMiB: 9_500, foreign: [] });
  });

  test('ours by what it took, where its rows have no memory', () => {
    const found = owners([app(7, null), app(8, null, 'python3')], { holders: [{ ...server, heldMiB: 9_000 }] });
    expect(found).toEqual({ oursMiB: 9_000, foreign: [{ pid: 8, name: 'python3', usedMiB: 0 }] });
  });

  test('split evenly where a server on two GPUs has no rows', () => {
    expect(owners([], { holders: [{ ...server, gpus: [UUID, 'GPU-1'], heldMiB: 19_000 }] }).oursMiB).toBe(9_500);
  });

  test.each<[string, Person | undefined, string | undefined, string]>([
    ['its own title', { lives: true, title: 'VLLM::EngineCore' }, 'python3', 'VLLM::EngineCore'],
    ["nvidia-smi's name where /proc is closed", { lives: true, title: undefined }, 'python3', 'python3'],
    ['unknown where neither knows it', { lives: true, title: undefined }, undefined, 'unknown'],
    ['memory without an owner when it is gone', { lives: false, title: undefined }, undefined, 'unowned VRAM'],
    ['and whose it was', { lives: false, title: undefined }, 'python3', 'unowned VRAM, was python3'],
    ["nvidia-smi's name when it came and went between two questions", undefined, 'python3', 'python3'],
  ])('a foreign process has %s', (_, person, name, shown) => {
    const people = person === undefined ? {} : { 8: person };
    expect(owners([app(8, 9_500, name)], { people }).foreign).toEqual([{ pid: 8, name: shown, usedMiB: 9_500 }]);
  });

  test('nobody is named by a number of another machine, and the rest is said', () => {
    const found = owners([app(1_000_007, 5_000, 'ours'), app(1_000_008, 5_000)], {
      holders: [server],
      isNumberedHere: false,
    });
    expect(found).toMatchObject({ oursMiB: 5_000, foreign: [] });
    expect(found.unlisted).toMatch(/^5000 MiB are in use by others/);
  });

  test('a display is no news, more than that is', () => {
    expect(owners([app(8, 9_100)], {}).unlisted).toBeUndefined();
    expect(owners([app(8, 8_900)], {}).unlisted).toMatch(/^1100 MiB are in use by nothing that nvidia-smi lists/);
  });
});

describe('the numbers that the driver lists', () => {
  const facts = {
    ours: new Set<number>(),
    listed: [],
    before: new Set<number>(),
    last: { kind: 'here', isProven: false } satisfies Numbering,
    isFirstNamespace: true,
  };
  const ROWS: [rule: string, more: Partial<Parameters<typeof numberingOf>[0]>, expected: Numbering['kind']][] = [
    ['are ours on a machine without containers', { listed: [{ pid: 8, lives: true }] }, 'here'],
    ['are ours there also with a context that was not cleaned up', { listed: [{ pid: 8, lives: false }] }, 'here'],
    [
      'are ours with an old one of these when a server starts',
      { ours: new Set([7]), listed: [{ pid: 8, lives: false }], before: new Set([8]) },
      'here',
    ],
    [
      'are not, when a number of nobody appears while a server of ours has none',
      { ours: new Set([7]), listed: [{ pid: 1_000_007, lives: false }] },
      'elsewhere',
    ],
    [
      'are ours once one of ours was listed',
      {
        ours: new Set([7]),
        listed: [
          { pid: 7, lives: true },
          { pid: 9, lives: false },
        ],
      },
      'here',
    ],
    [
      'stay ours then',
      {
        last: { kind: 'here', isProven: true },
        ours: new Set([7]),
        listed: [{ pid: 9, lives: false }],
        isFirstNamespace: false,
      },
      'here',
    ],
    [
      'are not in a container with a number of nobody',
      { listed: [{ pid: 9, lives: false }], isFirstNamespace: false },
      'elsewhere',
    ],
    [
      'may be in a container where each of them lives',
      { listed: [{ pid: 9, lives: true }], isFirstNamespace: false },
      'here',
    ],
    ['stay strange until one of ours is listed', { last: { kind: 'elsewhere', isProven: false } }, 'elsewhere'],
    [
      'are ours after all when one of ours is listed',
      { last: { kind: 'elsewhere', isProven: false }, ours: new Set([7]), listed: [{ pid: 7, lives: true }] },
      'here',
    ],
  ];
  test.each(ROWS)('%s', (_, more, expected) => {
    expect(numberingOf({ ...facts, ...more }).kind).toBe(expected);
  });
});
