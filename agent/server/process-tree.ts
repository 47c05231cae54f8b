import { setImmediate } from 'node:timers/promises';
import { pause } from '../../shared/abort.ts';
import type { Cgroup } from './cgroup.ts';
import type { ProcessId, ProcessRow, ProcessStat, ProcessTable } from './process-table.ts';
import { isAlive, readNewest, readStat, titleOf } from './process-table.ts';

export type NamedProcess = { pid: number; name: string };

/** What the end of a tree took: who had to be killed, and who could not be. */
export type TreeEnd = { killed: readonly NamedProcess[]; survivors: readonly number[] };

export type ProcessTreeOptions = {
  leader: ProcessId | null;
  logPath: string;
  cgroup?: Cgroup | undefined;
  table: ProcessTable;
};

const POLL_MS = 50;
const KILL_POLL_MS = 10;
/** How long the death of those that were just killed is watched before all processes are looked through again. */
const KILL_ROUND_MS = 250;
/** Members that fork without end may be missed by one scan. */
const EMPTY_SCANS = 2;
const NEWEST_LOOKS = 200;
/** Some processes cannot be killed (in the driver). After this long they are reported, not waited for. */
const KILL_MS = 10_000;
/** What members may take to leave by themselves when their leader is gone, and then when they are told. */
const ORPHAN_MS = 2_000;
const ORPHAN_GRACE_MS = 5_000;

/**
 * The processes of one server: its control group where it has one; descendants of the leader; sessions and groups that a
 * member opened; whoever has the server's log as stdout or stderr; and whoever was one of these in an earlier scan. Children
 * that renamed themselves, wiped their environment or took a session of their own are found by the log.
 */
export class ProcessTree {
  readonly #leader: ProcessId | null;
  readonly #logPath: string;
  readonly #cgroup: Cgroup | undefined;
  readonly #table: ProcessTable;
  /** The session and the group of this process: nothing is sent to them, even where their openers are gone. */
  readonly #ours = oursNow();
  /** Members, and dead ones as long as their session or group has members: nobody else can get such a pid. */
  readonly #known = new Map<number, string>();

  constructor({ leader, logPath, cgroup, table }: ProcessTreeOptions) {
    this.#leader = leader;
    this.#logPath = logPath;
    this.#cgroup = cgroup;
    this.#table = table;
    if (leader !== null) this.#known.set(leader.pid, leader.startTime);
  }

