import type { OutgoingHttpHeaders } from 'node:http';
import type { Socket } from 'node:net';
import { connect, isIP } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { Deadline } from '../../shared/abort.ts';
import type { AnswerHead } from './http-answer.ts';
import { HttpAnswer } from './http-answer.ts';

/** What one read of a socket takes. Twice as much makes strings of its text that V8 does not keep among the young. */
const PIECE_BYTES = 64 * 1024;
/** So many pieces of one answer may be with whoever takes them; then no more is read. */
const MOST_TAKEN = 8;
/** As many as four answers at once have; the memory of more is given back. */
const MOST_FREE = 4 * MOST_TAKEN;
const free: Buffer[] = [];

/**
 * Takes a piece of the body. Its memory is used again when the promise settles, or at once where there is none. A failure
 * ends what still comes; behind the last byte it is the taker's own to tell.
 */
export type TakePiece = (bytes: Buffer) => Promise<void> | undefined;

export type StreamOptions = {
  method?: 'GET' | 'POST' | 'PUT' | 'DELETE';
  headers?: OutgoingHttpHeaders;
  body?: Buffer | string;
  signal: AbortSignal;
  /** The whole exchange, last byte of the answer included, must end within this time. */
  deadlineMs: number;
};

/**
 * One exchange whose answer may be large, over a connection of its own. node:http allocates a body twice, piece by piece: a
 * picture of 12 MB leaves 32 MB to the collector, and four at once more than the agent is. Here it is read into a few
 * pieces that are used again and again. Resolves at the last byte, when the engine is free; pieces may still be with who
 * takes them. Rejects with the signal's reason, a TimeoutError, the socket's own error, or what `onHead` or a taker threw.
 */
export async function streamAnswer(
  url: string,
  { method = 'GET', headers = {}, body = '', signal, deadlineMs }: StreamOptions,
  onHead: (head: AnswerHead) => TakePiece,
): Promise<void> {
  using limit = new Deadline({ ms: deadlineMs, signal });
  limit.signal.throwIfAborted();
  const to = new URL(url);
  using answer = new StreamedAnswer(to, onHead);
  const onAbort = (): void => answer.fail(limit.signal.reason);
  limit.signal.addEventListener('abort', onAbort, { once: true });
  const all = { host: to.host, ...headers, 'content-length': Buffer.byteLength(body), connection: 'close' };
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${String(value)}\r\n`);
  answer.send(`${method} ${to.pathname}${to.search} HTTP/1.1\r\n${lines.join('')}\r\n`, body);
  try {
    await answer.end;
  } finally {
    limit.signal.removeEventListener('abort', onAbort);
  }
}

class StreamedAnswer implements Disposable {
  /** The answer is whole. */
  readonly end: Promise<void>;
  readonly #socket: Socket;
  readonly #answer: HttpAnswer;
  #piece = free.pop() ?? Buffer.allocUnsafeSlow(PIECE_BYTES);
  #taken = 0;
  #take: TakePiece = () => undefined;
  /** Of the piece at hand: who takes parts of it. */
  #takers: Promise<void>[] = [];
  #resolve = (): void => undefined;
  #reject: (error: unknown) => void = () => undefined;

  constructor(url: URL, onHead: (head: AnswerHead) => TakePiece) {
    this.end = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.#answer = new HttpAnswer({
      onHead: (head) => (this.#take = onHead(head)),
      onBody: (bytes) => {
        const taker = this.#take(bytes);
        if (taker !== undefined) this.#takers.push(taker);
      },
    });
    const onread = { buffer: () => this.#piece, callback: (bytes: number) => this.#read(bytes) };
    this.#socket = connected(url, onread);
    this.#socket.on('error', (error) => this.fail(error));
    this.#socket.once('end', () => {
      this.#answer.end();
      this.#endIfWhole();
    });
    this.#socket.once('close', () => {
      if (!this.#answer.isComplete) this.fail(brokenOff()); // else takers may still be at it
    });
  }

  send(head: string, body: Buffer | string): void {
    this.#socket.cork();
    this.#socket.write(head, 'latin1');
    this.#socket.write(body);
    this.#socket.uncork();
  }

  fail(error: unknown): void {
    this.#reject(error);
    this.#socket.destroy();
  }

  [Symbol.dispose](): void {
    this.#socket.destroy(); // reads nothing any more
    giveBack(this.#piece);
  }

  /** False stops the socket from reading. */
  #read(bytes: number): boolean {
    const piece = this.#piece;
    try {
      this.#answer.push(piece.subarray(0, bytes));
    } catch (error) {
      this.fail(error);
      this.#takers.forEach((taker) => void taker.catch(() => undefined)); // the first failure is told
    }
    if (this.#takers.length > 0) this.#letGo(piece);
    this.#endIfWhole();
    return this.#taken < MOST_TAKEN;
  }

  /** The piece is with its takers, and the next bytes go into another one. */
  #letGo(piece: Buffer): void {
    const takers = Promise.all(this.#takers);
    this.#takers = [];
    this.#piece = free.pop() ?? Buffer.allocUnsafeSlow(PIECE_BYTES);
    this.#taken += 1;
    takers.then(
      () => {
        giveBack(piece);
        this.#taken -= 1;
        if (!this.#socket.destroyed) this.#socket.resume();
      },
      (error: unknown) => this.fail(error), // whoever failed may still hold it: it is not used again
    );
  }

  #endIfWhole(): void {
    if (this.#answer.isComplete) this.#resolve();
  }
}

function connected(url: URL, onread: { buffer: () => Buffer; callback: (bytes: number) => boolean }): Socket {
  const host = url.hostname.replace(/^\[(.*)\]$/, '$1');
  const isSecure = url.protocol === 'https:';
  const to = { host, port: Number(url.port || (isSecure ? 443 : 80)), noDelay: true, onread };
  return isSecure ? connectTls({ ...to, ...(isIP(host) === 0 && { servername: host }) }) : connect(to);
}

function giveBack(piece: Buffer): void {
  if (free.length < MOST_FREE) free.push(piece);
}

function brokenOff(): Error {
  return Object.assign(new Error('the connection was aborted before the end of the answer'), { code: 'ECONNRESET' });
}
