import { lstatSync, readdirSync, readlinkSync, renameSync, rmSync, symlinkSync } from 'node:fs';
import { mkdir, readdir } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { socketPath } from '../shared/agent-socket.ts';
import { InstanceSocket, PRIVATE_NAME, UNBORN_NAME, askHolder } from './instance-socket.ts';

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
 * The right to use a state directory, held as a listening unix socket in it, which the kernel closes at death, however
 * that comes. Each agent has a socket under a name of its own, `s.XXXXXXXX`; the holder's is also reached by the link
 * `agent.sock`. Whoever connects is told the holder's pid, and is then served, or sent away while nobody serves.
 *
 * Two never hold at a time. (1) A private name belongs to one socket ever, and is seen only when that listens: who is
 * refused there is gone for good, and his name may be removed by anybody. (2) Each looks for the names of others after
 * his own is there. So of any two, the later one sees the earlier, and holds only after that one is gone. Which of two
 * that are starting gives way, the later or the earlier, is no matter of safety; that the one with the lower name does
 * not is why one of them stays. `agent.sock` decides nothing, unless a former release listens there. (macOS refuses, too,
 * where more wait than a socket's queue holds, which takes a holder that hangs and hundreds that ask.)
 */
export class SingleInstance implements AsyncDisposable {
  readonly #socket: InstanceSocket;
  readonly #stateDir: string;

  private constructor(socket: InstanceSocket, stateDir: string) {
    this.#socket = socket;
    this.#stateDir = stateDir;
  }

  static async acquire(stateDir: string, { answerMs = ANSWER_MS } = {}): Promise<SingleInstance> {
    const path = socketPath(stateDir);
    await mkdir(stateDir, { recursive: true, mode: 0o700 });
    const election = { stateDir, answerMs };
    const socket = isWindows ? await takePipe(path, election) : await InstanceSocket.appearIn(stateDir);
    const instance = new SingleInstance(socket, stateDir);
    try {
      if (!isWindows) {
        await giveWay(socket.name, election);
        publish(stateDir, socket.name);
      }
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

type Election = { stateDir: string; answerMs: number };

const isWindows = process.platform === 'win32';

async function takePipe(path: string, { stateDir, answerMs }: Election): Promise<InstanceSocket> {
  for (;;) {
    const socket = await InstanceSocket.onPipe(path);
    if (socket !== undefined) return socket;
    const holder = await askHolder(path, { until: 'decided', answerMs });
    if (holder !== undefined) throw new AlreadyRunning(stateDir, holder);
  }
}

/** Returns when all others are gone. The lower names first: there is nothing to wait for when one of them lives. */
async function giveWay(own: string, { stateDir, answerMs }: Election): Promise<void> {
  const names = (await readdir(stateDir)).filter((name) => PRIVATE_NAME.test(name) && name !== own).sort();
  for (const name of names) {
    const path = join(stateDir, name);
    const holder = await askHolder(path, { until: name < own ? 'starting' : 'decided', answerMs });
    if (holder !== undefined) throw new AlreadyRunning(stateDir, holder);
    rmSync(path, { force: true });
  }
  const path = socketPath(stateDir);
  if (lstatSync(path, { throwIfNoEntry: false })?.isSocket() !== true) return;
  const holder = await askHolder(path, { until: 'decided', answerMs }); // an agent of a former release listened there itself
  if (holder !== undefined) throw new AlreadyRunning(stateDir, holder);
}

/** Puts the link to our socket under the name everybody knows, and removes what those that died at their start left. */
function publish(stateDir: string, own: string): void {
  const link = join(stateDir, own.replace('s.', 'n.'));
  symlinkSync(own, link);
  renameSync(link, socketPath(stateDir));
  for (const name of readdirSync(stateDir)) if (UNBORN_NAME.test(name)) rmSync(join(stateDir, name), { force: true });
}

function publishedIn(stateDir: string): string | undefined {
  try {
    return readlinkSync(socketPath(stateDir));
  } catch {
    return undefined; // nothing, or a former release's socket
  }
}
