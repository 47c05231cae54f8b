import { EventEmitter, once } from 'node:events';
import type { IncomingMessage } from 'node:http';
import { randomUUID } from 'node:crypto';
import { WebSocket } from 'ws';
import { Frame, PROTOCOL_VERSION, SUBPROTOCOL } from '../../../shared/protocol.ts';

type PeerOptions = { token?: string; headers?: Record<string, string>; path?: string; protocols?: string[] };
type Reply = Extract<Frame, { id: number }> & {
  result?: unknown;
  error?: { code: number; message: string; data: { code: string } };
};

/** The other end of an agent's port, as bare as it gets: sends what a test says, keeps what it receives. */
export class WsPeer implements AsyncDisposable {
  readonly frames: Frame[] = [];
  readonly #socket: WebSocket;
  readonly #events = new EventEmitter().setMaxListeners(0);
  #closed: { code: number; reason: string } | undefined;
  #lastId = 0;

  private constructor(socket: WebSocket) {
    this.#socket = socket;
    socket.on('message', (data) => {
      this.frames.push(Frame.parse(JSON.parse((data as Buffer).toString()))); // binaryType is nodebuffer
      this.#events.emit('change');
    });
    socket.on('error', () => undefined); // a test reads the close code
    socket.on('close', (code, reason) => {
      this.#closed = { code, reason: reason.toString() };
      this.#events.emit('change');
    });
  }

  /** Resolves once the socket is open, or with the status of a refused upgrade. */
  static async connect(
    address: { port: number },
    options: PeerOptions = {},
  ): Promise<WsPeer | { status: number; text: string }> {
    const { token, headers = {}, path = '/v1/ws', protocols = [SUBPROTOCOL] } = options;
    const authorization = token === undefined ? {} : { authorization: `Bearer ${token}` };
    const socket = new WebSocket(`ws://127.0.0.1:${address.port}${path}`, protocols, {
      headers: { ...authorization, ...headers },
    });
    const peer = new WsPeer(socket);
    const refused = once(socket, 'unexpected-response').then(async ([, answer]) => {
      const response = answer as IncomingMessage; // documented arguments of this event
      const chunks: Buffer[] = [];
      for await (const chunk of response) chunks.push(chunk as Buffer);
      return { status: response.statusCode ?? 0, text: Buffer.concat(chunks).toString() };
    });
    refused.catch(() => undefined); // the socket's own error then
    return await Promise.race([once(socket, 'open').then(() => peer), refused]);
  }

  /** Connected, with hello said. */
  static async hello(address: { port: number }, token: string, bridgeId: string = randomUUID()): Promise<WsPeer> {
    const peer = await WsPeer.connect(address, { token });
    if (!(peer instanceof WsPeer)) throw new Error(`refused with ${peer.status}`);
    await peer.ask('hello', { version: PROTOCOL_VERSION, bridgeId, name: 'test' });
    return peer;
  }

  send(frame: unknown): void {
    this.#socket.send(typeof frame === 'string' ? frame : JSON.stringify(frame));
  }

  async ask(method: string, params: unknown): Promise<Reply> {
    this.#lastId += 1;
    const id = this.#lastId;
    this.send({ jsonrpc: '2.0', id, method, params });
    return await this.until(() => this.frames.find((frame): frame is Reply => 'id' in frame && frame.id === id));
  }

  /** The next value that `look` finds; it is asked again after every frame. */
  async until<T>(look: () => T | undefined): Promise<T> {
    const signal = AbortSignal.timeout(15_000);
    for (;;) {
      const found = look();
      if (found !== undefined) return found;
      if (this.#closed !== undefined) throw new Error(`closed with ${this.#closed.code} ${this.#closed.reason}`);
      await once(this.#events, 'change', { signal });
    }
  }

  notifications(method: string): unknown[] {
    return this.frames.flatMap((frame) => ('method' in frame && frame.method === method ? [frame.params] : []));
  }

  async closed(): Promise<{ code: number; reason: string }> {
    while (this.#closed === undefined) await once(this.#events, 'change', { signal: AbortSignal.timeout(10_000) });
    return this.#closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed !== undefined) return;
    this.#socket.terminate();
    await this.closed();
  }
}
