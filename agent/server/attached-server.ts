import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { pause, untilAborted } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { settlesWithin } from '../gpu/nvidia-smi.ts';
import { programEnvironment } from './child-environment.ts';
import type { ConfiguredModel } from '../configured-model.ts';
import type { Engine, ServerFacts } from '../engine/engine.ts';
import { answerOrUndefined } from '../engine/engine.ts';
import { whyNotReady } from '../engine/why-not-ready.ts';
import type { ProcessTable } from './process-table.ts';
import { withLog, words } from './server-failure.ts';
import type { LogBounds } from './server-log.ts';
import { ServerLog } from './server-log.ts';
import type { Exit } from './server-process.ts';
import { ServerProcess, describeExit } from './server-process.ts';

export type AttachedOptions = {
  slotId: string;
  model: ConfiguredModel;
  engine: Engine;
  table: ProcessTable;
  logDir: string;
  logs: LogBounds;
  times: { startDeadlineMs: number; stopGraceMs: number; healthPollMs: number };
  log: Log;
};

const ANSWER_MS = 5_000;
/** What a program that is cut off may take to end. */
const PROGRAM_GRACE_MS = 2_000;
/** `docker stop` alone takes 10 s for a server that does not listen to SIGTERM. */
const STOP_GRACES = 2;

/**
 * A server that somebody else runs. We end nothing of it and start nothing, but run the programs that its owner named for
 * that: as argument lists, never through a shell.
 */
export class AttachedServer {
  readonly url: string;
  readonly #options: AttachedOptions;
  /** What the program that started it left behind may go on writing to its log. */
  #starter: ServerProcess | undefined;

  constructor(options: AttachedOptions) {
    const { launch, alias } = options.model;
    if (launch.kind !== 'attached') throw new Error(`${alias} is ours`);
    this.url = launch.url.replace(/\/$/, '');
    this.#options = options;
  }

  /** Runs `start` only where nobody answers. Rejects when the program fails, or the deadline passes. */
  async untilAnswering(signal: AbortSignal): Promise<ServerFacts> {
    const { model, times } = this.#options;
    const endMs = performance.now() + times.startDeadlineMs;
    const found = await this.#probe(signal);
    if (found !== undefined) return found;
    const { start } = this.#programs;
    if (start === undefined) {
      const why = await whyNotReady(this.url, { signal, deadlineMs: ANSWER_MS });
      throw new AppError('MODEL_FAILED', `${model.alias} is not there. ${why}`);
    }
    this.#starter = await this.#run('start', start, { limitMs: times.startDeadlineMs, signal });
    while (performance.now() < endMs) {
      const facts = await this.#probe(signal);
      if (facts !== undefined) return facts;
      await pause(times.healthPollMs, signal);
      signal.throwIfAborted();
    }
    const seconds = Math.round(times.startDeadlineMs / 1000);
    const message = `${model.alias} did not answer at ${this.url} within ${seconds} s of its \`start\`.`;
    throw withLog(new AppError('MODEL_FAILED', message), await this.#starter.log.lastLines());
  }

  /** Runs `stop`, and waits until nobody answers. Returns why it still runs, where it does; never rejects. */
  async end({ isOurs, signal }: { isOurs: boolean; signal: AbortSignal }): Promise<AppError | undefined> {
    const wasStarted = this.#starter !== undefined;
    await this.letGo();
    // One that was up before us, and never worked for us, is not ended for that. Nor is any when the agent stops.
    const { stop } = this.#programs;
    if (stop === undefined || signal.aborted || !(isOurs || wasStarted)) return undefined;
    const { times, model, log, slotId } = this.#options;
    const limitMs = STOP_GRACES * times.stopGraceMs;
    const endMs = performance.now() + limitMs;
    try {
      await (await this.#run('stop', stop, { limitMs, signal })).letGo();
      while (await this.#isAnswering(signal)) {
        if (performance.now() >= endMs) {
          const message = `${model.alias} still answers at ${this.url} after its \`stop\`.`;
          throw new AppError('MODEL_FAILED', message);
        }
        await pause(times.healthPollMs, signal);
      }
      return undefined;
    } catch (error) {
      if (!signal.aborted) log.error({ event: 'attached-not-stopped', slotId, error: words(error) });
      return error instanceof AppError ? error : new AppError('MODEL_FAILED', words(error), { cause: error });
    }
  }

  /** It lives on without us. */
  async letGo(): Promise<void> {
    const starter = this.#starter;
    this.#starter = undefined;
    await starter?.letGo();
  }

  /** As agent.yaml has them now: a reload changes them under a server that stays. */
  get #programs(): { start?: readonly string[]; stop?: readonly string[] } {
    const { launch } = this.#options.model;
    return launch.kind === 'attached' ? launch : {};
  }

  #probe(signal: AbortSignal): Promise<ServerFacts | undefined> {
    const { engine, model } = this.#options;
    return engine.probe({ url: this.url, model, signal, deadlineMs: ANSWER_MS });
  }

  async #isAnswering(signal: AbortSignal): Promise<boolean> {
    return (await answerOrUndefined(`${this.url}/health`, { signal, deadlineMs: ANSWER_MS })) !== undefined;
  }

  /** Settles when the program itself has ended well. What it started is not ours, and lives on. */
  async #run(
    which: 'start' | 'stop',
    argv: readonly string[],
    { limitMs, signal }: { limitMs: number; signal: AbortSignal },
  ): Promise<ServerProcess> {
    const { slotId, model, logDir, logs, table } = this.#options;
    // Beside the logs of our own servers: whoever writes to one of those is a process of ours, and ended with us.
    const programs = join(logDir, 'programs');
    await mkdir(programs, { recursive: true, mode: 0o750 });
    const log = await ServerLog.create({ logDir: programs, slotId: `${slotId}.${which}`, bounds: logs });
    const program = await ServerProcess.start({ argv, env: programEnvironment(), log, table });
    const what = `\`${which}\` of ${model.alias} (${argv.join(' ')})`;
    try {
      if (await untilAborted(settlesWithin(program.exited, limitMs), signal)) {
        const exit: Exit = await program.exited;
        if (exit.code === 0) return program;
        await program.letGo();
        throw new AppError('MODEL_FAILED', `${what} ${describeExit(exit)}.`);
      }
      const seconds = Math.round(limitMs / 1000);
      const hint = 'It must come back by itself, as `systemctl` and `docker` do.';
      throw new AppError('MODEL_FAILED', `${what} did not end within ${seconds} s. ${hint}`);
    } catch (error) {
      if (program.exit === undefined) await program.stop({ graceMs: PROGRAM_GRACE_MS });
      throw error instanceof AppError && !signal.aborted ? withLog(error, await log.lastLines()) : error;
    }
  }
}
