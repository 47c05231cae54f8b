import { describe, expect, test } from 'vitest';
import {
  FIELD_LADDER,
  loopArgs,
  parseComputeApps,
  parseDeviceList,
  parseGpuLine,
  wholeLines,
} from '../../../agent/gpu/smi-rows.ts';
import { golden, rowsOf } from './golden.ts';

const rows = (name: string, rung: 0 | 1 | 2 = 0) => rowsOf(golden(name), rung);

describe('a row of --query-gpu', () => {
  test('has all numbers on a data-centre card', () => {
    const [first, second] = rows('two-h100.csv');
    expect(first).toEqual({
      index: 0,
      uuid: 'GPU-8f6a2c1e-0d5b-4c3a-9e7f-112233445566',
      name: 'NVIDIA H100 80GB HBM3',
      busId: '0000:1B:00.0',
      totalMiB: 81_559,
      usedMiB: 25_395,
      freeMiB: 55_614,
      utilisationPercent: 97,
      temperatureC: 61,
      powerW: 512.34,
      isMig: false,
      isMemoryUnsupported: false,
      trouble: undefined,
    });
    expect(second).toMatchObject({ index: 1, usedMiB: 4 });
  });

  test.each([
    ['one-rtx4090.csv', 1],
    ['two-h100.csv', 2],
    ['eight-a100.csv', 8],
    ['loop-three-ticks.csv', 6],
    ['inforom.csv', 1],
    ['lost-between-rows.csv', 1],
  ])('is found in %s %i times, and nothing is wrong with it', (name, count) => {
    const found = rows(name);
    expect(found).toHaveLength(count);
    expect(found.filter(({ trouble }) => trouble !== undefined)).toEqual([]);
  });

  test('has null for what a card does not report', () => {
    expect(rows('no-power.csv')).toMatchObject([{ powerW: null, freeMiB: 3_979, trouble: undefined }]);
  });

  test('has null, and never 0, for every kind of error in a cell', () => {
    const nothing = { utilisationPercent: null, temperatureC: null, powerW: null };
    expect(rows('errors-in-cells.csv')).toMatchObject([{ ...nothing, freeMiB: 23_180, trouble: undefined }]);
  });

  test.each([
    ['memory-unknown-error.csv', 'unreadable', /Unknown Error/],
    ['memory-err.csv', 'unreadable', /ERR!/],
    ['memory-no-permission.csv', 'unreadable', /Insufficient Permissions/],
    ['memory-wddm.csv', 'unreadable', /WDDM driver model/],
    ['memory-not-supported.csv', 'unreadable', /Not Supported/],
    ['memory-not-available.csv', 'unreadable', /N\/A/],
    ['requires-reset.csv', 'lost', /reset/],
  ])('without memory in %s cannot be used: %s', (name, health, reason) => {
    const [row] = rows(name);
    expect(row).toMatchObject({ totalMiB: null, freeMiB: null, trouble: { health } });
    expect(row?.trouble?.reason).toMatch(reason);
  });

  test('says that its GPU is lost, and the neighbour does not', () => {
    expect(rows('lost-in-cells.csv').map(({ trouble }) => trouble?.health)).toEqual([undefined, 'lost']);
  });

  test('of a GPU cut into instances is no trouble, though it has no memory', () => {
    expect(rows('mig-parent.csv')).toMatchObject([{ isMig: true, freeMiB: null, trouble: undefined }]);
  });

  test('is read on each rung of the ladder', () => {
    expect(rows('no-mig-field.csv', 1)).toMatchObject([{ freeMiB: 16_276, temperatureC: 28, isMig: false }]);
    expect(rows('minimal.csv', 2)).toMatchObject([{ name: 'Tesla K80', freeMiB: 11_441, busId: undefined }]);
  });

  test.each([
    'unknown-field.txt',
    'no-driver.txt',
    'lost.txt',
    'mismatch.txt',
    'no-devices.txt',
    'compute-apps.csv',
    'mig.xml',
    'blocked.txt',
  ])('is not found in %s', (name) => {
    expect(rows(name)).toEqual([]);
  });

  test('is not made of half a line or of garbage', () => {
    const [line = ''] = golden('two-h100.csv').split('\n');
    for (let length = 0; length < line.length; length += 1) {
      expect(rowsOf(line.slice(0, length))).toEqual([]); // without an end of line
      const isWhole = line.slice(0, length).split(',').length === FIELD_LADDER[0].length;
      expect(parseGpuLine(line.slice(0, length), FIELD_LADDER[0]) === undefined).toBe(!isWhole);
    }
    expect(parseGpuLine('\u0000\ufffd,,,,,,,,,,,', FIELD_LADDER[0])).toBeUndefined();
  });
});

describe('compute apps', () => {
  test('keep rows whose memory is hidden', () => {
    expect(parseComputeApps(golden('compute-apps.csv'))).toEqual([
      { pid: 4242, gpuUuid: 'GPU-8f6a2c1e-0d5b-4c3a-9e7f-112233445566', usedMiB: 24_810, name: 'python3' },
      { pid: 4311, gpuUuid: 'GPU-1b2c3d4e-5f60-4711-8899-aabbccddeeff', usedMiB: null, name: 'VLLM::EngineCore' },
    ]);
    expect(parseComputeApps(golden('compute-apps-wsl.csv'))).toMatchObject([
      { usedMiB: null, name: 'python3.12' },
      { usedMiB: null, name: undefined },
    ]);
  });

  test('have a name with a comma in it, and none where the driver has none', () => {
    expect(parseComputeApps(golden('compute-apps-comma.csv'))).toMatchObject([{ usedMiB: 512, name: 'trainer' }]);
    expect(parseComputeApps(golden('compute-apps-zombie.csv'))).toMatchObject([{ usedMiB: 20_480, name: undefined }]);
  });

  test('are none where it says so, and never half of a number', () => {
    expect(parseComputeApps(golden('compute-apps-none.txt'))).toEqual([]);
    expect(parseComputeApps('4242, GPU-8f6a, 248')).toEqual([]);
  });
});

test('the list of devices has GPUs, their instances, and no lost GPU', () => {
  const first = { gpuUuid: 'GPU-0c5b7a1d-2222-4333-8444-555566667777', index: 0 };
  expect(parseDeviceList(golden('list-mig.txt'))).toEqual([
    first,
    { ...first, mig: { uuid: 'MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f', device: 0, profile: '3g.20gb' } },
    { ...first, mig: { uuid: 'MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb', device: 1, profile: '1g.5gb' } },
    { gpuUuid: 'GPU-1b2c3d4e-5f60-4711-8899-aabbccddeeff', index: 1 },
  ]);
  expect(parseDeviceList(golden('list-one-lost.txt'))).toMatchObject([{ index: 0 }]);
});

test('the loop asks for all fields at its interval, and only for the GPUs that answer', () => {
  expect(loopArgs(FIELD_LADDER[2], { intervalMs: 1000, only: ['GPU-a', 'GPU-b'] })).toEqual([
    '--query-gpu=index,uuid,name,memory.total,memory.used,memory.free',
    '--format=csv,noheader,nounits',
    '-i',
    'GPU-a,GPU-b',
    '-lms',
    '1000',
  ]);
});

test('a line without an end is no line', () => {
  expect(wholeLines('a\nb\nc')).toEqual(['a', 'b']);
});
