import { execa } from 'execa';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { rm, writeFile } from 'node:fs/promises';
import smi from 'node-nvidia-smi';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import { parseDeviceList } from '../../agent/gpu/smi-rows.ts';
import { migInstances, parseSmiXml } from '../../agent/gpu/smi-xml.ts';
import { type Marker, startTimeOf } from '../../scripts/sim/lib/ledger.ts';
import type { Fault } from '../../scripts/sim/lib/smi-fault.ts';
import { isOpenAfter, SimHost, valueAt } from './sim-server.ts';

const BARE = '--format=csv,noheader,nounits';
const ALL_FIELDS =
  'timestamp,index,uuid,name,memory.total,memory.used,memory.free,memory.reserved,utilization.gpu,temperature.gpu,power.draw,pstate';

test('the loop command of the agent gets a line per GPU and tick', async () => {
  await using host = await SimHost.create();
  host.plant(1_000);
  const child = spawn('dist/sim/nvidia-smi', [`--query-gpu=${ALL_FIELDS}`, BARE, '-lms', '50'], {
    env: { ...process.env, GANTRY_SIM_LEDGER: host.dir },
  });
  const ended = once(child, 'exit');
  const lines: string[] = [];
  for await (const line of createInterface(child.stdout)) if (lines.push(line) === 5) break;
  child.kill('SIGTERM');
  await ended;
  expect(lines[0]).toMatch(
    /^\d{4}\/\d\d\/\d\d \d\d:\d\d:\d\d\.\d{3}, 0, GPU-one, Simulated H100, 80000, 1000, 78500, 500, 0, \d+, [\d.]+, P0$/,
  );
  expect(lines.map((line) => line.split(', ')[1])).toEqual(['0', '1', '0', '1', '0']);
});

test('a GPU is fully used while an engine notes that it is busy', async () => {
  await using host = await SimHost.create();
  const startTime = startTimeOf(process.pid) ?? '';
  host.ledger.note({ pid: process.pid, startTime, gpuUuid: 'GPU-two', usedMiB: 10, name: 'x', isBusy: true });
  const { stdout } = await host.nvidiaSmi('--query-gpu=utilization.gpu,driver_version', BARE);
  expect(stdout).toBe('0, 580.95.05\n100, 580.95.05');
});

test('used, free and reserved add up to the total even when the notes exceed it', async () => {
  await using host = await SimHost.create();
  host.plant(90_000);
  const { stdout } = await host.nvidiaSmi('--query-gpu=memory.total,memory.used,memory.free,memory.reserved', BARE);
  expect(stdout.split('\n')[0]).toBe('80000, 79500, 0, 500');
});

test('headers and units come unless they are turned off', async () => {
  await using host = await SimHost.create();
  const { stdout } = await host.nvidiaSmi('--query-gpu=index,memory.total', '--format=csv', '-i', 'GPU-two');
  expect(stdout).toBe('index, memory.total [MiB]\n1, 46000 MiB');
});

test('compute apps: one row per process and GPU, nothing that is dead', async () => {
  await using host = await SimHost.create();
  host.plant(1_000);
  host.plant(200, 'GPU-two');
  const { stdout } = await host.nvidiaSmi('--query-compute-apps=pid,gpu_uuid,used_gpu_memory,process_name', BARE);
  expect(stdout.split('\n')).toEqual([
    `${process.pid}, GPU-one, 1000, foreign`,
    `${process.pid}, GPU-two, 200, foreign`,
  ]);
});

test.each([
  ['an unknown field', ['--query-gpu=index,colour', BARE], 2, 'Field "colour" is not a valid field to query.'],
  ['an unknown process field', ['--query-compute-apps=pid,colour', BARE], 2, 'Field "colour" is not a valid field'],
  ['an unknown GPU', ['--query-gpu=index', BARE, '-i', 'GPU-none'], 6, 'No devices were found'],
  ['an unknown option', ['--colour'], 2, 'Invalid combination of input arguments'],
])('%s ends with its code', async (_, args, exitCode, text) => {
  await using host = await SimHost.create();
  const result = await host.nvidiaSmi(...args);
  expect(result.exitCode).toBe(exitCode);
  expect(result.stdout).toContain(text);
});

test('a host without GPUs has no devices', async () => {
  await using host = await SimHost.create([]);
  expect(await host.nvidiaSmi('-L')).toMatchObject({ exitCode: 6, stdout: 'No devices were found' });
});

test('without a ledger there is no driver', async () => {
  const result = await execa('dist/sim/nvidia-smi', ['-L'], { reject: false, env: { GANTRY_SIM_LEDGER: undefined } });
  expect(result.exitCode).toBe(9);
  expect(result.stdout).toContain("couldn't communicate");
});

