import { chmod, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { pino } from 'pino';
import { GpuSampler } from '../../../agent/gpu/gpu-sampler.ts';
import { Ledger, type LedgerGpu } from '../../../scripts/sim/lib/ledger.ts';
import type { Fault } from '../../../scripts/sim/lib/smi-fault.ts';
import { pause } from '../../../shared/abort.ts';

export const never = new AbortController().signal;
const GOLDEN = resolve('tests/golden/nvidia-smi');

type StageOptions = { silenceMs?: number; queryTimeoutMs?: number; sampleIntervalMs?: number };

/** A real program in place of nvidia-smi, and the sampler that runs it. `$DIR` is its directory. */
export class Stage implements AsyncDisposable {
  readonly directory: string;
  readonly sampler: GpuSampler;

  private constructor(
    directory: string,
    { silenceMs = 10_000, queryTimeoutMs = 3_000, sampleIntervalMs = 50 }: StageOptions,
  ) {
    this.directory = directory;
    this.sampler = new GpuSampler({
      nvidiaSmi: join(directory, 'nvidia-smi'),
      ...{ sampleIntervalMs, silenceMs, queryTimeoutMs },
      log: pino({ level: 'silent' }),
      onSample: () => undefined,
    });
  }

  /** A shell script; none where it is empty. */
  static async open(script: string, options: StageOptions = {}): Promise<Stage> {
    const directory = await mkdtemp(join(tmpdir(), 'gantry-smi-'));
    if (script !== '') await install(directory, script);
    return new Stage(directory, options);
  }

  /** The simulated nvidia-smi, over a ledger with these GPUs. */
  static async simulated(
    gpus: readonly LedgerGpu[],
    { fault, ...options }: StageOptions & { fault?: Fault } = {},
  ): Promise<Stage> {
    const directory = await mkdtemp(join(tmpdir(), 'gantry-smi-'));
    await writeFile(join(directory, 'gpus.json'), JSON.stringify(gpus));
    if (fault !== undefined) await writeFile(join(directory, 'nvidia-smi.fault.json'), JSON.stringify(fault));
    await install(directory, `GANTRY_SIM_LEDGER="$DIR" exec '${resolve('dist/sim/nvidia-smi')}' "$@"`);
    return new Stage(directory, options);
  }

  get ledger(): Ledger {
    return new Ledger(this.directory);
  }

  /** Puts a program where there was none. */
  install(script: string): Promise<void> {
    return install(this.directory, script);
  }

  /** Other GPUs than before. */
  async reshape(gpus: readonly LedgerGpu[]): Promise<void> {
    const path = join(this.directory, 'gpus.json');
    await writeFile(`${path}.new`, JSON.stringify(gpus));
    await rename(`${path}.new`, path);
  }

  async fault(fault: Fault | undefined): Promise<void> {
    const path = join(this.directory, 'nvidia-smi.fault.json');
    if (fault === undefined) return rm(path, { force: true });
    await writeFile(`${path}.new`, JSON.stringify(fault));
    await rename(`${path}.new`, path);
  }

  async starts(): Promise<number> {
    return (await this.read('starts')).split('\n').length - 1;
  }

  read(name: string): Promise<string> {
    return readFile(join(this.directory, name), 'utf8').catch(() => '');
  }

  /** Health of each GPU in the order of their indices. */
  healths(): string {
    return this.sampler
      .readings()
      .map(({ health }) => health)
      .join();
  }

  async until(isSo: () => boolean | Promise<boolean>): Promise<void> {
    const endMs = performance.now() + 60_000;
    while (!(await isSo())) {
      if (performance.now() > endMs) throw new Error(`not so in time: ${isSo.toString()}, but ${this.healths()}`);
      await pause(10, never);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.sampler[Symbol.asyncDispose]();
    await rm(this.directory, { recursive: true, force: true });
  }
}

async function install(directory: string, script: string): Promise<void> {
  const path = join(directory, 'nvidia-smi');
  await writeFile(`${path}.new`, `#!/bin/sh\nDIR='${directory}'\nGOLDEN='${GOLDEN}'\n${script}\n`);
  await chmod(`${path}.new`, 0o755);
  await rename(`${path}.new`, path);
}
