import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, existsSync, lstatSync, renameSync, rmSync } from 'node:fs';
import type { Server, Socket } from 'node:net';
import { connect, createServer } from 'node:net';
import { basename } from 'node:path';
import { addAbortSignal } from 'node:stream';
import { errorCode } from './errors.ts';
import { Deadline, pause } from './abort.ts';

/** Between two questions to one that hangs up without a word: it is just ending. */
const ASK_AGAIN_MS = 20;
const STARTING = ' starting';

/**
 * A listening socket that tells whoever connects in a first line who has it: `WHO starting` until it is decided who holds
 * what the sockets beside it are about, then `WHO`. Its file can be opened by the owner and by root only.
 */
export class LockSocket implements AsyncDisposable {
  readonly #server: Server;
  readonly #who: string;
  /** The name others see; on Windows there is no file. */
  readonly #path: string | undefined;
  #inode: number | undefined;
  readonly #undecided = new Set<Socket>();
  #isHolder = false;
  #serve: ((socket: Socket) => void) | undefined;

  private constructor({ who, path }: { who: string; path?: string }) {
    this.#who = who;
    this.#path = path;
    this.#server = createServer((socket) => this.#greet(socket));
  }

  /**
   * A socket of a name of its own, `STEM.XXXXXXXX`. Under that name it is never seen before it listens, and no other socket
   * is ever seen: who is refused there is refused for good. Until it listens it is called `STEM#XXXXXXXX`.
   */
  static async appearAt(stem: string, { who }: { who: string }): Promise<LockSocket> {
    for (;;) {
      const id = randomBytes(4).toString('hex');
      const socket = new LockSocket({ who, path: `${stem}.${id}` });
      if (await socket.#appearsFrom(`${stem}#${id}`)) return socket;
    }
  }

  /** Windows: a name in use is an error there, and the kernel takes it away at death. Undefined when it is in use. */
  static async onPipe(path: string, { who }: { who: string }): Promise<LockSocket | undefined> {
    const socket = new LockSocket({ who });
    return (await listens(socket.#server, path)) ? socket : undefined;
  }

  get name(): string {
    return this.#path === undefined ? '' : basename(this.#path);
  }

  /** False once somebody removed or replaced the file. */
  get isInPlace(): boolean {
    return this.#path === undefined || inodeOf(this.#path) === this.#inode;
  }

  /** It is decided: this one holds. Who waited for that is told. */
  hold(): void {
    this.#isHolder = true;
    for (const socket of this.#undecided) hangUp(socket, `${this.#who}\n`);
  }

  /** From now on whoever connects is handed to `serve`. */
  serve(serve: (socket: Socket) => void): void {
    this.#serve = serve;
  }

  /** From now on it keeps no process alive. */
  unref(): void {
    this.#server.unref();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#server.listening) return;
    this.#server.close();
    if (this.#path !== undefined) rmSync(this.#path, { force: true });
    for (const socket of this.#undecided) socket.destroy(); // they ask again, and are refused
    await once(this.#server, 'close');
  }

  async #appearsFrom(unborn: string): Promise<boolean> {
    if (this.#path === undefined) throw new Error('only a socket with a file appears');
    const path = this.#path;
    return await listens(this.#server, unborn, () => {
      chmodSync(unborn, 0o600);
      if (existsSync(path)) throw Object.assign(new Error(`${path} is there`), { code: 'EADDRINUSE' });
      this.#inode = inodeOf(unborn);
      renameSync(unborn, path);
    });
  }

  #greet(socket: Socket): void {
    socket.on('error', () => socket.destroy()); // whoever asked has gone
    if (!this.#isHolder) {
      this.#undecided.add(socket);
      socket.once('close', () => this.#undecided.delete(socket));
      socket.resume(); // else its end is not seen
      socket.write(`${this.#who}${STARTING}\n`);
      return;
    }
    if (this.#serve === undefined) return hangUp(socket, `${this.#who}\n`);
    socket.write(`${this.#who}\n`);
    this.#serve(socket);
  }
}

/**
 * What the one at this socket says of itself, or undefined when nobody listens there any more. One that is starting is
 * waited for until it is decided, unless `starting` is enough. One that hangs, or that we may not ask, has it all the same.
 */
export async function askHolder(
  path: string,
  { until, answerMs }: { until: 'decided' | 'starting'; answerMs: number },
): Promise<string | undefined> {
  using patience = new Deadline({ ms: answerMs });
  for (; !patience.signal.aborted; await pause(ASK_AGAIN_MS, patience.signal)) {
    try {
      for await (const line of linesOf(path, patience.signal)) {
        if (!line.endsWith(STARTING)) return line;
        if (until === 'starting') return line.slice(0, -STARTING.length);
      }
    } catch (error) {
      const code = errorCode(error);
      if (code === 'ECONNREFUSED' || code === 'ENOENT' || code === 'ENOTSOCK') return undefined;
      if (code === 'EACCES' || code === 'EPERM') return "it is another user's";
      // It ended while we asked, or so many ask that there is no room for one more.
      const isPassing = code === 'ECONNRESET' || code === 'EPIPE' || code === 'EAGAIN';
      if (!isPassing && !patience.signal.aborted) throw error;
    }
  }
  return 'it does not answer';
}

async function* linesOf(path: string, signal: AbortSignal): AsyncGenerator<string> {
  let text = '';
  for await (const piece of addAbortSignal(signal, connect(path)).setEncoding('utf8') as AsyncIterable<string>) {
    const lines = `${text}${piece}`.split('\n');
    text = lines.pop() ?? '';
    for (const line of lines) yield line.trim();
  }
}

/** `whenBound` runs in the same moment: no other code of this process comes before it. */
async function listens(server: Server, path: string, whenBound: () => void = () => undefined): Promise<boolean> {
  try {
    server.listen(path);
    if (server.listening) whenBound();
    await once(server, 'listening');
    return true;
  } catch (error) {
    if (server.listening) server.close();
    const code = errorCode(error);
    // ENOENT: whoever has become the holder meanwhile has swept up what was not there yet.
    if (code === 'EADDRINUSE' || code === 'ENOENT') return false;
    throw error;
  }
}

function inodeOf(path: string): number | undefined {
  return lstatSync(path, { throwIfNoEntry: false })?.ino;
}

/** One that stays would keep us from closing. */
function hangUp(socket: Socket, lastWord: string): void {
  socket.end(lastWord, () => socket.destroy());
}
