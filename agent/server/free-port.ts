import { once } from 'node:events';
import { createServer } from 'node:net';

const MAX_TRIES = 50;

/** A port that no other server of ours gets until it is disposed. */
export type PortLease = Disposable & { number: number };

/**
 * The ports of our servers. A server binds its port long after it was given one, so that the kernel alone would give the
 * same port to two that start at the same time. Anyone else may still take it: readiness checks who listens.
 */
export class PortTable {
  readonly #host: string;
  readonly #taken = new Set<number>();

  constructor(host: string) {
    this.#host = host;
  }

  async take(): Promise<PortLease> {
    for (let tries = 0; tries < MAX_TRIES; tries += 1) {
      const number = await freePort(this.#host);
      if (this.#taken.has(number)) continue;
      this.#taken.add(number);
      return { number, [Symbol.dispose]: () => void this.#taken.delete(number) };
    }
    throw new Error(`no port is free on ${this.#host}`);
  }
}

/** A port that can be bound now, as the kernel chooses it. */
export async function freePort(host: string): Promise<number> {
  const probe = createServer();
  probe.listen(0, host);
  await once(probe, 'listening');
  const address = probe.address();
  probe.close();
  await once(probe, 'close');
  if (address === null || typeof address === 'string') throw new Error('a TCP listener has a port');
  return address.port;
}
