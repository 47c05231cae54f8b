import { execa } from 'execa';
import { writeFile } from 'node:fs/promises';
import { expect } from 'vitest';
import { GpuSampler } from '../../agent/gpu/gpu-sampler.ts';
import {
  COMPUTE_APPS_ARGS,
  FIELD_LADDER,
  parseComputeApps,
  parseGpuLine,
  queryArgs,
  wholeLines,
} from '../../agent/gpu/smi-rows.ts';
import { createLog } from '../../shared/log.ts';
import { gpuTest } from './machine.ts';

const GOLDEN = new URL('../golden/nvidia-smi/', import.meta.url);
const isRecording = process.env['GANTRY_RECORD_GOLDEN'] === '1';
const signal = new AbortController().signal;

gpuTest('the sampler reads every GPU of this machine', async () => {
  await using sampler = startSampler();
  await sampler.firstSample(signal);
  const readings = await sampler.sampleNow(signal);
  const { stdout } = await execa('nvidia-smi', ['-L']);
  const listed = [...stdout.matchAll(/^GPU \d+: (.+) \(UUID: (GPU-[\w-]+)\)$/gm)].map(([, name, uuid]) => ({
    name,
    uuid,
  }));
  expect(readings.filter(({ uuid }) => uuid.startsWith('GPU-')).map(({ name, uuid }) => ({ name, uuid }))).toEqual(
    listed,
  );
  for (const { health, totalMiB, freeMiB, usedMiB, temperatureC, name } of readings) {
    expect(health, name).toBe('ok');
    expect(freeMiB, name).toBeGreaterThan(0);
    expect((freeMiB ?? 0) + (usedMiB ?? 0), name).toBeLessThanOrEqual(totalMiB ?? 0);
    expect(temperatureC, name).toBeGreaterThan(0);
  }
  expect((await sampler.inventory()).driver).toMatch(/^\d+\.\d+/);
});

gpuTest.each([
  ['query-gpu', queryArgs(FIELD_LADDER[0])],
  ['query-gpu-without-mig', queryArgs(FIELD_LADDER[1])],
  ['query-gpu-minimal', queryArgs(FIELD_LADDER[2])],
])('what it prints for %s is understood to the last line', async (name, args) => {
  const stdout = await printed(name, args);
  const [, list = ''] = (args[0] ?? '').split('=');
  const lines = wholeLines(`${stdout}\n`);
  expect(lines.length).toBeGreaterThan(0);
  for (const line of lines) {
    expect(parseGpuLine(line, list.split(',')), line).toMatchObject({
      uuid: expect.stringMatching(/^GPU-/) as string,
      totalMiB: expect.any(Number) as number,
      freeMiB: expect.any(Number) as number,
    });
  }
});

gpuTest('the list of processes, the inventory and the list of devices are understood or recorded', async () => {
  expect(parseComputeApps(`${await printed('compute-apps', [...COMPUTE_APPS_ARGS])}\n`)).toBeInstanceOf(Array);
  expect(await printed('inventory', ['-q', '-x'])).toContain('<nvidia_smi_log>');
  expect(await printed('list', ['-L'])).toMatch(/^GPU 0: /);
});

/** What the real program prints; kept beside the invented ones where GANTRY_RECORD_GOLDEN=1 asks for it. */
async function printed(name: string, args: readonly string[]): Promise<string> {
  const { stdout } = await execa('nvidia-smi', args);
  if (isRecording) await writeFile(new URL(`real-${name}.txt`, GOLDEN), `${stdout}\n`);
  return stdout;
}

function startSampler(): GpuSampler {
  return new GpuSampler({
    ...{ nvidiaSmi: 'nvidia-smi', sampleIntervalMs: 500, silenceMs: 10_000, queryTimeoutMs: 5_000 },
    log: createLog({ name: 'gpu-test', to: 'stderr', level: 'warn' }),
    onSample: () => undefined,
  });
}
