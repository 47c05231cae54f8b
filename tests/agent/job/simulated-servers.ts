import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { GpuSampler } from '../../../agent/gpu/gpu-sampler.ts';
import type { ConfiguredModel } from '../../../agent/configured-model.ts';
import { Residency } from '../../../agent/model/residency.ts';
import type { ExchangeOverrides } from './exchange-host.ts';
import { ExchangeHost, log } from './exchange-host.ts';
import { TIMES, simulateGpus, withLedger } from '../model/simulated-gpus.ts';

/** The real exchange on the real residency, with simulated engines and GPUs. */
export class SimulatedServers implements AsyncDisposable {
  readonly residency: Residency;
  readonly host: ExchangeHost;
  readonly #sampler: GpuSampler;
  readonly #directory: string;

  private constructor(o: { residency: Residency; host: ExchangeHost; sampler: GpuSampler; directory: string }) {
    this.residency = o.residency;
    this.host = o.host;
    this.#sampler = o.sampler;
    this.#directory = o.directory;
  }

  static async start(
    models: readonly ConfiguredModel[],
    { gpusMiB = [24_576], ...overrides }: ExchangeOverrides & { gpusMiB?: readonly number[] } = {},
  ): Promise<SimulatedServers> {
    const directory = await mkdtemp(join(tmpdir(), 'gantry-servers-'));
    const nvidiaSmi = await simulateGpus(directory, gpusMiB);
    const started: { host?: ExchangeHost } = {};
    const onChange = (): void => started.host?.exchange.kick();
    const sampler = new GpuSampler({
      nvidiaSmi,
      sampleIntervalMs: 100,
      silenceMs: 10_000,
      queryTimeoutMs: 30_000,
      log,
      onSample: onChange,
    });
    const places = { stateDir: directory, logDir: join(directory, 'logs'), reserveMiB: 512 };
    const found = models.map((model) => withLedger(model, directory));
    const residency = new Residency({
      ...{ models: found, sampler, ...places, times: TIMES, log, onChange },
      ...{ ramReserveMiB: 2_048, yieldsToForeign: false, logs: { maxMiB: 20, keep: 5 } },
      isDraining: () => started.host?.exchange.isDraining ?? overrides.isDraining === true,
      isTaken: (slotId) => started.host?.exchange.isTaken(slotId) ?? false,
    });
    await residency.start(new AbortController().signal);
    const host = await ExchangeHost.start(residency, { onChange: () => residency.look(), ...overrides });
    started.host = host;
    return new SimulatedServers({ residency, host, sampler, directory });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.host[Symbol.asyncDispose]();
    await this.residency.shutdown({ graceMs: 200 });
    await this.#sampler[Symbol.asyncDispose]();
    await rm(this.#directory, { recursive: true, force: true, maxRetries: 3 });
  }
}
