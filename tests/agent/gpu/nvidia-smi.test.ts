import { readFile } from 'node:fs/promises';
import { describe, expect, test } from 'vitest';
import {
  FIELD_LADDER,
  healthOf,
  isUnknownField,
  loopArgs,
  parseComputeApps,
  parseGpuLine,
} from '../../../agent/gpu/nvidia-smi.ts';

const golden = (name: string): Promise<string> => readFile(`tests/golden/nvidia-smi/${name}`, 'utf8');

async function rows(name: string, rung: 0 | 1 | 2 = 0) {
  return (await golden(name)).split('\n').flatMap((line) => parseGpuLine(line, FIELD_LADDER[rung]) ?? []);
}

describe('a row of --query-gpu', () => {
  test('has all numbers on a data-centre card', async () => {
    const [first, second] = await rows('two-h100.csv');
    expect(first).toEqual({
      index: 0,
      uuid: 'GPU-8f6a2c1e-0d5b-4c3a-9e7f-112233445566',
      name: 'NVIDIA H100 80GB HBM3',
      totalMiB: 81_559,
      usedMiB: 25_395,
      freeMiB: 55_614,
      utilisationPercent: 97,
      temperatureC: 61,
      powerW: 512.34,
      isMemoryUnsupported: false,
    });
    expect(second).toMatchObject({ index: 1, usedMiB: 4 });
  });

  test('has null for what a card does not report', async () => {
    expect(await rows('no-power.csv')).toMatchObject([{ powerW: null, freeMiB: 3_979 }]);
  });

  test('tells unified memory from memory that may not be read', async () => {
    expect(await rows('unified-gb10.csv')).toMatchObject([{ totalMiB: null, isMemoryUnsupported: true }]);
    expect(await rows('mig-parent.csv')).toMatchObject([{ totalMiB: null, isMemoryUnsupported: false }]);
  });

  test('has null, and never 0, for every kind of error in a cell', async () => {
    const nothing = { utilisationPercent: null, temperatureC: null, powerW: null };
    expect(await rows('errors-in-cells.csv')).toMatchObject([{ ...nothing, freeMiB: 23_180 }]);
  });

  test('has memory on the last rung of the ladder', async () => {
    expect(await rows('minimal.csv', 2)).toMatchObject([{ name: 'Tesla K80', freeMiB: 11_441, temperatureC: null }]);
  });

  test.each(['unknown-field.txt', 'no-driver.txt', 'lost.txt', 'mismatch.txt', 'no-devices.txt', 'compute-apps.csv'])(
    'is not found in %s',
    async (name) => {
      expect(await rows(name)).toEqual([]);
    },
  );

  test('is not made of half a line or of garbage', async () => {
    const [line = ''] = (await golden('two-h100.csv')).split('\n');
    for (let length = 0; length < line.length - 4; length += 1) {
      expect(parseGpuLine(line.slice(0, length), FIELD_LADDER[0])).toBeUndefined();
    }
    expect(parseGpuLine('\u0000\ufffd,,,,,,,,,,,', FIELD_LADDER[0])).toBeUndefined();
  });
});

test('compute apps keep rows whose memory is hidden', async () => {
  expect(parseComputeApps(await golden('compute-apps.csv'))).toEqual([
    { pid: 4242, gpuUuid: 'GPU-8f6a2c1e-0d5b-4c3a-9e7f-112233445566', usedMiB: 24_810 },
    { pid: 4311, gpuUuid: 'GPU-1b2c3d4e-5f60-4711-8899-aabbccddeeff', usedMiB: null },
  ]);
  expect(parseComputeApps('No running processes found\n')).toEqual([]);
});

describe('an exit without readings', () => {
  const ROWS: [file: string, exitCode: number | undefined, health: string, says: RegExp][] = [
    ['no-driver.txt', 9, 'unreadable', /couldn't communicate/],
    ['lost.txt', 15, 'lost', /GPU is lost/],
    ['lost.txt', 255, 'lost', /GPU is lost/],
    ['mismatch.txt', 18, 'unreadable', /version mismatch/],
    ['no-devices.txt', 6, 'absent', /No devices/],
    ['container-lost-device.txt', 255, 'unreadable', /Unknown Error/],
  ];
  test.each(ROWS)('%s with %s means %s', async (file, exitCode, health, says) => {
    const found = healthOf({ exitCode, stdout: await golden(file), stderr: '' });
    expect(found.health).toBe(health);
    expect(found.reason).toMatch(says);
  });

  test('of a program that is not there means absent', () => {
    const output = { exitCode: undefined, stdout: '', stderr: 'Error: spawn nvidia-smi ENOENT' };
    expect(healthOf(output).health).toBe('absent');
    expect(healthOf(output).reason).toMatch(/nvidia-smi was not found.*gpu\.nvidia_smi/);
  });

  test('for an unknown field asks for the next rung', async () => {
    expect(isUnknownField({ exitCode: 2, stdout: await golden('unknown-field.txt'), stderr: '' })).toBe(true);
    expect(isUnknownField({ exitCode: 9, stdout: await golden('no-driver.txt'), stderr: '' })).toBe(false);
  });
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
