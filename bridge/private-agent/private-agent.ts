import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Deadline, pause } from '../../shared/abort.ts';
import { makeDirectory, writeDurable } from '../../shared/durable-file.ts';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { HostAddress } from '../fleet/host-view.ts';
import type { PrivateSettings } from './agent-file.ts';
import { agentFile } from './agent-file.ts';
import { findAgent } from './agent-finder.ts';
import type { AgentProgram } from './agent-process.ts';
import { AgentProcess } from './agent-process.ts';

export type PrivateAgentOptions = {
  settings: PrivateSettings;
  /** Of this URL alone; the agent's state directory. */
  directory: string;
  program: AgentProgram;
  lingerMs: number;
  log: Log;
};

/** An agent starts in a second; a machine under load takes its time. */
const START_MS = 20_000;
/** Nothing tells when another process has written its files, so they are looked at. */
const LOOK_EVERY_MS = 50;

/**
 * The agent of one vLLM-Omni server, shared by all bridges of this user that name its URL. Its states, as a bridge sees them:
 *
 *     absent -> starting -> up -> ending -> absent
 *
 * The process that holds the socket of the directory is the agent. Whoever finds it absent starts one; of several that do so
 * at once the socket decides, and the others exit and their bridges link to the winner. One that dies is found absent at the
 * next try of the link, which starts another. Nobody ends it: it ends by itself, `lingerMs` after its last bridge.
 */
export class PrivateAgent {
  readonly #options: PrivateAgentOptions;
  #process: AgentProcess | undefined;
  /** The process that was last seen up, ours or another bridge's. */
  #seenPid: number | undefined;
  #isWatching = false;

  constructor(options: PrivateAgentOptions) {
    this.#options = options;
  }

  /** Where it listens now; starts it where it does not run. The signal's abort is the end of our interest in it. */
  async reach(signal: AbortSignal): Promise<HostAddress> {
    const { directory, settings, program, lingerMs, log } = this.#options;
    this.#letGoWith(signal);
    using limit = new Deadline({ ms: START_MS, signal });
    while (!limit.signal.aborted) {
      const found = await findAgent(directory);
      if (found.kind === 'up') {
        if (found.pid !== this.#seenPid && found.pid !== this.#process?.pid) await this.#compareSettings();
        this.#seenPid = found.pid;
        return found.address;
      }
      if (found.kind === 'absent' && this.#process?.exit !== undefined) await this.#bury(this.#process);
      if (found.kind === 'absent' && this.#process === undefined) {
        const file = await this.#writeSettings();
        signal.throwIfAborted(); // nobody would let go of what begins now
        this.#process = AgentProcess.start(program, { directory, file, lingerMs });
        log.info({ event: 'private-agent-started', url: settings.url, pid: this.#process.pid });
      }
      await pause(LOOK_EVERY_MS, limit.signal);
    }
    signal.throwIfAborted();
    throw new AppError(
      'AGENT_UNREACHABLE',
      `The agent that gantry starts for ${settings.url} is not ready after ${START_MS / 1000} s. It is tried again by itself; ` +
        `its log is ${join(directory, 'agent.log')}.`,
    );
  }

  async #writeSettings(): Promise<string> {
    const { directory, settings } = this.#options;
    const file = join(directory, 'agent.yaml');
    await makeDirectory(directory, { mode: 0o700 });
    await writeDurable(file, agentFile(settings));
    return file;
  }

  /** One that ran, or was one too many, is replaced at once; one that never got as far says why, and is tried again later. */
  async #bury(ended: AgentProcess): Promise<void> {
    this.#process = undefined;
    if (ended.pid !== this.#seenPid && !ended.hasGivenWay) throw await ended.failure(this.#options.settings.url);
  }

  /** The first bridge decides how the agent runs, as long as it runs. */
  async #compareSettings(): Promise<void> {
    const { directory, settings, log } = this.#options;
    const text = await readFile(join(directory, 'agent.yaml'), 'utf8').catch(() => ''); // nothing to compare with
    if (text === agentFile(settings)) return;
    const message = 'Another bridge started the agent with other settings (--timeout); they hold until it has ended.';
    log.warn({ event: 'private-agent-settings', url: settings.url, message });
  }

  /** The link asks with the same signal, that of its life, every time. */
  #letGoWith(signal: AbortSignal): void {
    if (this.#isWatching) return;
    this.#isWatching = true;
    signal.addEventListener('abort', () => this.#process?.letGo(), { once: true });
  }
}
