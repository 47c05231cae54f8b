import type { Socket } from 'node:net';
import { Deadline } from '../../shared/abort.ts';

export type ConnectionLimits = {
  /** Connections of one address that have not shown a token yet. */
  unknownPerAddress: number;
  /** The same of all addresses together. */
  unknown: number;
  /** Connections with a token. */
  known: number;
  /** By then a connection must have shown a token, whatever it sends until then. */
  showTokenMs: number;
  /** Where there are too many, the oldest ends at this age, which is long enough for one that means it. */
  crowdedMs: number;
};

export const CONNECTION_LIMITS: ConnectionLimits = {
  unknownPerAddress: 20,
  unknown: 200,
  known: 2_000,
  showTokenMs: 10_000,
  crowdedMs: 1_000,
};

type Unknown = { address: string; connection: Socket; sinceMs: number; patience: Deadline };

/**
 * Counts the connections of the port. One that shows no token ends after a while even if it sends something, and earlier
 * when there are many of them: the oldest go first, so that somebody who only holds connections open cannot keep out
 * somebody who shows a token with the first packet.
 */
export class ConnectionBudget {
  readonly #limits: ConnectionLimits;
  /** In the order of their arrival, by address and port of the other end: under TLS the same one has two sockets. */
  readonly #unknown = new Map<string, Unknown>();
  readonly #perAddress = new Map<string, number>();
  #known = 0;

  constructor(limits: ConnectionLimits = CONNECTION_LIMITS) {
    this.#limits = limits;
  }

  add(connection: Socket): void {
    const key = keyOf(connection);
    if (key === undefined) return void connection.destroy(); // it has gone already
    const address = addressOf(connection);
    const patience = new Deadline({ ms: this.#limits.showTokenMs });
    patience.signal.addEventListener('abort', () => connection.destroy(), { once: true });
    this.#unknown.set(key, { address, connection, sinceMs: performance.now(), patience });
    this.#perAddress.set(address, (this.#perAddress.get(address) ?? 0) + 1);
    connection.once('close', () => this.#drop(key));
    this.#makeRoom(address);
  }

  /** The connection has shown a token; false when there is no room for one more of those. */
  know(connection: Socket): boolean {
    const key = keyOf(connection);
    if (key === undefined || !this.#unknown.has(key)) return true; // it did so before, or has gone
    if (this.#known >= this.#limits.known) return false;
    this.#drop(key);
    this.#known += 1;
    connection.once('close', () => (this.#known -= 1));
    return true;
  }

  #makeRoom(address: string): void {
    const { unknown, unknownPerAddress, crowdedMs } = this.#limits;
    if (this.#unknown.size > unknown) first(this.#unknown.values())?.connection.destroy();
    if ((this.#perAddress.get(address) ?? 0) <= unknownPerAddress) return;
    let surplus = (this.#perAddress.get(address) ?? 0) - unknownPerAddress;
    for (const { address: other, sinceMs, patience } of this.#unknown.values()) {
      if (other !== address) continue;
      patience.restart(Math.max(0, crowdedMs - (performance.now() - sinceMs)));
      surplus -= 1;
      if (surplus === 0) return;
    }
  }

  #drop(key: string): void {
    const found = this.#unknown.get(key);
    if (found === undefined) return;
    this.#unknown.delete(key);
    found.patience[Symbol.dispose]();
    const left = (this.#perAddress.get(found.address) ?? 1) - 1;
    if (left === 0) this.#perAddress.delete(found.address);
    else this.#perAddress.set(found.address, left);
  }
}

/** Whom a limit counts: one IPv4 address, or the network of an IPv6 one, of which everybody has 2^64 addresses. */
export function addressOf({ remoteAddress = '' }: Pick<Socket, 'remoteAddress'>): string {
  const plain = remoteAddress.replace(/^::ffff:(?=[\d.]+$)/, '');
  if (!plain.includes(':')) return plain;
  const [head = '', tail = ''] = plain.split('::');
  const front = head.split(':').filter(Boolean);
  const back = tail.split(':').filter(Boolean);
  const zeros: string[] = Array<string>(Math.max(0, 8 - front.length - back.length)).fill('0');
  return [...front, ...(plain.includes('::') ? zeros : []), ...back].slice(0, 4).join(':');
}

function keyOf({ remoteAddress, remotePort }: Socket): string | undefined {
  return remoteAddress === undefined ? undefined : `${remoteAddress} ${remotePort}`;
}

function first<T>(values: Iterable<T>): T | undefined {
  for (const value of values) return value;
  return undefined;
}
