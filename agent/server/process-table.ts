import { readFileSync, readdirSync, readlinkSync } from 'node:fs';

/** A process that cannot be mistaken for a later one with the same pid. */
export type ProcessId = { pid: number; startTime: string };

export type ProcessStat = ProcessId & {
  /** The kernel's short name: 15 characters, and what the process calls itself. */
  name: string;
  parent: number;
  group: number;
  session: number;
  /** A zombie too: it holds no memory, whatever `kill(pid, 0)` says. */
  isDead: boolean;
};

/** One that lives, or a zombie, with the files that its stdout and stderr write to, and the log that it was born to. */
export type ProcessRow = ProcessStat & { logs: readonly string[] };

/**
 * Names the log of its server in the environment of every process of it. Who renames himself wipes it out, but keeps the log
 * open; who closed the log, as daemons do, has the name of it.
 */
export const LOG_MARK = 'GANTRY_SERVER_LOG';

/**
 * The processes of this machine but our own. Reading one costs some 40 microseconds, so on a busy machine all of them cost
 * as many milliseconds: whoever asks in the same turn of the event loop shares one reading.
 */
export class ProcessTable {
  #rows: readonly ProcessRow[] = [];
  #isFresh = false;

  read(): readonly ProcessRow[] {
    if (this.#isFresh) return this.#rows;
    this.#isFresh = true;
    queueMicrotask(() => (this.#isFresh = false));
    // Which logs it has is read once: a process inherits its log, or is born of one that has it.
    const known = new Map(this.#rows.map((row) => [row.pid, row]));
    this.#rows = listPids().flatMap((pid) => readRow(pid, known.get(pid)) ?? []);
    return this.#rows;
  }
}

/** Who was started last on this machine, if it still lives: to find those that are gone before all are read. */
export function readNewest(): ProcessRow | undefined {
  try {
    return readRow(Number(readFileSync('/proc/loadavg', 'latin1').trim().split(' ').at(-1)));
  } catch {
    return undefined; // not Linux
  }
}

function readRow(pid: number, before?: ProcessRow): ProcessRow | undefined {
  const stat = readStat(pid);
  return stat && { ...stat, logs: before?.startTime === stat.startTime ? before.logs : logsOf(pid) };
}

/** Undefined where there is no such process. The name in parentheses may contain anything: fields count from the last one. */
export function readStat(pid: number): ProcessStat | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1');
    const nameEnd = text.lastIndexOf(')');
    const [state, parent, group, session, ...rest] = text.slice(nameEnd + 2).split(' ');
    const startTime = rest[15]; // field 22 of stat(5)
    if (startTime === undefined) return undefined;
    const name = text.slice(text.indexOf('(') + 1, nameEnd);
    // One whose first thread ended while others run is shown as a zombie too, and holds all it held.
    const threads = Number(rest[13]); // field 20
    const isDead = state === 'X' || (state === 'Z' && threads <= 1);
    return { pid, name, parent: Number(parent), group: Number(group), session: Number(session), startTime, isDead };
  } catch {
    return undefined; // it ended meanwhile
  }
}

export function isAlive({ pid, startTime }: ProcessId): boolean {
  const stat = readStat(pid);
  return stat?.startTime === startTime && !stat.isDead;
}

/** Start time of a live process, undefined when there is none. */
export function startTimeOf(pid: number): string | undefined {
  return readStat(pid)?.startTime;
}

/** What a process calls itself: its title where it has set one, as vLLM's workers do, else the name of its program. */
export function titleOf(pid: number): string {
  try {
    const [title = ''] = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
    const isPath = title === '' || title.startsWith('/');
    return isPath ? readFileSync(`/proc/${pid}/comm`, 'utf8').trim() : title.slice(0, 64);
  } catch {
    return 'unknown'; // ended, or of another pid namespace
  }
}

/** The processes above this one, ourselves included, up to the first of the machine. */
export function ancestors(pid: number): number[] {
  const found: number[] = [];
  for (let at = pid; at > 0 && !found.includes(at); at = readStat(at)?.parent ?? 0) found.push(at);
  return found;
}

/** The newest first: they may live for a moment only. */
function listPids(): number[] {
  let names: string[];
  try {
    names = readdirSync('/proc');
  } catch {
    return []; // not Linux: no owned servers there
  }
  const pids = names.flatMap((name) => (/^\d+$/.test(name) ? Number(name) : []));
  return pids.filter((pid) => pid !== process.pid).reverse();
}

/** The files that a process writes to, and its mark. A person's `tail -f` has a log open too, but to read from it. */
function logsOf(pid: number): string[] {
  return [outputOf(pid, 1), outputOf(pid, 2), markOf(pid)].filter((path) => path !== undefined);
}

function markOf(pid: number): string | undefined {
  try {
    const environment = readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0');
    return environment.find((entry) => entry.startsWith(`${LOG_MARK}=`))?.slice(LOG_MARK.length + 1);
  } catch {
    return undefined; // ended, or another user's
  }
}

function outputOf(pid: number, fd: number): string | undefined {
  try {
    const path = readlinkSync(`/proc/${pid}/fd/${fd}`);
    if (!path.startsWith('/') || path.startsWith('/dev/')) return undefined;
    const flags = /^flags:\s*([0-7]+)/m.exec(readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'latin1'))?.[1] ?? '0';
    const canWrite = (Number.parseInt(flags, 8) & 3) !== 0; // O_RDONLY is 0
    return canWrite ? path.replace(/ \(deleted\)$/, '') : undefined;
  } catch {
    return undefined; // closed, ended, or another user's
  }
}
