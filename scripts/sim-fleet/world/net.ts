import { EventEmitter } from 'node:events';
import type { SocketNode } from './disk.ts';
import { DiskError } from './disk.ts';
import { here } from './fs.ts';
import type { Process } from './world.ts';
import { world } from './world.ts';

/** Unix sockets of one machine: a name in its file system, and a listener that the kernel ends with its process. */

const LATENCY_MS = 0.05;

export class SimulatedSocket extends EventEmitter {
  readonly process: Process | undefined = world().current;
  peer: SimulatedSocket | undefined;
  #chunks: Buffer[] = [];
  #isEnded = false;
  #wake: () => void = () => undefined;

  end(text: string): void {
    const { peer } = this;
    if (peer === undefined) return;
    world().after(LATENCY_MS, peer.process, () => peer.receive(Buffer.from(text)));
  }

  receive(bytes: Buffer | undefined): void {
    if (bytes !== undefined) this.#chunks.push(bytes);
    this.#isEnded = true;
    this.#wake();
  }

  setTimeout(ms: number, ring: () => void): this {
    world().timer(ms, this.process, () => {
      if (!this.#isEnded) ring();
    });
    return this;
  }

  destroy(): void {
    this.#isEnded = true;
    this.#wake();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Buffer> {
    for (;;) {
      const chunk = this.#chunks.shift();
      if (chunk !== undefined) yield chunk;
      else if (this.#isEnded) return;
      else await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }
}

export class SimulatedServer extends EventEmitter {
  readonly process: Process | undefined = world().current;
  readonly #onConnection: (socket: SimulatedSocket) => void;
  #path: string | undefined;
  isListening = false;

  constructor(onConnection: (socket: SimulatedSocket) => void) {
    super();
    this.#onConnection = onConnection;
  }

  listen({ path }: { path: string }): this {
    const { disk } = here();
    world().after(LATENCY_MS, this.process, () => {
      if (disk.find(path) !== undefined) {
        this.emit('error', Object.assign(new Error(`listen EADDRINUSE ${path}`), { code: 'EADDRINUSE' }));
        return;
      }
      try {
        disk.refuseIfFull('listen', path);
        const node: SocketNode = { kind: 'socket', ino: world().inode(), listener: this };
        disk.name(path, node, 'listen');
      } catch (error) {
        this.emit('error', error);
        return;
      }
      this.#path = path;
      this.isListening = true;
      this.process?.onDeath(() => (this.isListening = false));
      this.emit('listening');
    });
    return this;
  }

  accept(client: SimulatedSocket): void {
    world().after(LATENCY_MS, this.process, () => {
      if (!this.isListening) return;
      const socket = new SimulatedSocket();
      socket.peer = client;
      this.#onConnection(socket);
    });
  }

  /** As libuv does it: the name it was bound to is removed, whoever has it by now. */
  close(then: () => void): void {
    this.isListening = false;
    const { disk } = here();
    if (this.#path !== undefined && disk.find(this.#path) !== undefined) disk.unlink(this.#path, 'close');
    world().after(0, this.process, then);
  }

  unref(): this {
    return this;
  }
}

export function createServer(onConnection: (socket: SimulatedSocket) => void): SimulatedServer {
  return new SimulatedServer(onConnection);
}

export function connect({ path }: { path: string }): SimulatedSocket {
  const socket = new SimulatedSocket();
  const { disk } = here();
  world().after(LATENCY_MS, socket.process, () => {
    const node = disk.find(path);
    const listener = node?.kind === 'socket' ? node.listener : undefined;
    if (node === undefined) socket.emit('error', new DiskError('ENOENT', 'connect', path));
    else if (!(listener instanceof SimulatedServer) || !listener.isListening) {
      socket.emit('error', new DiskError('ECONNREFUSED', 'connect', path));
    } else {
      socket.emit('connect');
      listener.accept(socket);
    }
  });
  return socket;
}
