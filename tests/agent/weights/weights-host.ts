import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { pino } from 'pino';
import type { ConfiguredModel, Launch } from '../../../agent/configured-model.ts';
import type { WeightsOptions, WeightsState } from '../../../agent/weights/weights.ts';
import { Weights } from '../../../agent/weights/weights.ts';
import { omni } from '../model/model-host.ts';

/** A directory with a cache and the real `Weights` on it; the downloader is the simulated one, as a real child. */
export class WeightsHost implements AsyncDisposable {
  readonly directory: string;
  readonly events: { event: string; [key: string]: unknown }[] = [];
  #weights: Weights | undefined;
  readonly #more: Partial<WeightsOptions>;

  private constructor(directory: string, more: Partial<WeightsOptions>) {
    this.directory = directory;
    this.#more = more;
  }

  static async start(more: Partial<WeightsOptions> = {}): Promise<WeightsHost> {
    return new WeightsHost(await mkdtemp(join(tmpdir(), 'gantry-weights ')), more);
  }

  /** The cache's path has a space in it. */
  get home(): string {
    return join(this.directory, 'hf home');
  }

  get weights(): Weights {
    this.#weights ??= new Weights({
      ...{ stateDir: this.directory, logDir: join(this.directory, 'logs') },
      ...{
        stallMs: 10_000,
        retryFirstMs: 60_000,
        everyMs: 20,
        reserveMiB: 16,
        freeBytes: () => Promise.resolve(2 ** 40),
      },
      log: pino(
        { level: 'debug' },
        { write: (line) => void this.events.push(JSON.parse(line) as (typeof this.events)[0]) },
      ),
      ...{ onChange: () => undefined, onProgress: () => undefined },
      ...this.#more,
    });
    return this.#weights;
  }

  /** As after a restart of the agent: only what is on disk is known. */
  async restart(): Promise<void> {
    await this.#weights?.[Symbol.asyncDispose]();
    this.#weights = undefined;
  }

  /** `sim` are settings of the simulated downloader without their prefix. */
  model(alias: string, { sim = {}, env = {}, launch = {}, ...more }: ModelOptions = {}): ConfiguredModel {
    const settings = Object.fromEntries(
      Object.entries(sim).map(([name, value]) => [`GANTRY_SIM_HF_${name}`, String(value)]),
    );
    return omni(alias, [], {
      launch: {
        kind: 'owned',
        command: [resolve('dist/sim/vllm-omni'), 'serve'],
        args: [],
        env: { HF_HOME: this.home, ...settings, ...env },
        download: 'auto',
        ...launch,
      },
      ...more,
    });
  }

  /** Every state until the pull settles. */
  async pull(model: ConfiguredModel, options: { isAsked?: boolean } = {}): Promise<WeightsState[]> {
    const states: WeightsState[] = [];
    const pulling = this.weights.pull(model, new AbortController().signal, options);
    const settled = pulling.then(
      () => true,
      () => true,
    );
    do states.push(this.weights.stateOf(model));
    while (!(await Promise.race([settled, delay(5, false)])));
    await pulling;
    return states;
  }

  count(event: string): number {
    return this.events.filter((each) => each.event === event).length;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.restart();
    await rm(this.directory, { recursive: true, force: true, maxRetries: 3 });
  }
}

type ModelOptions = Partial<Omit<ConfiguredModel, 'launch'>> & {
  sim?: Readonly<Record<string, string | number>>;
  env?: Readonly<Record<string, string>>;
  launch?: Partial<Extract<Launch, { kind: 'owned' }>>;
};
