import { readFileSync, readdirSync, readlinkSync } from 'node:fs';
import { pause } from '../../shared/abort.ts';

/** A process that cannot be mistaken for a later one with the same pid. */
export type ProcessId = { pid: number; startTime: string };

type ProcessStat = ProcessId & { parent: number; group: number; session: number; isDead: boolean };

const SCAN_MS = 50;
/** Some processes cannot be killed (in the driver). After this long they are reported, not waited for. */
const KILL_MS = 10_000;
/** What members may take to leave by themselves when their leader is gone. */
const ORPHAN_MS = 2_000;

/**
 * The processes of one server: descendants of the leader, its session and group, whoever has the server's log as stdout
 * or stderr, and whoever was one of these in an earlier scan. Children that renamed themselves, wiped their environment
 * or took a session of their own are found by the log.
 */
export class ProcessTree {
  readonly #leader: ProcessId | null;
  readonly #logPath: string;
  readonly #known = new Map<number, string>();

  constructor({ leader, logPath }: { leader: ProcessId | null; logPath: string }) {
    this.#leader = leader;
    this.#logPath = logPath;
    if (leader !== null) this.#known.set(leader.pid, leader.startTime);
  }

  /** Those that live now. Zombies are dead: they hold no memory. */
  scan(): number[] {
    const all = listProcesses();
    const byPid = new Map(all.map((stat) => [stat.pid, stat]));
    for (const [pid, startTime] of this.#known) if (byPid.get(pid)?.startTime !== startTime) this.#known.delete(pid);
    const isOurs = (stat: ProcessStat): boolean =>
      this.#known.has(stat.pid) || this.#isOfSession(stat, byPid) || writesTo(stat.pid, this.#logPath);
    for (const stat of all) if (!stat.isDead && isOurs(stat)) this.#known.set(stat.pid, stat.startTime);
    for (let found = true; found;) {
      const children = all.filter((stat) => !stat.isDead && this.#known.has(stat.parent) && !this.#known.has(stat.pid));
      for (const child of children) this.#known.set(child.pid, child.startTime);
      found = children.length > 0;
    }
    return [...this.#known.keys()].filter((pid) => byPid.get(pid)?.isDead === false);
  }

  /**
   * SIGTERM to the leader; after half the grace SIGTERM and SIGCONT to all; after the grace SIGKILL until a scan finds
   * none. Returns who could not be killed. Not bound to a signal: a stop that was begun is never made ruder, nor left off.
   */
  async stop({ graceMs }: { graceMs: number }): Promise<number[]> {
    const startMs = performance.now();
    const leftMs = (until: number): number => Math.max(0, startMs + until - performance.now());

    // 1. The leader takes its workers down in its own order; signalling workers first has hung them for minutes.
    if (this.#isLeaderAlive()) send(this.#leader?.pid, 'SIGTERM');
    await this.#gone({ ms: leftMs(graceMs / 2), orEarlier: () => !this.#isLeaderAlive() });
    // 2. Without a leader nobody else tells its members to end.
    await this.#gone({ ms: Math.min(ORPHAN_MS, leftMs(graceMs / 2)) });
    for (const pid of this.scan()) {
      send(pid, 'SIGTERM');
      send(pid, 'SIGCONT'); // a stopped process would get the SIGTERM only when continued
    }
    await this.#gone({ ms: leftMs(graceMs) });
    // 3. Each scan may find children that were born since the last one.
    const killMs = performance.now() + KILL_MS;
    let alive = this.scan();
    while (alive.length > 0 && performance.now() < killMs) {
      for (const pid of alive) send(pid, 'SIGKILL');
      await pause(SCAN_MS / 2, NEVER);
      alive = this.scan();
    }
    return alive;
  }

  /** Polls, because only one of these processes is our child: the others have no exit event. */
  async #gone({ ms, orEarlier = () => false }: { ms: number; orEarlier?: () => boolean }): Promise<void> {
    const endMs = performance.now() + ms;
    while (performance.now() < endMs && !orEarlier() && this.scan().length > 0) {
      await pause(Math.min(SCAN_MS, ms), NEVER);
    }
  }

  #isLeaderAlive(): boolean {
    if (this.#leader === null) return false;
    const stat = readStat(this.#leader.pid);
    return stat?.startTime === this.#leader.startTime && !stat.isDead;
  }

  /** Session and group ids are pids: a stranger with the leader's pid and another start time has nothing to do with us. */
  #isOfSession(stat: ProcessStat, byPid: ReadonlyMap<number, ProcessStat>): boolean {
    if (this.#leader === null) return false;
    const { pid, startTime } = this.#leader;
    if (stat.session !== pid && stat.group !== pid) return false;
    const holder = byPid.get(pid);
    return holder === undefined || holder.startTime === startTime;
  }
}

/** Start time of a live process, undefined when there is none. */
export function startTimeOf(pid: number): string | undefined {
  return readStat(pid)?.startTime;
}

/** The short name of a process, as the kernel has it. */
export function processName(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/comm`, 'utf8').trim();
  } catch {
    return 'unknown'; // ended, or of another pid namespace
  }
}

const NEVER = new AbortController().signal;

function listProcesses(): ProcessStat[] {
  let names: string[];
  try {
    names = readdirSync('/proc');
  } catch {
    return []; // not Linux: no owned servers there
  }
  return names.flatMap((name) => {
    const pid = /^\d+$/.test(name) ? Number(name) : 0;
    return pid === 0 || pid === process.pid ? [] : (readStat(pid) ?? []);
  });
}

/** The command in parentheses may contain anything, so fields are counted from the last one. */
function readStat(pid: number): ProcessStat | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1');
    const [state, parent, group, session, ...rest] = text.slice(text.lastIndexOf(')') + 2).split(' ');
    const startTime = rest[15]; // field 22 of stat(5)
    if (startTime === undefined) return undefined;
    const isDead = state === 'Z' || state === 'X';
    return { pid, parent: Number(parent), group: Number(group), session: Number(session), startTime, isDead };
  } catch {
    return undefined; // it ended meanwhile
  }
}

/** Only stdout and stderr count: a person's `tail -f` has the log open too, under another number. */
function writesTo(pid: number, logPath: string): boolean {
  return [1, 2].some((fd) => {
    try {
      const path = readlinkSync(`/proc/${pid}/fd/${fd}`);
      return path === logPath || path === `${logPath} (deleted)`;
    } catch {
      return false; // closed, ended, or another user's
    }
  });
}

function send(pid: number | undefined, signal: NodeJS.Signals): void {
  if (pid === undefined) return;
  try {
    process.kill(pid, signal);
  } catch {
    // It ended between the scan and now, which is what the signal is for.
  }
}
