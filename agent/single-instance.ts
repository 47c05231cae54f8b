import { readlinkSync, renameSync, rmSync, symlinkSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { socketPath } from '../shared/agent-socket.ts';
import { elect } from '../shared/election.ts';
import type { LockSocket } from '../shared/lock-socket.ts';

const ANSWER_MS = 5_000;

/** Another agent has this state directory. */
export class AlreadyRunning extends Error {
  constructor(stateDir: string, holder: string) {
    super(
      `${stateDir} is in use by another gantry-agent (${holder}). Stop that one, or give this one its own state_dir.`,
    );
    this.name = 'AlreadyRunning';
  }
}

/**
 * The right to use a state directory, which one agent has at a time (why: `shared/election.ts`). Its socket there,
 * `s.XXXXXXXX`, is also reached by the link `agent.sock`, which decides nothing, unless a former release listens there.
 * Whoever connects is told the holder's pid, and is then served, or sent away while nobody serves.
 */
export class SingleInstance implements AsyncDisposable {
  readonly #socket: LockSocket;
  readonly #stateDir: string;

  private constructor(socket: LockSocket, stateDir: string) {
    this.#socket = socket;
    this.#stateDir = stateDir;
  }

  static async acquire(stateDir: string, { answerMs = ANSWER_MS } = {}): Promise<SingleInstance> {
    const known = socketPath(stateDir);
    await mkdir(stateDir, { recursive: true, mode: 0o700 });
    // No longer than `agent.sock`, so that a state directory that is short enough for the one is so for the other.
    const place = isWindows ? known : join(stateDir, 's');
    const socket = await elect({ place, former: known, answerMs }, { who: `pid ${process.pid}` });
    if (typeof socket === 'string') throw new AlreadyRunning(stateDir, socket);
    const instance = new SingleInstance(socket, stateDir);
    try {
      if (!isWindows) publish(stateDir, socket.name);
      socket.hold();
      return instance;
    } catch (error) {
      await instance[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** From now on whoever connects is handed to `serve`. */
  serve(serve: (socket: Socket) => void): void {
    this.#socket.serve(serve);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // While our socket listens nobody else publishes his; so this look stays true until the name is removed.
    if (!isWindows && publishedIn(this.#stateDir) === this.#socket.name) rmSync(socketPath(this.#stateDir));
    await this.#socket[Symbol.asyncDispose]();
  }
}

const isWindows = process.platform === 'win32';

/** Puts the link to our socket under the name everybody knows. */
function publish(stateDir: string, own: string): void {
  const link = join(stateDir, own.replace('.', '#'));
  symlinkSync(own, link);
  renameSync(link, socketPath(stateDir));
}

function publishedIn(stateDir: string): string | undefined {
  try {
    return readlinkSync(socketPath(stateDir));
  } catch {
    return undefined; // nothing, or a former release's socket
  }
}
