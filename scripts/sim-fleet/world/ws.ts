import { EventEmitter } from 'node:events';
import type { Endpoint, Piece } from './network.ts';
import { Connection, network } from './network.ts';
import type { Process } from './world.ts';
import { world } from './world.ts';

const CONNECTING = 0;
const OPEN = 1;
const CLOSING = 2;
const CLOSED = 3;
/** As the package `ws` waits for the other side of a closing handshake. */
const CLOSE_MS = 30_000;

type Options = { headers?: { authorization?: string }; handshakeTimeout?: number };

/** In the place of the package `ws`: both ends, over the simulated network. */
export class WebSocket extends EventEmitter implements Endpoint {
  static readonly OPEN = OPEN;
  readonly OPEN = OPEN;
  readonly process: Process;
  readyState = CONNECTING;
  readonly bufferedAmount = 0;
  #connection: Connection | undefined;
  #side: 'toHost' | 'toBridge' = 'toHost';
  #hasSentClose = false;

  constructor(url: string | { connection: Connection; process: Process }, _protocol?: string, options: Options = {}) {
    super();
    if (typeof url !== 'string') {
      this.process = url.process;
      this.#connection = url.connection;
      this.#side = 'toBridge';
      this.readyState = OPEN;
      return;
    }
    const { current } = world();
    if (current === undefined) throw new Error('no process connects');
    this.process = current;
    this.#dial(new URL(url).hostname, options);
  }

  send(data: Buffer | string, _o?: object): void {
    if (this.readyState === OPEN) this.#put({ kind: 'message', text: data.toString() });
  }

  ping(): void {
    if (this.readyState === OPEN) this.#put({ kind: 'ping' });
  }

  close(code = 1000, reason = ''): void {
    if (this.readyState === CONNECTING) return this.terminate();
    if (this.readyState !== OPEN) return;
    this.readyState = CLOSING;
    this.#hasSentClose = true;
    this.#put({ kind: 'close', code, reason });
    world().timer(CLOSE_MS, this.process, () => this.terminate());
  }

  terminate(): void {
    if (this.readyState === CLOSED) return;
    const wasConnecting = this.readyState === CONNECTING;
    if (!wasConnecting) this.#put({ kind: 'end' });
    this.readyState = CLOSED;
    world().after(0, this.process, () => {
      if (wasConnecting) this.emit('error', new Error('closed before the connection was established'));
      this.emit('close', 1006, Buffer.alloc(0));
    });
  }

  receive(piece: Piece): void {
    if (this.readyState === CLOSED) {
      if (piece.kind !== 'end' && piece.kind !== 'close') this.#put({ kind: 'end' });
      return;
    }
    switch (piece.kind) {
      case 'message':
        return void this.emit('message', Buffer.from(piece.text), false);
      case 'ping':
        this.#put({ kind: 'pong' });
        return void this.emit('ping');
      case 'pong':
        return void this.emit('pong');
      case 'close':
        if (!this.#hasSentClose) this.#put(piece);
        return this.#closed(piece.code, piece.reason);
      case 'end':
        return this.#closed(1006, '');
    }
  }

  #closed(code: number, reason: string): void {
    this.readyState = CLOSED;
    this.emit('close', code, Buffer.from(reason));
  }

  #put(piece: Piece): void {
    this.#connection?.send(this.#side, piece, this.process);
  }

  #dial(host: string, { headers, handshakeTimeout = 10_000 }: Options): void {
    const way = network().way(this.process.machine.name, host);
    const latencyMs = way.latencyMs * world().rng.between(0.6, 1.4);
    const token = (headers?.authorization ?? '').replace('Bearer ', '');
    const late = world().timer(handshakeTimeout, this.process, () => this.#fail('Opening handshake has timed out'));
    const isReachable = (): boolean => way.isWhole && network().isOn(host);
    world().after(latencyMs, undefined, () => {
      if (!isReachable() || !this.process.isAlive) return;
      const listener = network().listenerOf(host);
      if (listener === undefined) {
        world().after(latencyMs, this.process, () => this.#fail(`connect ECONNREFUSED ${host}`));
        return;
      }
      world().after(0, listener.process, () => {
        const connection = new Connection(way);
        connection.attach('toBridge', this);
        const theirs = new WebSocket({ connection, process: listener.process });
        connection.attach('toHost', theirs);
        world().after(latencyMs, this.process, () => {
          late.run = undefined;
          this.#connection = connection;
          if (this.readyState !== CONNECTING) return this.#put({ kind: 'end' });
          this.readyState = OPEN;
          this.emit('open');
        });
        listener.onSocket(theirs, token);
      });
    });
  }

  #fail(why: string): void {
    if (this.readyState !== CONNECTING) return;
    this.readyState = CLOSED;
    this.emit('error', new Error(why));
    this.emit('close', 1006, Buffer.alloc(0));
  }
}