test('-L lists the GPUs', async () => {
  await using host = await SimHost.create();
  expect((await host.nvidiaSmi('-L')).stdout.split('\n')[1]).toBe('GPU 1: Simulated L40S (UUID: GPU-two)');
});

test('node-nvidia-smi reads the inventory', async () => {
  await using host = await SimHost.create();
  host.plant(1_000);
  const before = { path: process.env['PATH'], ledger: process.env['GANTRY_SIM_LEDGER'] };
  process.env['PATH'] = `${resolve('dist/sim')}:${before.path}`;
  process.env['GANTRY_SIM_LEDGER'] = host.dir;
  try {
    const data = await promisify(smi)();
    const at = (path: string) => valueAt(data, `nvidia_smi_log.${path}`);
    expect([at('driver_version'), at('attached_gpus')]).toEqual(['580.95.05', '2']);
    expect(at('gpu.0')).toMatchObject({
      product_name: 'Simulated H100',
      uuid: 'GPU-one',
      fb_memory_usage: { total: '80000 MiB', reserved: '500 MiB', used: '1000 MiB', free: '78500 MiB' },
      processes: { process_info: { pid: String(process.pid), used_memory: '1000 MiB' } },
    });
  } finally {
    process.env['PATH'] = before.path;
    if (before.ledger === undefined) delete process.env['GANTRY_SIM_LEDGER'];
    else process.env['GANTRY_SIM_LEDGER'] = before.ledger;
  }
});

const GPU_QUERY = ['--query-gpu=index,uuid,memory.total,memory.free', BARE];

async function fault(host: SimHost, wanted: Fault | undefined): Promise<void> {
  const path = join(host.dir, 'nvidia-smi.fault.json');
  await (wanted === undefined ? rm(path) : writeFile(path, JSON.stringify(wanted)));
}

describe('the fault file', () => {
  test('makes it fail or hang, until it is gone', async () => {
    await using host = await SimHost.create();
    await fault(host, { mode: 'exit', code: 15, text: 'GPU is lost' });
    expect(await host.nvidiaSmi('-L')).toMatchObject({ exitCode: 15, stdout: 'GPU is lost' });
    await fault(host, { mode: 'hang' });
    const hanging = host.nvidiaSmi('-L');
    expect(await isOpenAfter(hanging, 400)).toBe(true);
    await fault(host, undefined);
    expect((await hanging).exitCode).toBe(0);
  });

  test('makes it ignore SIGTERM while it hangs', async () => {
    await using host = await SimHost.create();
    const loop = host.nvidiaSmi(...GPU_QUERY, '-lms', '20');
    let lines = 0;
    loop.stdout?.on('data', () => (lines += 1));
    while (lines === 0) expect(await isOpenAfter(loop, 20)).toBe(true);
    await fault(host, { mode: 'hang', ignoresTerm: true });
    // It is deaf from the first tick on that it does not answer.
    for (let before = -1; before !== lines;) {
      before = lines;
      expect(await isOpenAfter(loop, 400)).toBe(true);
    }
    loop.kill('SIGTERM');
    expect(await isOpenAfter(loop, 300)).toBe(true);
    loop.kill('SIGKILL');
    expect((await loop).signal).toBe('SIGKILL');
  });

  test('is for some questions only where it says so', async () => {
    await using host = await SimHost.create();
    await fault(host, { mode: 'exit', code: 9, text: 'no', only: ['apps', 'xml'] });
    const codes = await Promise.all([
      host.nvidiaSmi('-L'),
      host.nvidiaSmi(...GPU_QUERY),
      host.nvidiaSmi('--query-compute-apps=pid', BARE),
      host.nvidiaSmi('-q', '-x'),
    ]);
    expect(codes.map(({ exitCode }) => exitCode)).toEqual([0, 0, 9, 9]);
  });

  test('takes one GPU off the bus: it spoils what includes it, and nothing else', async () => {
    await using host = await SimHost.create();
    await fault(host, { mode: 'lost', index: 1 });
    const lost = {
      exitCode: 15,
      stdout: expect.stringMatching(/device handle for GPU0000:02:00\.0: GPU is lost/) as string,
    };
    expect(await host.nvidiaSmi(...GPU_QUERY)).toMatchObject(lost);
    expect(await host.nvidiaSmi(...GPU_QUERY, '-i', 'GPU-two')).toMatchObject(lost);
    expect(await host.nvidiaSmi('--query-compute-apps=pid', BARE)).toMatchObject(lost);
    expect(await host.nvidiaSmi(...GPU_QUERY, '-i', '0')).toMatchObject({
      exitCode: 0,
      stdout: '0, GPU-one, 80000, 79500',
    });
    const list = await host.nvidiaSmi('-L');
    expect(list.stdout.split('\n')).toMatchObject(
      [/^GPU 0: .*GPU-one/, /GPU is lost/].map((line) => expect.stringMatching(line) as string),
    );
  });

  test('spoils cells, an answer, or only its exit code', async () => {
    await using host = await SimHost.create();
    await fault(host, { mode: 'cells', text: '[N/A]', fields: ['memory.free'], index: 1 });
    expect((await host.nvidiaSmi(...GPU_QUERY)).stdout).toBe('0, GPU-one, 80000, 79500\n1, GPU-two, 46000, [N/A]');
    await fault(host, { mode: 'cells', text: 'ERR!' });
    expect((await host.nvidiaSmi(...GPU_QUERY, '-i', '0')).stdout).toBe('0, GPU-one, ERR!, ERR!');
    await fault(host, { mode: 'half' });
    expect((await host.nvidiaSmi(...GPU_QUERY)).stdout).toBe('0, GPU-one, 80000, 79500');
    await fault(host, { mode: 'silent' });
    expect(await host.nvidiaSmi(...GPU_QUERY)).toMatchObject({ exitCode: 0, stdout: '' });
    await fault(host, { mode: 'warn', code: 14, text: 'WARNING: infoROM is corrupted' });
    const warned = await host.nvidiaSmi(...GPU_QUERY, '-i', '0');
    expect(warned).toMatchObject({ exitCode: 14, stdout: '0, GPU-one, 80000, 79500\nWARNING: infoROM is corrupted' });
  });

  test('makes it print a flood of garbage', async () => {
    await using host = await SimHost.create();
    await fault(host, { mode: 'garbage', bytes: 1_500_000 });
    const env = { GANTRY_SIM_LEDGER: host.dir };
    const { stdout } = await execa('dist/sim/nvidia-smi', GPU_QUERY, { env, encoding: 'buffer' });
    expect(stdout).toHaveLength(1_500_000);
  });
});

