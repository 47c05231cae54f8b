import { once, setMaxListeners } from 'node:events';
import { connect, createServer } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { pause } from '../../shared/abort.ts';

/** What is wrong with the network now; it may be changed while connections are open. */
export type Toxics = {
  /** Every byte arrives so much later, in both directions. */
  latencyMs?: number;
  /** Bytes are handed on in pieces of at most this size, each in a turn of its own. */
  sliceBytes?: number;
  /** Of connections whose first line matches. */
  slow?: { firstLine: RegExp; bytesPerS: number };
  /** Nothing is handed on in either direction, no end of a connection either; all of it arrives when this is over. */
  isSilent?: boolean;
};

/** The next connections whose first line matches are reset after so many bytes of the answer. */
export type ResetRule = { firstLine: RegExp; afterBytes: number; times: number };

/** One connection: `firstLine` grows until its end has come. */
type Link = { client: Socket; host: Socket; firstLine: string };

/** What may be under way in one direction of one connection: as much as a network and its buffers hold. */
const MOST_QUEUED = 256 * 1024;

/** A bad network in front of one host: a TCP proxy of this process on a port of its own. */
export class ChaosProxy implements AsyncDisposable {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #stop = new AbortController();
  #heard = new AbortController();
  #toxics: Toxics = {};
  #reset: ResetRule | undefined;
  /** First lines of all connections, in their order. */
  readonly firstLines: string[] = [];
  resets = 0;

  private constructor(target: number) {
    setMaxListeners(0, this.#stop.signal); // one for each wait of each connection
    setMaxListeners(0, this.#heard.signal);
    this.#server = createServer({ allowHalfOpen: true }, (client) => this.#join(client, target));
  }

  static async start(target: { url: string }): Promise<ChaosProxy> {
    const proxy = new ChaosProxy(Number(new URL(target.url).port));
    await once(proxy.#server.listen(0, '127.0.0.1'), 'listening');
    return proxy;
  }

  get url(): string {
    return `ws://127.0.0.1:${(this.#server.address() as AddressInfo).port}`; // a TCP server that listens has one
  }

  set(toxics: Toxics): void {
    this.#toxics = toxics;
    this.#heard.abort(); // whoever waits looks again
    this.#heard = new AbortController();
    setMaxListeners(0, this.#heard.signal);
  }

  resetNext(rule: ResetRule): void {
    this.#reset = rule;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    this.#heard.abort();
    const closed = once(this.#server, 'close');
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }

  #join(client: Socket, target: number): void {
    const host = connect({ port: target, host: '127.0.0.1', allowHalfOpen: true, noDelay: true });
    client.setNoDelay(true);
    for (const socket of [client, host]) {
      this.#sockets.add(socket);
      socket.on('error', () => undefined); // its `close` follows
      socket.once('close', () => void this.#onClose(socket, socket === client ? host : client)); // it awaits nothing that fails
    }
    const link: Link = { client, host, firstLine: '' };
    // A pump ends with its connection, and an error of it is the end of the other side too.
    this.#pump(link, 'question').catch(() => host.destroy());
    this.#pump(link, 'answer').catch(() => client.destroy());
  }

  async #onClose(socket: Socket, other: Socket): Promise<void> {
    this.#sockets.delete(socket);
    await this.#untilHeard();
    if (!socket.readableEnded) other.destroy(); // else the pump hands on the orderly end
  }

  /** Reads on while it writes late, as a network does. */
  async #pump(link: Link, what: 'question' | 'answer'): Promise<void> {
    const [from, to] = what === 'question' ? [link.client, link.host] : [link.host, link.client];
    const queue: { bytes: Buffer | undefined; dueMs: number }[] = [];
    let queued = 0;
    const put = (bytes: Buffer | undefined): void => {
      queue.push({ bytes, dueMs: performance.now() + (this.#toxics.latencyMs ?? 0) });
      queued += bytes?.length ?? 0;
      if (queued > MOST_QUEUED) from.pause();
    };
    from.on('data', put);
    from.once('end', () => put(undefined));
    for (let before = 0; !this.#stop.signal.aborted && !to.destroyed;) {
      await this.#untilHeard();
      const next = queue.shift();
      if (next === undefined) {
        await nextOf(from, this.#stop.signal);
        if (from.destroyed && queue.length === 0) return;
        continue;
      }
      await pause(next.dueMs - performance.now(), this.#stop.signal);
      if (next.bytes === undefined) return void to.end();
      const slow = this.#toxics.slow?.firstLine.test(link.firstLine) === true ? this.#toxics.slow : undefined;
      const most = slow === undefined ? this.#toxics.sliceBytes : Math.ceil(slow.bytesPerS / 20);
      for (const piece of pieces(next.bytes, most)) {
        await this.#untilHeard();
        if (what === 'question') this.#read(link, piece);
        else if (!this.#mayPass(link, { bytes: piece, before })) return;
        before += piece.length;
        if (!to.write(piece)) await Promise.race([once(to, 'drain'), once(to, 'close')]);
        if (slow !== undefined) await pause((piece.length / slow.bytesPerS) * 1_000, this.#stop.signal);
        else if (most !== undefined) await nextTurn();
      }
      queued -= next.bytes.length;
      if (queued <= MOST_QUEUED) from.resume();
    }
  }

  async #untilHeard(): Promise<void> {
    while (this.#toxics.isSilent === true && !this.#stop.signal.aborted) await aborted(this.#heard.signal);
  }

  #read(link: Link, bytes: Buffer): void {
    if (link.firstLine.includes('\n')) return;
    link.firstLine += bytes.toString('latin1');
    if (link.firstLine.includes('\n'))
      this.firstLines.push(link.firstLine.slice(0, link.firstLine.indexOf('\n')).trim());
  }

  #mayPass(link: Link, { bytes, before }: { bytes: Buffer; before: number }): boolean {
    const rule = this.#reset;
    if (rule === undefined || rule.times === 0 || !rule.firstLine.test(link.firstLine)) return true;
    if (before + bytes.length < rule.afterBytes) return true;
    this.#reset = { ...rule, times: rule.times - 1 };
    this.resets += 1;
    link.client.write(bytes.subarray(0, rule.afterBytes - before), () => link.client.resetAndDestroy());
    return false;
  }
}

function pieces(bytes: Buffer, size = bytes.length): Buffer[] {
  return Array.from({ length: Math.ceil(bytes.length / size) }, (_, at) => bytes.subarray(at * size, (at + 1) * size));
}

async function nextOf(socket: Socket, signal: AbortSignal): Promise<void> {
  if (socket.destroyed) return;
  const gone = new AbortController();
  const until = AbortSignal.any([signal, gone.signal]);
  const events = ['data', 'end', 'close'].map((event) => once(socket, event, { signal: until }).catch(() => undefined)); // only aborts
  await Promise.race(events);
  gone.abort();
}

async function aborted(signal: AbortSignal): Promise<void> {
  if (!signal.aborted) await once(signal, 'abort');
}
