import { readFileSync, readdirSync, readlinkSync } from 'node:fs';
import type { ProcessTable } from './process-table.ts';
import { titleOf } from './process-table.ts';
import type { NamedProcess } from './process-tree.ts';

/** The local addresses on which a call to 127.0.0.1 is answered, as /proc/net/tcp and tcp6 write them. */
const ANSWERING = ['0100007F', '00000000', '0'.repeat(32), '0000000000000000FFFF00000100007F'];
const LISTEN = '0A';

/** Sockets that answer on a port of this machine. Empty where nobody listens. */
export type Listeners = ReadonlySet<string>;

export function listenersOn(port: number): Listeners {
  const suffix = port.toString(16).toUpperCase().padStart(4, '0');
  const rows = ['/proc/net/tcp', '/proc/net/tcp6'].flatMap((path) => {
    try {
      return readFileSync(path, 'latin1').split('\n').slice(1);
    } catch {
      return []; // no IPv6 on this host
    }
  });
  const inodes = rows.flatMap((row) => {
    const [, local = '', , state, , , , , , inode] = row.trim().split(/\s+/);
    const [address = '', at] = local.split(':');
    return state === LISTEN && at === suffix && ANSWERING.includes(address) && inode !== undefined ? inode : [];
  });
  return new Set(inodes);
}

/** True where one of these processes holds one of the sockets. */
export function holdAny(pids: readonly number[], listeners: Listeners): boolean {
  return listeners.size > 0 && pids.some((pid) => holds(pid, listeners));
}

/** Who else holds the sockets. Undefined for a process of another user, whose files cannot be seen. */
export function ownerOf(listeners: Listeners, table: ProcessTable): NamedProcess | undefined {
  if (listeners.size === 0) return undefined;
  const pid = [process.pid, ...table.read().map((stat) => stat.pid)].find((candidate) => holds(candidate, listeners));
  return pid === undefined ? undefined : { pid, name: titleOf(pid) };
}

function holds(pid: number, listeners: Listeners): boolean {
  try {
    const directory = `/proc/${pid}/fd`;
    return readdirSync(directory).some((fd) => listeners.has(socketInode(`${directory}/${fd}`) ?? ''));
  } catch {
    return false; // ended meanwhile, or another user's
  }
}

function socketInode(path: string): string | undefined {
  try {
    return /^socket:\[(\d+)\]$/.exec(readlinkSync(path))?.[1];
  } catch {
    return undefined; // closed meanwhile
  }
}
