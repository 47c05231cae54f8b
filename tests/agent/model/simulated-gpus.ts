import { chmod, mkdir, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import type { ConfiguredModel } from '../../../agent/configured-model.ts';
import type { LedgerInstance } from '../../../scripts/sim/lib/ledger.ts';

/**
 * Of a residency on simulated engines. What is waited for on purpose is short; what ends a wait that is in vain is longer
 * than a busy machine needs for anything, and a test that is about such an end gives its own.
 */
export const TIMES = {
  stopGraceMs: 400,
  vramBackMs: 20_000,
  vramBackOffloadedMs: 40_000,
  startDeadlineMs: 60_000,
  stallMs: 60_000,
  jobFloorMs: 30_000,
  jobLimitMs: 600_000,
  healthPollMs: 50,
  retryFirstMs: 100,
  moveAnswerMs: 100_000,
  heldAwayMs: 600_000,
};

/** What a GPU may be cut into. */
export const INSTANCES: readonly LedgerInstance[] = ['a', 'b'].map((letter, index) => ({
  uuid: `MIG-${letter}`,
  index,
  gpuInstance: index + 3,
  computeInstance: 0,
  profile: '1g.12gb',
  totalMiB: 12_000,
}));

/** A ledger with these GPUs in the directory, and the nvidia-smi that reads it: its path. */
export async function simulateGpus(directory: string, gpusMiB: readonly number[]): Promise<string> {
  const ledger = join(directory, 'ledger');
  await mkdir(ledger, { recursive: true });
  await mkdir(join(directory, 'bin'), { recursive: true });
  const gpus = gpusMiB.map((totalMiB, index) => ({
    uuid: `GPU-${index}`,
    index,
    name: 'Simulated GPU',
    totalMiB,
    reservedMiB: 0,
  }));
  await writeFile(join(ledger, 'gpus.json'), JSON.stringify(gpus));
  const smi = join(directory, 'bin/nvidia-smi');
  const [quick, simulator] = [resolve('tests/agent/model/quick-smi.sh'), resolve('dist/sim/nvidia-smi')];
  await writeFile(smi, `#!/bin/sh\nLEDGER='${ledger}'\nSIMULATOR='${simulator}'\n. '${quick}'\n`);
  await chmod(smi, 0o755);
  return smi;
}

/** The same model, whose server notes its memory there. */
export function withLedger(model: ConfiguredModel, directory: string): ConfiguredModel {
  if (model.launch.kind === 'attached') return model;
  const env = { ...model.launch.env, GANTRY_SIM_LEDGER: join(directory, 'ledger') };
  return { ...model, launch: { ...model.launch, env } };
}
