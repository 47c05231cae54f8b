import type { ChildProcess } from 'node:child_process';
import { spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, renameSync, statSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { Socket } from 'node:net';
import { join } from 'node:path';
import { AppError } from '../../shared/errors.ts';
import { EXIT } from '../../shared/exit-codes.ts';

export type AgentProgram = {
  /** gantry-agent.mjs; it lies beside the program of the bridge. */
  path: string;
  env: NodeJS.ProcessEnv;
};

const LOG_NAME = 'agent.log';
const LARGEST_LOG_BYTES = 1024 * 1024;
const SHOWN_LINES = 5;

/**
 * One `gantry-agent run` that this bridge started. It outlives us, but holds the other end of our pipe: at our end, however
 * it comes, the pipe closes, and the agent ends when no other bridge has needed it for its `linger`.
 */
export class AgentProcess {
  readonly #child: ChildProcess;
  readonly #directory: string;
  #exit: string | undefined;
  #hasGivenWay = false;

  private constructor(child: ChildProcess, directory: string) {
    this.#child = child;
    this.#directory = directory;
    child.once('exit', (code, signal) => {
      this.#exit ??= `ended with ${signal ?? `exit code ${code}`}`;
      this.#hasGivenWay = code === EXIT.ok || code === EXIT.tryLater;
    });
    child.once('error', (error) => (this.#exit ??= `could not be started (${error.message})`));
    child.stdin?.on('error', () => undefined); // it has gone; its exit tells
    child.unref();
    unref(child.stdin);
  }

  static start(
    { path, env }: AgentProgram,
    { directory, file, lingerMs }: { directory: string; file: string; lingerMs: number },
  ): AgentProcess {
    if (!existsSync(path)) throw programMissing(path);
    const log = openLog(join(directory, LOG_NAME));
    try {
      const args = ['--optimize-for-size', path, 'run', '--config', file, '--linger', `${lingerMs}ms`];
      // A session of its own: Ctrl-C in the terminal of the bridge is not meant for it.
      const options = { cwd: directory, env, detached: true, windowsHide: true };
      const child = spawn(process.execPath, args, { ...options, stdio: ['pipe', log, log] });
      return new AgentProcess(child, directory);
    } finally {
      closeSync(log);
    }
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** How it ended; undefined while it runs. */
  get exit(): string | undefined {
    return this.#exit;
  }

  /** It ended because nobody needed it, or because another one was quicker. */
  get hasGivenWay(): boolean {
    return this.#hasGivenWay;
  }

  /** This bridge does not need it any more. */
  letGo(): void {
    this.#child.stdin?.destroy();
  }

  /** Its end, with the last that it said. */
  async failure(url: string): Promise<AppError> {
    const path = join(this.#directory, LOG_NAME);
    const text = await readFile(path, 'utf8').catch(() => ''); // then there is nothing to show
    const lines = text.trimEnd().split('\n').slice(-SHOWN_LINES).join('\n');
    const said = lines === '' ? '' : ` The last lines of ${path}:\n${lines}`;
    return new AppError(
      'AGENT_UNREACHABLE',
      `The agent that gantry starts for ${url} ${this.#exit ?? 'does not answer'}. It is tried again by itself.${said}`,
    );
  }
}

function programMissing(path: string): AppError {
  return new AppError(
    'AGENT_UNREACHABLE',
    `A plain vLLM-Omni server needs the program gantry-agent on this machine, and ${path} is not there. Install the whole ` +
      'gantry package here, or run gantry-agent on the GPU host and name that under `hosts` in bridge.yaml.',
  );
}

/** Appended to, and begun anew when it is large: an agent of this kind says little. */
function openLog(path: string): number {
  const size = statSync(path, { throwIfNoEntry: false })?.size ?? 0;
  try {
    if (size > LARGEST_LOG_BYTES) renameSync(path, `${path}.1`);
  } catch {
    // Another bridge was quicker, or somebody on Windows reads it: a longer log keeps no agent from starting.
  }
  return openSync(path, 'a', 0o600);
}

/** A pipe to a child keeps the process alive by itself. It is a socket, which its type does not say. */
function unref(stream: NodeJS.WritableStream | null): void {
  if (stream instanceof Socket) stream.unref();
}
