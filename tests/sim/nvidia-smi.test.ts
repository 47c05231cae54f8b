import { execa } from 'execa';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { rm, writeFile } from 'node:fs/promises';
import smi from 'node-nvidia-smi';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { startTimeOf } from '../../scripts/sim/lib/ledger.ts';
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

test('the fault file makes it fail or hang, until it is gone', async () => {
  await using host = await SimHost.create();
  const fault = join(host.dir, 'nvidia-smi.fault.json');
  await writeFile(fault, JSON.stringify({ mode: 'exit', code: 15, text: 'GPU is lost' }));
  expect(await host.nvidiaSmi('-L')).toMatchObject({ exitCode: 15, stdout: 'GPU is lost' });
  await writeFile(fault, JSON.stringify({ mode: 'hang' }));
  const hanging = host.nvidiaSmi('-L');
  expect(await isOpenAfter(hanging, 400)).toBe(true);
  await rm(fault);
  expect((await hanging).exitCode).toBe(0);
});
