import type { Machine, Process } from './world.ts';
import { world } from './world.ts';
import type { WebSocket } from './ws.ts';

/** What an agent's process offers to the network. */
export type Listener = {
  process: Process;
  onSocket: (socket: WebSocket, token: string) => void;
  onRequest: (request: { path: string; token: string; headers: Record<string, string> }) => Promise<HttpReply>;
};
export type HttpReply = { status: number; headers: Record<string, string>; body: Buffer };

/** One end of a connection, as its machine's kernel sees it. */
export type Endpoint = {
  readonly process: Process;
  /** In its own process. */
  receive(piece: Piece): void;
};
export type Piece =
  | { kind: 'message'; text: string }
  | { kind: 'ping' | 'pong' }
  | { kind: 'close'; code: number; reason: string }
  | { kind: 'end' };

type Direction = 'toHost' | 'toBridge';

/** The way between a laptop and a host. What is sent into a broken way is sent again once it is whole. */
export class Way {
  readonly bridge: Machine;
  readonly host: Machine;
  readonly latencyMs: number;
  readonly isLost: Record<Direction, boolean> = { toHost: false, toBridge: false };
  readonly waiting: (() => void)[] = [];
  /** When something last arrived from the host. */
  lastArrivalMs = 0;

  constructor(bridge: Machine, host: Machine, latencyMs: number) {
    this.bridge = bridge;
    this.host = host;
    this.latencyMs = latencyMs;
  }

  heal(): void {
    this.isLost.toHost = false;
    this.isLost.toBridge = false;
    for (const send of this.waiting.splice(0)) send();
  }

  get isWhole(): boolean {
    return !this.isLost.toHost && !this.isLost.toBridge;
  }
}

export class Network {
  readonly #ways = new Map<string, Way>();
  readonly #hosts = new Map<string, { machine: Machine; listener: Listener | undefined }>();
  /** Every piece that is put on a way, for the checkers. */
  onSent: (way: Way, direction: Direction, piece: Piece) => void = () => undefined;

  addHost(machine: Machine): void {
    this.#hosts.set(machine.name, { machine, listener: undefined });
  }

  addWay(bridge: Machine, host: Machine): Way {
    const way = new Way(bridge, host, world().rng.between(0.5, 40));
    this.#ways.set(`${bridge.name} ${host.name}`, way);
    return way;
  }

  way(bridge: string, host: string): Way {
    const way = this.#ways.get(`${bridge} ${host}`);
    if (way === undefined) throw new Error(`no way from ${bridge} to ${host}`);
    return way;
  }

  get ways(): Way[] {
    return [...this.#ways.values()];
  }

  listen(listener: Listener): void {
    const host = this.#hosts.get(listener.process.machine.name);
    if (host === undefined) throw new Error(`no host ${listener.process.machine.name}`);
    host.listener = listener;
  }

  /** Undefined where a connection would be refused. */
  listenerOf(host: string): Listener | undefined {
    const listener = this.#hosts.get(host)?.listener;
    return listener?.process.isAlive === true ? listener : undefined;
  }

  isOn(host: string): boolean {
    return this.#hosts.get(host)?.machine.isOn === true;
  }
}

let present: Network | undefined;

export function network(): Network {
  if (present === undefined) throw new Error('no network was made');
  return present;
}

export function enterNetwork(next: Network): Network {
  present = next;
  return next;
}

/** Two ends over one way: each direction in order, whatever the delays. */
export class Connection {
  readonly way: Way;
  readonly #ends = new Map<Direction, Endpoint>();
  readonly #lastMs: Record<Direction, number> = { toHost: 0, toBridge: 0 };
  readonly #queue: Record<Direction, { piece: Piece; sentBy: Process }[]> = { toHost: [], toBridge: [] };

  constructor(way: Way) {
    this.way = way;
  }

  attach(direction: Direction, end: Endpoint): void {
    this.#ends.set(direction, end);
    // The kernel says goodbye for the dead, unless the machine died with them.
    end.process.onDeath(() => {
      if (end.process.machine.isOn)
        this.send(direction === 'toHost' ? 'toBridge' : 'toHost', { kind: 'end' }, end.process);
    });
  }

  send(direction: Direction, piece: Piece, sentBy: Process): void {
    network().onSent(this.way, direction, piece);
    this.#queue[direction].push({ piece, sentBy });
    this.#schedule(direction);
  }

  #schedule(direction: Direction): void {
    const { rng } = world();
    const delayMs = this.way.latencyMs * rng.between(0.5, 1.5) + (rng.chance(0.02) ? rng.between(0, 300) : 0);
    const atMs = Math.max(this.#lastMs[direction], world().nowMs + delayMs);
    this.#lastMs[direction] = atMs;
    world().after(atMs - world().nowMs, undefined, () => this.#arrive(direction));
  }

  #arrive(direction: Direction): void {
    if (this.way.isLost[direction]) {
      this.way.waiting.push(() => this.#schedule(direction));
      return;
    }
    const piece = this.#queue[direction].shift();
    const end = this.#ends.get(direction);
    if (piece === undefined || end === undefined) return;
    const { machine } = end.process;
    if (!machine.isOn) return; // nobody answers
    if (!end.process.isAlive) {
      // Nothing knows this connection there any more.
      if (piece.piece.kind !== 'end')
        this.send(direction === 'toHost' ? 'toBridge' : 'toHost', { kind: 'end' }, end.process);
      return;
    }
    if (direction === 'toBridge') this.way.lastArrivalMs = world().nowMs;
    world().runAs(end.process, () => end.receive(piece.piece));
  }
}