  /** Those that live now. Zombies are dead: they hold no memory. */
  scan(): number[] {
    const grouped = this.#cgroup?.pids() ?? [];
    // As long as the leader is in its control group, so are all the others: no need to look at the whole machine.
    if (this.#leader !== null && grouped.includes(this.#leader.pid)) return grouped;
    return this.#sweep().map(({ pid }) => pid);
  }

  /**
   * SIGTERM to the leader; after half the grace SIGTERM and SIGCONT to all; after the grace SIGKILL until a scan finds
   * none. Not bound to a signal: a stop that was begun is never made ruder, nor left off.
   */
  async stop(o: { graceMs: number }): Promise<TreeEnd> {
    const graceMs = this.#isLeaderAlive() ? o.graceMs : Math.min(o.graceMs, ORPHAN_GRACE_MS);
    const startMs = performance.now();
    const leftMs = (until: number): number => Math.max(0, startMs + until - performance.now());
    this.#sweep(); // whoever leaves the tree from now on is known

    // 1. The leader takes its workers down in its own order; signalling workers first has hung them for minutes.
    if (this.#isLeaderAlive()) send(this.#leader?.pid, 'SIGTERM');
    await this.#gone({ ms: leftMs(graceMs / 2), orEarlier: () => !this.#isLeaderAlive() });
    // 2. Without a leader nobody else tells its members to end.
    await this.#gone({ ms: Math.min(ORPHAN_MS, leftMs(graceMs / 2)) });
    for (const { pid } of this.#sweep()) {
      send(pid, 'SIGTERM');
      send(pid, 'SIGCONT'); // a stopped process would get the SIGTERM only when continued
    }
    await this.#gone({ ms: leftMs(graceMs) });
    return this.#killAll();
  }

  /** 3. Each scan may find children that were born since the last one, and miss those that were born while it looked. */
  async #killAll(): Promise<TreeEnd> {
    const endMs = performance.now() + KILL_MS;
    const killed = new Map<number, NamedProcess>();
    let alive = this.#members();
    for (let empty = 0; empty < EMPTY_SCANS && performance.now() < endMs;) {
      for (const pid of alive) if (!killed.has(pid)) killed.set(pid, { pid, name: titleOf(pid) });
      this.#cgroup?.kill();
      await this.#freeze(endMs);
      this.#signalAll('SIGKILL');
      await this.#gone({ ms: KILL_ROUND_MS, pollMs: KILL_POLL_MS });
      await pause(KILL_POLL_MS, NEVER);
      alive = this.#members();
      empty = alive.length === 0 ? empty + 1 : 0;
    }
    await this.#cgroup?.remove();
    return { killed: [...killed.values()], survivors: alive };
  }

  /**
   * Who stands still has no more children, and those that it has are known by it. Killed at once, it would leave behind
   * whoever it had started in a session of its own since the last scan.
   */
  async #freeze(endMs: number): Promise<void> {
    const frozen = new Set<number>();
    for (let isNew = true; isNew && performance.now() < endMs;) {
      const found = this.#members().filter((pid) => !frozen.has(pid));
      isNew = found.length > 0;
      for (const pid of found) frozen.add(pid);
      if (isNew) this.#signalAll('SIGSTOP');
      if (this.#catchNewest()) isNew = true;
      await setImmediate(); // the next scan must be a new one
    }
  }

  /** Of those that live for a millisecond, each the parent of the next, a scan finds the traces only. True if it got one. */
  #catchNewest(): boolean {
    for (let looks = 0; looks < NEWEST_LOOKS; looks += 1) {
      const row = readNewest();
      if (row === undefined || row.isDead || !this.#belongs(row)) continue;
      send(row.pid, 'SIGSTOP');
      this.#known.set(row.pid, row.startTime);
      return true;
    }
    return false;
  }

  #belongs({ logs, parent, session, group }: ProcessRow): boolean {
    return logs.includes(this.#logPath) || [parent, session, group].some((pid) => this.#known.has(pid));
  }

  /** A whole group in one call: of a member that forks faster than we look, no child in its group escapes. */
  #signalAll(signal: 'SIGSTOP' | 'SIGKILL'): void {
    for (const pid of this.#known.keys()) {
      send(-pid, signal);
      if (this.#known.get(pid) !== GONE) send(pid, signal);
    }
  }

  /** Those that a look at the whole machine finds, and those that only its control group knows of. */
  #members(): number[] {
    return [...new Set([...this.#sweep().map(({ pid }) => pid), ...(this.#cgroup?.pids() ?? [])])];
  }

  /**
   * Polls, because only one of these processes is our child: the others have no exit event. Those that are known are
   * looked at one by one; only when all are dead is the whole machine looked through for others.
   */
  async #gone(o: { ms: number; pollMs?: number; orEarlier?: () => boolean }): Promise<void> {
    const endMs = performance.now() + o.ms;
    while (performance.now() < endMs && o.orEarlier?.() !== true && this.#isAnyoneLeft()) {
      await pause(Math.min(o.pollMs ?? POLL_MS, o.ms), NEVER);
    }
  }

  #isAnyoneLeft(): boolean {
    if (this.#isPopulated()) return true;
    for (const [pid, startTime] of this.#known) if (isAlive({ pid, startTime })) return true;
    return this.#sweep().length > 0;
  }

  /** Its control group knows of members that no scan was quick enough to see. */
  #isPopulated(): boolean {
    return (this.#cgroup?.pids().length ?? 0) > 0;
  }

  #isLeaderAlive(): boolean {
    return this.#leader !== null && isAlive(this.#leader);
  }

  /** Looks at every process of the machine. */
  #sweep(): ProcessStat[] {
    const all = this.#table.read();
    const byPid = new Map(all.map((stat) => [stat.pid, stat]));
    const isGone = (pid: number): boolean => byPid.get(pid)?.isDead ?? pid !== process.pid;
    this.#forgetStrangers(byPid);
    const grouped = new Set(this.#cgroup?.pids());
    const live = all.filter(({ isDead }) => !isDead);
    for (const { pid, startTime, session, group, logs } of live) {
      if (!grouped.has(pid) && !logs.includes(this.#logPath)) continue;
      this.#known.set(pid, startTime);
      // Whoever opened its session or group has gone before anybody saw it. Ours is no server's, whoever opened that.
      for (const opener of [session, group])
        if (opener > 1 && isGone(opener) && !this.#ours.includes(opener)) this.#known.set(opener, GONE);
    }
    const has = (pid: number): boolean => this.#known.has(pid);
    for (let found = true; found;) {
      const more = live.filter(
        ({ pid, parent, session, group }) => !has(pid) && (has(parent) || has(session) || has(group)),
      );
      for (const { pid, startTime } of more) this.#known.set(pid, startTime);
      found = more.length > 0;
    }
    return live.filter(({ pid }) => has(pid));
  }

  /**
   * Session and group ids are pids, and a pid stays taken as long as one of these has members. When none is left, or
   * another process has it, it means nothing to us any more.
   */
  #forgetStrangers(byPid: ReadonlyMap<number, ProcessStat>): void {
    const live = [...byPid.values()].filter(({ isDead }) => !isDead);
    const inUse = new Set(live.flatMap(({ session, group }) => [session, group]));
    for (const [pid, startTime] of this.#known) {
      const holder = byPid.get(pid);
      const isStranger = holder !== undefined && !holder.isDead && holder.startTime !== startTime;
      const isOver = (holder === undefined || holder.isDead) && !inUse.has(pid) && !hasMembers(pid);
      if (isStranger || isOver) this.#known.delete(pid);
    }
  }
}

const NEVER = new AbortController().signal;
/** In place of the start time of one that nobody saw. */
const GONE = 'gone';

function oursNow(): readonly number[] {
  const us = readStat(process.pid);
  return us === undefined ? [] : [us.session, us.group];
}

/** A look at all processes may miss those that live for a moment only; the kernel does not. */
function hasMembers(group: number): boolean {
  try {
    process.kill(-group, 0);
    return true;
  } catch {
    return false; // nobody, or nobody of ours
  }
}

function send(pid: number | undefined, signal: NodeJS.Signals): void {
  if (pid === undefined) return;
  try {
    process.kill(pid, signal);
  } catch {
    // It ended between the scan and now, which is what the signal is for.
  }
}
