import { Rng } from './rng.ts';
import { Disk } from './disk.ts';

/** Wall clock at the start of every history. */
const EPOCH_MS = Date.UTC(2026, 0, 15, 9, 0, 0);

/** Something that happens at a moment of virtual time, in one process or in the world itself. */
export type Event = {
  atMs: number;
  readonly seq: number;
  /** Whose doing it is; undefined: the world's own. It does not happen once that process is dead. */
  readonly process: Process | undefined;
  /** For timers: the reading of their machine's monotonic clock at which they are due. */
  readonly dueMonoMs: number | undefined;
  run: (() => void) | undefined;
};

/** A computer: a disk, a clock that stands still while it sleeps, and processes. */
export class Machine {
  readonly name: string;
  readonly disk: Disk;
  readonly processes = new Set<Process>();
  isOn = true;
  #sleptMs = 0;
  #asleepSinceMs: number | undefined;
  wakesAtMs = 0;

  constructor(name: string) {
    this.name = name;
    this.disk = new Disk(this);
  }

  /** As CLOCK_MONOTONIC on Linux: it does not run while the machine sleeps. */
  monoMs(nowMs: number): number {
    return (this.#asleepSinceMs ?? nowMs) - this.#sleptMs;
  }

  get isAsleep(): boolean {
    return this.#asleepSinceMs !== undefined;
  }

  sleep(nowMs: number, forMs: number): void {
    this.#asleepSinceMs = nowMs;
    this.wakesAtMs = nowMs + forMs;
  }

  wake(nowMs: number): void {
    if (this.#asleepSinceMs === undefined) return;
    this.#sleptMs += nowMs - this.#asleepSinceMs;
    this.#asleepSinceMs = undefined;
  }
}

/** One run of a program. Nothing of it happens after its death: the world's calls it waits for never answer. */
export class Process {
  readonly pid: number;
  readonly machine: Machine;
  readonly what: string;
  isAlive = true;
  /** Stopped, as by SIGSTOP: its clock runs on, and it does nothing. */
  hungUntilMs = 0;
  readonly #onDeath = new Set<() => void>();

  constructor(pid: number, machine: Machine, what: string) {
    this.pid = pid;
    this.machine = machine;
    this.what = what;
    machine.processes.add(this);
  }

  /** What the kernel does for the dead: sockets end. */
  onDeath(then: () => void): () => void {
    this.#onDeath.add(then);
    return () => this.#onDeath.delete(then);
  }

  die(): void {
    if (!this.isAlive) return;
    this.isAlive = false;
    this.machine.processes.delete(this);
    for (const then of this.#onDeath) then();
    this.#onDeath.clear();
  }
}

/** Virtual time: one queue of events, one at a time, each with all that follows from it before the next begins. */
export class World {
  readonly rng: Rng;
  nowMs = 0;
  /** Whose code runs now. */
  current: Process | undefined;
  /** Numbers that tell one history from another. */
  #hash = 0x811c9dc5;
  #events = 0;
  #seq = 0;
  #nextPid = 100;
  #nextInode = 1;
  readonly #heap: Event[] = [];
  /** What no code of the product caught: a real process would end by it. */
  onThrown: (error: unknown) => void = () => undefined;
  /** Lines for a person; undefined where nobody reads them. */
  readonly trace: string[] | undefined;

  constructor(seed: number, { isTraced = false }: { isTraced?: boolean } = {}) {
    this.rng = new Rng(seed);
    this.trace = isTraced ? [] : undefined;
  }

  get hash(): string {
    return (this.#hash >>> 0).toString(16).padStart(8, '0');
  }

  get events(): number {
    return this.#events;
  }

  get wallMs(): number {
    return EPOCH_MS + this.nowMs;
  }

  spawn(machine: Machine, what: string): Process {
    this.#nextPid += 1;
    return new Process(this.#nextPid, machine, what);
  }

  inode(): number {
    this.#nextInode += 1;
    return this.#nextInode;
  }

  /** Enters into the history, which two runs of one seed must share. */
  mix(value: number): void {
    this.#hash = Math.imul(this.#hash ^ (value | 0), 0x01000193);
  }

  say(what: string, text: () => string): void {
    if (this.trace === undefined) return;
    const seconds = (this.nowMs / 1000).toFixed(3).padStart(9);
    this.trace.push(`${seconds}  ${(this.current?.what ?? what).padEnd(9)} ${what.padEnd(9)} ${text()}`);
  }

  after(ms: number, process: Process | undefined, run: () => void): Event {
    return this.#push({ atMs: this.nowMs + Math.max(0, ms), process, dueMonoMs: undefined, run });
  }

  /** By the clock of its process' machine. */
  timer(ms: number, process: Process | undefined, run: () => void): Event {
    const dueMs = Math.max(0, Number.isFinite(ms) ? ms : 0);
    const dueMonoMs = process && process.machine.monoMs(this.nowMs) + dueMs;
    return this.#push({ atMs: this.nowMs + dueMs, process, dueMonoMs, run });
  }

  /** Runs until `isOver`, or until the time is up; true when it was over. */
  async run(isOver: () => boolean, untilMs: number): Promise<boolean> {
    while (!isOver()) {
      const event = this.#pop();
      if (event === undefined || event.atMs > untilMs) {
        if (event !== undefined) this.#reinsert(event);
        this.nowMs = Math.max(this.nowMs, untilMs);
        return false;
      }
      this.nowMs = Math.max(this.nowMs, event.atMs);
      const { process, run } = event;
      if (run === undefined || process?.isAlive === false) continue;
      if (process !== undefined && this.#isDelayed(event, process)) continue;
      this.#events += 1;
      this.mix(event.seq);
      this.mix(this.nowMs * 1000);
      this.current = process;
      try {
        run();
      } catch (error) {
        this.onThrown(error);
      }
      await settled();
      this.current = undefined;
    }
    return true;
  }

  /** In the event that runs now, if that process can do anything now; else when it can. */
  runAs(process: Process, run: () => void): void {
    const { machine } = process;
    if (machine.isAsleep || process.hungUntilMs > this.nowMs) {
      this.after(0, process, run);
      return;
    }
    if (!process.isAlive) return;
    this.current = process;
    run();
  }

  /** Of a machine that sleeps or a process that is stopped: later. */
  #isDelayed(event: Event, process: Process): boolean {
    const { machine } = process;
    if (machine.isAsleep && machine.wakesAtMs <= this.nowMs) machine.wake(machine.wakesAtMs);
    const monoMs = machine.monoMs(this.nowMs);
    if (machine.isAsleep) event.atMs = machine.wakesAtMs;
    else if (process.hungUntilMs > this.nowMs) event.atMs = process.hungUntilMs;
    else if (event.dueMonoMs !== undefined && event.dueMonoMs - monoMs > 0.001) {
      event.atMs = this.nowMs + event.dueMonoMs - monoMs;
    } else return false;
    this.#reinsert(event);
    return true;
  }

  #push(event: Omit<Event, 'seq'>): Event {
    this.#seq += 1;
    const numbered = { ...event, seq: this.#seq };
    this.#reinsert(numbered);
    return numbered;
  }

  #reinsert(event: Event): void {
    const heap = this.#heap;
    let at = heap.length;
    heap.push(event);
    while (at > 0) {
      const up = (at - 1) >> 1;
      const parent = heap[up];
      if (parent === undefined || !isBefore(event, parent)) break;
      heap[at] = parent;
      at = up;
    }
    heap[at] = event;
  }

  #pop(): Event | undefined {
    const heap = this.#heap;
    const top = heap[0];
    const last = heap.pop();
    if (top === undefined || last === undefined || heap.length === 0) return top;
    let at = 0;
    for (;;) {
      let down = 2 * at + 1;
      let child = heap[down];
      if (child === undefined) break;
      const right = heap[down + 1];
      if (right !== undefined && isBefore(right, child)) {
        child = right;
        down += 1;
      }
      if (!isBefore(child, last)) break;
      heap[at] = child;
      at = down;
    }
    heap[at] = last;
    return top;
  }
}

function isBefore(a: Event, b: Event): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.seq < b.seq);
}

/** All that follows at once from what was just done: promises, and what Node puts off to the next tick. */
function settled(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

let present: World | undefined;

/** The world that the replaced modules of Node act on. There is one at a time. */
export function world(): World {
  if (present === undefined) throw new Error('no world was made');
  return present;
}

export function enterWorld(next: World): World {
  present = next;
  return next;
}
