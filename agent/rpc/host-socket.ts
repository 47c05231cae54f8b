import type { Socket } from 'node:net';
import type { z } from 'zod';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Frame } from '../../shared/protocol.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Audit } from './audit.ts';
import { cleaned, errorFrame, parseFrame } from './frames.ts';
import type { HostContext } from './method-table.ts';
import { HOST_METHODS } from './method-table.ts';
import { RequestDesk } from './request-desk.ts';

export type HostSocketOptions = { context: Omit<HostContext, 'signal'>; audit: Audit; log: Log };

const MAX_CLIENTS = 32;
/** A client that neither sends nor reads for so long, and waits for no answer, is not there any more. */
const IDLE_MS = 60_000;

/**
 * The commands on this host: the requests of `HOST_METHODS` as lines of JSON on a unix socket. Only the user that runs the
 * agent, and root, can open the socket's file; so whoever speaks here is an operator. No client can hold up the agent.
 */
export class HostSocket implements AsyncDisposable {
  readonly #options: HostSocketOptions;
  readonly #clients = new Set<Socket>();
  #isClosed = false;

  constructor(options: HostSocketOptions) {
    this.#options = options;
  }

  accept(socket: Socket): void {
    if (this.#isClosed || this.#clients.size >= MAX_CLIENTS) return void socket.destroy();
    this.#clients.add(socket);
    socket.once('close', () => this.#clients.delete(socket));
    serve(socket, this.#options);
  }

  /** Cuts every client: each sees the end of the stream. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true;
    for (const socket of this.#clients) socket.destroy();
    return Promise.resolve();
  }
}

function serve(socket: Socket, { context, audit, log }: HostSocketOptions): void {
  const ended = new AbortController();
  const desk = new RequestDesk({
    methods: HOST_METHODS,
    role: 'operator',
    context: { ...context, signal: ended.signal },
    send,
    onInvalid: (method, error) => refuse(method, error),
    onTooMany: () => refuse('requests'),
    audit: (entry) => audit({ ...entry, from: 'host' }),
    log,
  });
  let unread = Buffer.alloc(0);
  socket.setTimeout(IDLE_MS, () => {
    if (desk.inFlight === 0 || socket.writableLength > 0) socket.destroy();
  });
  socket.on('error', () => socket.destroy()); // the client has gone
  socket.once('close', () => ended.abort());
  socket.on('data', (chunk: Buffer) => {
    unread = Buffer.concat([unread, chunk]);
    for (let end = unread.indexOf(NEWLINE); end >= 0; end = unread.indexOf(NEWLINE)) {
      const line = unread.subarray(0, end);
      unread = unread.subarray(end + 1);
      if (line.length > LIMITS.frameBytes.value) refuse('frame');
      else receive(line);
      if (socket.destroyed || !socket.writable) return;
    }
    if (unread.length > LIMITS.frameBytes.value) refuse('frame');
  });

  function receive(line: Buffer): void {
    const frame = parseFrame(line);
    if (!frame?.success || !('method' in frame.data) || !('id' in frame.data)) return refuse('frame', frame?.error);
    desk.take(frame.data);
  }

  function send(frame: Frame): void {
    if (!socket.writable) return;
    socket.write(`${JSON.stringify(frame)}\n`);
    if (socket.writableLength > LIMITS.statusEndBytes.value) socket.destroy(); // it asks and does not read
  }

  /** Says what is wrong, as far as it is read, and hangs up. */
  function refuse(what: string, error?: z.ZodError): void {
    const [issue] = error?.issues ?? [];
    const path = [what, ...(issue?.path.map(String) ?? [])].join('.');
    const message = `invalid ${cleaned(path, 100)}: ${issue?.message ?? 'not allowed here'}`;
    log.warn({ event: 'invalid-frame', from: 'host-socket', path: cleaned(path, 100), problem: issue?.message });
    send(errorFrame(-1, new AppError('INVALID_ARGUMENT', message)));
    unread = Buffer.alloc(0);
    socket.removeAllListeners('data');
    socket.end(() => socket.destroy());
  }
}

const NEWLINE = 0x0a;
