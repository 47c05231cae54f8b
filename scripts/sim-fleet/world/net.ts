import { EventEmitter } from 'node:events';
import { Duplex } from 'node:stream';
import type { SocketNode } from './disk.ts';
import { DiskError } from './disk.ts';
import { here } from './fs.ts';
import type { Process } from './world.ts';
import { world } from './world.ts';

/** Unix sockets of one machine: a name in its file system, and a listener that the kernel ends with its process. */

const LATENCY_MS = 0.05;

/** One end of a connection. The kernel ends it with its process, and the other end sees that. */
export class SimulatedSocket extends Duplex {
  readonly process: Process | undefined;
  peer: SimulatedSocket | undefined;
  #hasEnded = false;

  constructor(process: Process | undefined) {
    super({ allowHalfOpen: false });
    this.process = process;
    const stop = process?.onDeath(() => this.#send(null));
    this.once('close', () => stop?.());
  }

  override _read(): void {
    // Bytes come when the other end sends them.
  }

  override _write(bytes: Buffer, _encoding: string, done: () => void): void {
    this.#send(bytes);
    done();
  }

  override _final(done: () => void): void {
    this.#send(null);
    done();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#send(null);
    done(error);
  }

  #send(bytes: Buffer | null): void {
    const { peer } = this;
    if (peer !== undefined) world().after(LATENCY_MS, peer.process, () => peer.#receive(bytes));
  }

  #receive(bytes: Buffer | null): void {
    if (this.destroyed || this.#hasEnded) return;
    this.#hasEnded = bytes === null;
    this.push(bytes);
  }
}

export class SimulatedServer extends EventEmitter {
  readonly process: Process | undefined = world().current;
  readonly #onConnection: (socket: SimulatedSocket) => void;
  #path: string | undefined;
  listening = false;

  constructor(onConnection: (socket: SimulatedSocket) => void) {
    super();
    this.#onConnection = onConnection;
  }

  /** The name is there at once, and the event comes in the next tick, as with libuv. */
  listen(path: string): this {
    const { disk } = here();
    try {
      if (disk.find(path) !== undefined) {
        throw Object.assign(new Error(`listen EADDRINUSE ${path}`), { code: 'EADDRINUSE' });
      }
      disk.refuseIfFull('listen', path);
      const node: SocketNode = { kind: 'socket', ino: world().inode(), listener: this };
      disk.name(path, node, 'listen');
      this.#path = path;
      this.listening = true;
      this.process?.onDeath(() => (this.listening = false));
      process.nextTick(() => this.emit('listening'));
    } catch (error) {
      process.nextTick(() => this.emit('error', error));
    }
    return this;
  }

  accept(client: SimulatedSocket): void {
    const socket = new SimulatedSocket(this.process);
    socket.peer = client;
    client.peer = socket;
    world().after(LATENCY_MS, this.process, () => {
      if (this.listening) this.#onConnection(socket);
      else socket.destroy();
    });
  }

  /** As libuv does it: the name it was bound to is removed, whoever has it by now. */
  close(): void {
    this.listening = false;
    const { disk } = here();
    if (this.#path !== undefined && disk.find(this.#path) !== undefined) disk.unlink(this.#path, 'close');
    process.nextTick(() => this.emit('close'));
  }

  unref(): this {
    return this;
  }
}

export function createServer(onConnection: (socket: SimulatedSocket) => void): SimulatedServer {
  return new SimulatedServer(onConnection);
}

export function connect(path: string): SimulatedSocket {
  const socket = new SimulatedSocket(world().current);
  const { disk } = here();
  world().after(LATENCY_MS, socket.process, () => {
    const node = disk.find(path);
    const listener = node?.kind === 'socket' ? node.listener : undefined;
    if (node === undefined) socket.destroy(new DiskError('ENOENT', 'connect', path));
    else if (!(listener instanceof SimulatedServer) || !listener.listening) {
      socket.destroy(new DiskError('ECONNREFUSED', 'connect', path));
    } else {
      listener.accept(socket);
      socket.emit('connect');
    }
  });
  return socket;
}
