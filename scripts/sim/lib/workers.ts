import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { Socket } from 'node:net';
import { constants } from 'node:os';
import type { Duplex } from 'node:stream';
import { Deadline, pause } from '../../../shared/abort.ts';

/** The first argument that turns a simulated server's program into its own worker process. */
export const WORKER_ARGUMENT = 'simulated-worker';

/** The pipe between a server and its worker: "I am up" in one direction, the death of the server in the other. */
const PIPE_FD = 3;
const A_DAY_MS = 86_400_000;

export type WorkerPlan = {
  isOwnSession: boolean;
  /** Does not end with its parent, as workers did that asked the kernel for no signal (PR_SET_PDEATHSIG). */
  outlivesParent: boolean;
  ignoresSigterm: boolean;
  /** Shows nothing of its origin in /proc: another name, one word as command line, no environment. */
  isRetitled: boolean;
  /** How long a stopping server waits for its workers, twice. */
  joinMs: number;
  /** Whether it kills those that are left then, or leaves them. */
  killsInTheEnd: boolean;
};

/** The processes that hold a server's VRAM, one for each GPU; none of them without --fork. */
export class Workers {
  readonly #children: readonly ChildProcess[];
  readonly #plan: WorkerPlan | undefined;
  /** Every worker has its name and its signal handlers, or is dead. */
  readonly ready: Promise<unknown>;

  constructor(plan: WorkerPlan | undefined, titles: readonly string[]) {
    this.#plan = plan;
    this.#children = plan ? titles.map((title) => startWorker(title, plan)) : [];
    this.ready = Promise.all(this.#children.map(untilUp));
  }

  get pids(): number[] {
    return this.#children.flatMap(({ pid }) => pid ?? []);
  }

  /** False once one of them is dead or told to die. */
  get areAlive(): boolean {
    return this.#children.every((child) => !isGone(child) && !child.killed);
  }

  /** `how` is what the monitor of the original logs: `DiffusionWorker-0(exitcode=-9, SIGKILL)`. */
  onDeath(listener: (how: string) => void): void {
    this.#children.forEach((child, rank) => {
      child.once('exit', (code, signal) => {
        const how = signal === null ? `exitcode=${code}` : `exitcode=-${constants.signals[signal]}, ${signal}`;
        listener(`DiffusionWorker-${rank}(${how})`);
      });
    });
  }

  kill(rank?: number): void {
    for (const child of rank === undefined ? this.#children : this.#children.slice(rank, rank + 1)) {
      child.kill('SIGKILL');
    }
  }

  /** The orderly end of the original: asks, waits, asks again, waits, and since #7126 kills. */
  async stop(): Promise<void> {
    if (!this.#plan) return;
    for (let asked = 0; asked < 2; asked += 1) {
      for (const child of this.#children) child.kill('SIGTERM');
      using patience = new Deadline({ ms: this.#plan.joinMs });
      await Promise.all(this.#children.map((child) => untilGone(child, patience.signal)));
    }
    if (this.#plan.killsInTheEnd) this.kill();
  }
}

/** The worker's whole life: it does nothing but live, and the ledger notes the VRAM under its pid. */
export async function runWorker([title = '', ...traits]: readonly string[]): Promise<never> {
  const parent = new Socket({ fd: PIPE_FD });
  parent.on('error', () => undefined); // a parent that died: its end of the pipe is what counts
  const isDeaf = traits.includes('deaf');
  if (isDeaf) process.on('SIGTERM', () => undefined);
  // Sets the name and overwrites the command line, as setproctitle does; there was no environment to begin with.
  if (traits.includes('retitled')) process.title = title;
  const parentGone = new AbortController();
  // The signal of the kernel is a SIGTERM, so who ignores that one lives on.
  if (!isDeaf && !traits.includes('orphan')) parent.once('close', () => parentGone.abort());
  parent.resume().write('up');
  while (!parentGone.signal.aborted) await pause(A_DAY_MS, parentGone.signal);
  process.exit(1);
}

function startWorker(title: string, plan: WorkerPlan): ChildProcess {
  const [program = ''] = process.argv.slice(1);
  const traits = [
    ...(plan.isRetitled ? ['retitled'] : []),
    ...(plan.outlivesParent ? ['orphan'] : []),
    ...(plan.ignoresSigterm ? ['deaf'] : []),
  ];
  return spawn(process.execPath, [...process.execArgv, program, WORKER_ARGUMENT, title, ...traits], {
    detached: plan.isOwnSession,
    env: plan.isRetitled ? {} : process.env,
    // Standard output and error are the server's own, as with multiprocessing: its log file stays open in the worker.
    stdio: ['ignore', 'inherit', 'inherit', 'pipe'],
  });
}

async function untilUp(child: ChildProcess): Promise<unknown> {
  const pipe = child.stdio[PIPE_FD] as Duplex; // what Node makes of a 'pipe' above 2; the types say "or null"
  pipe.on('error', () => undefined); // a worker that died; its exit event tells
  return Promise.race([once(pipe, 'data'), once(child, 'exit')]);
}

async function untilGone(child: ChildProcess, signal: AbortSignal): Promise<void> {
  if (isGone(child)) return;
  await once(child, 'exit', { signal }).catch(() => undefined); // the only rejection: its time is over
}

function isGone({ exitCode, signalCode }: ChildProcess): boolean {
  return exitCode !== null || signalCode !== null;
}