describe('what it shows of processes', () => {
  const APPS = ['--query-compute-apps=pid,used_gpu_memory', BARE];

  test.each<[Marker, string]>([
    ['hides-processes', ''],
    ['renumbers-pids', `${process.pid + 1_000_000}, 1000`],
    ['hides-memory-of-processes', `${process.pid}, [N/A]`],
  ])('%s', async (marker, expected) => {
    await using host = await SimHost.create();
    host.plant(1_000);
    await writeFile(join(host.dir, marker), '');
    expect((await host.nvidiaSmi(...APPS)).stdout).toBe(expected);
    expect((await host.nvidiaSmi(...GPU_QUERY)).stdout).toContain('78500'); // the memory itself is what it is
  });

  test('lists-lingering', async () => {
    await using host = await SimHost.create();
    host.ledger.note({
      pid: 4_000_000,
      startTime: '1',
      gpuUuid: 'GPU-one',
      usedMiB: 700,
      name: 'dead',
      lingerMs: 60_000,
    });
    expect((await host.nvidiaSmi(...APPS)).stdout).toBe('');
    await writeFile(join(host.dir, 'lists-lingering'), '');
    expect((await host.nvidiaSmi(...APPS)).stdout).toBe('4000000, 700');
  });
});

test('of a GPU cut into instances it shows no memory but theirs, and UUIDs in the list only', async () => {
  const mig = [{ uuid: 'MIG-a', index: 0, gpuInstance: 3, computeInstance: 0, profile: '1g.12gb', totalMiB: 12_000 }];
  await using host = await SimHost.create([
    { uuid: 'GPU-one', index: 0, name: 'Simulated H100', totalMiB: 80_000, mig },
  ]);
  host.plant(1_000, 'MIG-a');
  const cells = '--query-gpu=memory.free,mig.mode.current';
  expect((await host.nvidiaSmi(cells, BARE)).stdout).toBe('[Insufficient Permissions], Enabled');
  expect((await host.nvidiaSmi('-L')).stdout).toMatch(/\n {2}MIG 1g\.12gb\s+Device {2}0: \(UUID: MIG-a\)$/);
  const { stdout } = await host.nvidiaSmi('-q', '-x');
  expect(stdout).not.toContain('MIG-a');
  const log = parseSmiXml(`${stdout}\n`);
  expect(log && migInstances(log, parseDeviceList((await host.nvidiaSmi('-L')).stdout + '\n'))).toMatchObject([
    { uuid: 'MIG-a', totalMiB: 12_000, usedMiB: 1_000, freeMiB: 11_000 },
  ]);
});

test('an integrated device has no memory of its own', async () => {
  await using host = await SimHost.create([
    { uuid: 'GPU-one', index: 0, name: 'Simulated GB10', totalMiB: 128_000, isUnified: true },
  ]);
  expect((await host.nvidiaSmi('--query-gpu=memory.total,memory.free', '--format=csv,noheader')).stdout).toBe(
    '[N/A], [N/A]',
  );
});
