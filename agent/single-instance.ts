import { chmodSync } from 'node:fs';
import { link, mkdir, rename, rm } from 'node:fs/promises';
import type { Server, Socket } from 'node:net';
import { connect, createServer } from 'node:net';
import { once } from 'node:events';
import { Deadline } from '../shared/abort.ts';
import { socketPath } from '../shared/agent-socket.ts';

const ANSWER_MS = 2_000;

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
 * The right to use a state directory, held as a listening unix socket `agent.sock` in it. The kernel closes it at death,
 * however that comes; a file nobody listens on is left over and is replaced. Whoever connects is told the holder's pid in
 * a first line, and is then served, or sent away while nobody serves. Only the owner of the file, and root, can connect.
 */
export class SingleInstance implements AsyncDisposable {
  readonly #server: Server;
  #serve: ((socket: Socket) => void) | undefined;

  private constructor() {
    this.#server = createServer((socket) => {
      socket.on('error', () => socket.destroy()); // whoever asked has gone
      socket.write(`pid ${process.pid}\n`);
      if (this.#serve !== undefined) this.#serve(socket);
      else socket.end(() => socket.destroy()); // one that stays would keep us from closing
    });
  }

  static async acquire(stateDir: string): Promise<SingleInstance> {
    await mkdir(stateDir, { recursive: true, mode: 0o700 });
    const path = socketPath(stateDir);
    for (;;) {
      const instance = new SingleInstance();
      if (await listens(instance.#server, path)) return instance;
      const holder = await askHolder(path);
      if (holder !== undefined) throw new AlreadyRunning(stateDir, holder);
      await clearLeftover(path, stateDir);
    }
  }

  /** From now on whoever connects is handed to `serve`. */
  serve(serve: (socket: Socket) => void): void {
    this.#serve = serve;
  }

  /** Closing the server also removes the file. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#server.listening) return;
    this.#server.close();
    await once(this.#server, 'close');
  }
}

async function listens(server: Server, path: string): Promise<boolean> {
  try {
    server.listen(path);
    // In the same moment: bound it is already, and nobody else may be quicker than this.
    if (server.listening && process.platform !== 'win32') chmodSync(path, 0o600);
    await once(server, 'listening');
    return true;
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'EADDRINUSE') return false;
    throw error;
  }
}

/** What the holder says, or undefined when nobody listens there. One that hangs holds it all the same. */
async function askHolder(path: string): Promise<string | undefined> {
  using answer = new Deadline({ ms: ANSWER_MS });
  const socket = connect(path);
  try {
    await once(socket, 'connect', { signal: answer.signal });
  } catch {
    socket.destroy();
    return answer.isExpired ? 'it does not answer' : undefined;
  }
  try {
    const [line] = (await once(socket, 'data', { signal: answer.signal })) as [Buffer]; // a socket without an encoding
    return line.toString().split('\n', 1)[0]?.trim();
  } catch {
    return 'it does not answer';
  } finally {
    socket.destroy();
  }
}

/**
 * Takes the left-over file aside and looks again before deleting it: another agent may have taken the place between the
 * look and the move, and a socket that is alive stays alive under its new name and is put back.
 */
async function clearLeftover(path: string, stateDir: string): Promise<void> {
  const aside = `${path}.${process.pid}`;
  try {
    await rename(path, aside);
  } catch {
    return; // somebody else has just cleared it
  }
  const holder = await askHolder(aside);
  if (holder !== undefined) await link(aside, path);
  await rm(aside, { force: true });
  if (holder !== undefined) throw new AlreadyRunning(stateDir, holder);
}
