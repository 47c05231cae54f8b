import { pause } from '../shared/abort.ts';
import { ConfigError } from '../shared/config-file.ts';
import { AppError } from '../shared/errors.ts';
import type { Log } from '../shared/log.ts';
import type { HostResult } from '../shared/protocol.ts';
import { configChanges, takenOver } from './config-changes.ts';
import type { AgentConfig } from './config.ts';
import type { Residency } from './model/residency.ts';
import { isNamedByServer, withServedIds } from './served-ids.ts';

export type LiveConfigOptions = {
  /** What the agent was started with, its attached servers asked for their names. */
  config: AgentConfig;
  /** Reads the file again. */
  read: () => Promise<AgentConfig>;
  residency: Residency;
  log: Log;
};

/** An attached server that tells its name itself is asked so often, in turns of the health poll. */
const NAME_EVERY_POLLS = 5;

/**
 * The configuration in force: what the agent started with, what later reloads of the file changed, and the names of
 * attached servers that came up late or became others. One reload runs at a time; who asks while one waits for its turn joins that one.
 */
export class LiveConfig implements AsyncDisposable {
  readonly #options: LiveConfigOptions;
  readonly #stop = new AbortController();
  #config: AgentConfig;
  #work: Promise<unknown> = Promise.resolve();
  #next: Promise<HostResult<'host.reload'>> | undefined;
  readonly done: Promise<void>;

  constructor(options: LiveConfigOptions) {
    this.#options = options;
    this.#config = options.config;
    this.done = this.#learnNames(this.#stop.signal);
  }

  /** Reads the file again and takes over what a running agent can. A file with a mistake changes nothing. */
  reload(): Promise<HostResult<'host.reload'>> {
    this.#next ??= this.#inTurn(() => {
      this.#next = undefined; // from here on the file may change without our seeing it
      return this.#reload();
    });
    return this.#next;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort(new AppError('INTERRUPTED', 'The agent is stopping.'));
    await this.done;
    await this.#work;
  }

  async #reload(): Promise<HostResult<'host.reload'>> {
    const { read, log } = this.#options;
    const { signal } = this.#stop;
    signal.throwIfAborted();
    let file: AgentConfig;
    try {
      file = await read();
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      for (const problem of error.problems) log.error({ event: 'config-problem', message: problem });
      log.error({ event: 'config-not-reloaded', problems: error.problems.length });
      return { problems: [...error.problems], changes: [], warnings: [] };
    }
    const after = { ...file, models: await withServedIds(file.models, { known: this.#config.models, signal, log }) };
    signal.throwIfAborted();
    const { changes, atNextStart } = configChanges(this.#config, after);
    const warnings = [...after.warnings, ...atNextStart.map((key) => `${key}: takes effect at the next start`)];
    this.#apply(after);
    for (const message of warnings) log.warn({ event: 'config-warning', message });
    log.info({ event: 'config-reloaded', changes });
    return { problems: [], changes, warnings };
  }

  #apply(after: AgentConfig): void {
    const { residency, log } = this.#options;
    if (after.logLevel !== this.#config.logLevel) log.level = after.logLevel;
    const next = takenOver(this.#config, after);
    // The parts of the agent read their times from the one object that they were given.
    this.#config = { ...next, times: Object.assign(this.#config.times, next.times) };
    const { models, gpu, ramReserveMiB } = this.#config;
    const { reserveMiB, yieldsToForeign } = gpu;
    residency.reconfigure(models, { reserveMiB, ramReserveMiB, yieldsToForeign });
  }

  async #learnNames(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      await pause(NAME_EVERY_POLLS * this.#config.times.healthPollMs, signal);
      const { models } = this.#config;
      if (!signal.aborted && models.some(isNamedByServer)) await this.#inTurn(() => this.#askNames(signal));
    }
  }

  async #askNames(signal: AbortSignal): Promise<void> {
    const { residency, log } = this.#options;
    const { models } = this.#config;
    const named = await withServedIds(models, { known: models, signal, log });
    const found = named.filter(({ id }, at) => models[at]?.id !== id);
    if (found.length === 0 || signal.aborted) return;
    log.info({ event: 'served-model-known', models: found.map(({ alias, id }) => ({ alias, id })) });
    const { gpu, ramReserveMiB } = this.#config;
    this.#config = { ...this.#config, models: named };
    residency.reconfigure(named, { reserveMiB: gpu.reserveMiB, ramReserveMiB, yieldsToForeign: gpu.yieldsToForeign });
  }

  /** After what was asked for before, whatever came of that. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#work.then(work);
    this.#work = done.catch(() => undefined); // who asked sees it
    return done;
  }
}
