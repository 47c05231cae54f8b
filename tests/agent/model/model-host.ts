import { readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { pino } from 'pino';
import { GpuSampler } from '../../../agent/gpu/gpu-sampler.ts';
import type { ConfiguredModel } from '../../../agent/configured-model.ts';
import type { Destination } from '../../../agent/model/model-moves.ts';
import type { Lease } from '../../../agent/model/residency.ts';
import { Residency } from '../../../agent/model/residency.ts';
import { Ledger, startTimeOf } from '../../../scripts/sim/lib/ledger.ts';
import { pause } from '../../../shared/abort.ts';
import type { EditRequest, GenerateRequest } from '../../../shared/job.ts';
import type { ModelMove } from '../../../shared/protocol.ts';
import type { Log } from '../../../shared/log.ts';
import { PROFILES } from '../../../shared/profiles.ts';
import { TIMES, simulateGpus, withLedger } from './simulated-gpus.ts';

export const never = new AbortController().signal;
export const QUIET = {
  signal: never,
  onStep: (): void => undefined,
  sink: { begin: (): void => undefined, write: () => undefined },
};

/** Takes the picture of a job, and its last one where there were several. */
export class Collected {
  #chunks: Buffer[] = [];

  get image(): Buffer {
    return Buffer.concat(this.#chunks);
  }

  begin(): void {
    this.#chunks = [];
  }

  write(bytes: Buffer): undefined {
    this.#chunks.push(bytes);
  }
}

const FAULT = 'ledger/nvidia-smi.fault.json';

export type HostOptions = {
  gpusMiB?: readonly number[];
  reserveMiB?: number;
  times?: Partial<typeof TIMES>;
  /** Another host's directory: what an agent finds that comes back. */
  directory?: string;
  ramReserveMiB?: number;
  yieldsToForeign?: boolean;
  queryTimeoutMs?: number;
  log?: Log;
  /** From the first moment on, until `mendNvidiaSmi`. */
  doesNvidiaSmiHang?: boolean;
  isDraining?: () => boolean;
  /** Slots that somebody beside the residency has. */
  isTaken?: (slotId: string) => boolean;
  /** It lists no process, as under WSL and in containers. */
  hidesProcesses?: boolean;
};

/** A directory with simulated GPUs, and the real sampler and residency on them. */
export class ModelHost implements AsyncDisposable {
  readonly directory: string;
  readonly sampler: GpuSampler;
  readonly residency: Residency;
  readonly ledger: Ledger;
  readonly #isOwner: boolean;

  private constructor(o: { directory: string; sampler: GpuSampler; residency: Residency; isOwner: boolean }) {
    this.directory = o.directory;
    this.sampler = o.sampler;
    this.residency = o.residency;
    this.ledger = new Ledger(join(o.directory, 'ledger'));
    this.#isOwner = o.isOwner;
  }

  static async start(models: readonly ConfiguredModel[], options: HostOptions = {}): Promise<ModelHost> {
    const directory = options.directory ?? (await mkdtemp(join(tmpdir(), 'gantry-model-')));
    const nvidiaSmi = await simulateGpus(directory, options.gpusMiB ?? [24_576]);
    if (options.hidesProcesses === true) await writeFile(join(directory, 'ledger/hides-processes'), '');
    if (options.doesNvidiaSmiHang === true) await writeFile(join(directory, FAULT), '{"mode":"hang"}');
    const log = options.log ?? pino({ level: 'silent' });
    const sampler = new GpuSampler({
      nvidiaSmi,
      sampleIntervalMs: 50,
      silenceMs: 10_000,
      queryTimeoutMs: options.queryTimeoutMs ?? 30_000,
      log,
      onSample: () => undefined,
    });
    const residency = new Residency({
      models: models.map((model) => withLedger(model, directory)),
      sampler,
      stateDir: directory,
      logDir: join(directory, 'logs'),
      reserveMiB: options.reserveMiB ?? 512,
      ramReserveMiB: options.ramReserveMiB ?? 2_048,
      yieldsToForeign: options.yieldsToForeign ?? false,
      isDraining: options.isDraining ?? (() => false),
      isTaken: options.isTaken ?? (() => false),
      logs: { maxMiB: 20, keep: 5 },
      times: { ...TIMES, ...options.times },
      log,
      onChange: () => undefined,
    });
    await residency.start(never);
    if (options.hidesProcesses === true) await writeFile(join(directory, 'ledger/hides-processes'), '');
    if (options.doesNvidiaSmiHang !== true) await sampler.firstSample(never);
    return new ModelHost({ directory, sampler, residency, isOwner: options.directory === undefined });
  }

  usedMiB(gpu = 0): number {
    return this.ledger.usedMiB(`GPU-${gpu}`);
  }

  /** Pids of simulated engines that live. */
  pids(): number[] {
    return this.ledger.entries().flatMap(({ pid, isAlive }) => (isAlive && pid !== process.pid ? [pid] : []));
  }

  /** Where the server of this process listens, by its command line. */
  urlOf(pid: number | undefined): string {
    const argv = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
    return `http://127.0.0.1:${argv[argv.indexOf('--port') + 1]}`;
  }

  /** Memory of a process that is not the agent's: this test's own. */
  plant(usedMiB: number, gpu = 0): void {
    const startTime = startTimeOf(process.pid) ?? '';
    this.ledger.note({ pid: process.pid, startTime, gpuUuid: `GPU-${gpu}`, usedMiB, name: 'foreign' });
  }

  /** The driver gives back at last what dead processes still hold: `--vram-linger-ms`. */
  returnMemory(): void {
    for (const entry of this.ledger.entries()) if (!entry.isAlive) this.ledger.note({ ...entry, lingerMs: 0 });
  }

  async hangNvidiaSmi(): Promise<void> {
    await writeFile(join(this.directory, FAULT), '{"mode":"hang"}');
  }

  async mendNvidiaSmi(): Promise<void> {
    await rm(join(this.directory, FAULT));
  }

  state(slotId: string): string {
    return this.residency.slotFacts(slotId).state;
  }

  /** One small job. */
  async run(
    slotId: string,
    more: Partial<GenerateRequest> = {},
  ): Promise<Awaited<ReturnType<Lease['run']>> & { image: Buffer }> {
    using lease = await this.admit(slotId);
    const sink = new Collected();
    const made = await lease.run(generate(more), [], { ...QUIET, sink });
    return { ...made, image: sink.image };
  }

  move(model: string, to: Destination): Promise<ModelMove> {
    return this.residency.move(model, to, never);
  }

  admit(slotId: string, megapixels = 0.25): ReturnType<Residency['admit']> {
    return this.residency.admit(slotId, { megapixels, signal: never, onDetail: () => undefined });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.residency.shutdown({ graceMs: 200 });
    await this.sampler[Symbol.asyncDispose]();
    if (this.#isOwner) await rm(this.directory, { recursive: true, force: true, maxRetries: 3 });
  }
}

export function omni(
  alias: string,
  args: readonly string[] = [],
  more: Partial<ConfiguredModel> = {},
): ConfiguredModel {
  const profile = PROFILES.find(({ model }) => model === 'Tongyi-MAI/Z-Image-Turbo');
  if (profile === undefined) throw new Error('the profile is shipped');
  return {
    alias,
    id: `test/${alias}`,
    engine: 'vllm-omni',
    profile,
    profileFrom: 'configured',
    capabilities: ['generate'],
    launch: {
      kind: 'owned',
      command: [resolve('dist/sim/vllm-omni'), 'serve'],
      args: ['--load-ms', '50', '--generate-ms', '50', '--sleep-ms', '10', '--weights-mib', '8000', ...args],
      env: {},
      download: 'none',
    },
    gpuCount: 1,
    replicas: 1,
    vramMiB: 8_000,
    offload: 'auto',
    offloadAfterMs: null,
    releaseAfterMs: null,
    warmsUp: false,
    preload: false,
    pin: false,
    ...more,
  };
}

export function step1x(args: readonly string[] = [], more: Partial<ConfiguredModel> = {}): ConfiguredModel {
  const command = [resolve('dist/sim/step1x-edit')];
  return omni('step1x', [], {
    engine: 'step1x-edit',
    capabilities: ['edit'],
    launch: {
      kind: 'owned',
      command,
      args: ['--load-ms', '50', '--generate-ms', '400', '--weights-mib', '8000', ...args],
      env: {},
      download: 'none',
    },
    ...more,
  });
}

export function generate(more: Partial<GenerateRequest> = {}): GenerateRequest {
  return {
    kind: 'generate',
    model: 'test/a',
    prompt: 'a red fox',
    steps: 4,
    guidance: { field: 'guidance_scale', value: 1 },
    seed: 7,
    format: 'png',
    width: 128,
    height: 96,
    ...more,
  };
}

export function edit(more: Partial<EditRequest> = {}): EditRequest {
  const { width: _w, height: _h, ...request } = generate();
  return { ...request, kind: 'edit', inputs: ['0'.repeat(64)], ...more };
}

/** Waits for a fact that nobody announces. */
export async function until(isSo: () => boolean, withinMs = 60_000): Promise<void> {
  const endMs = performance.now() + withinMs;
  while (!isSo()) {
    if (performance.now() > endMs) throw new Error(`not so after ${withinMs} ms: ${isSo.toString()}`);
    await pause(10, never);
  }
}
