import { dirname } from 'node:path';
import type { Machine } from './world.ts';
import { world } from './world.ts';

export type DirectoryNode = {
  readonly kind: 'directory';
  readonly ino: number;
  readonly entries: Map<string, Node>;
  /** What a power loss leaves: the names at the last sync, and what was done since, in order. */
  synced: Map<string, Node>;
  changes: { name: string; node: Node | undefined }[];
};
export type FileNode = {
  readonly kind: 'file';
  readonly ino: number;
  bytes: Buffer;
  size: number;
  mtimeMs: number;
  /** So many first bytes survive a power loss; `syncedBytes` has them where they were overwritten since. */
  syncedSize: number;
  syncedBytes: Buffer | undefined;
};
export type SocketNode = { readonly kind: 'socket'; readonly ino: number; listener: unknown };
export type Node = DirectoryNode | FileNode | SocketNode;

export class DiskError extends Error {
  readonly code: string;
  readonly syscall: string;
  readonly path: string;

  constructor(code: string, syscall: string, path: string) {
    super(`${code}: ${syscall} '${path}'`);
    this.code = code;
    this.syscall = syscall;
    this.path = path;
  }
}

/** What the checkers want to see as it happens. */
export type DiskWatch = {
  /** A name came to be, or now means another file. */
  onName?: (path: string, node: Node) => void;
  onUnlink?: (path: string, node: Node) => void;
};

/**
 * One machine's file system in memory. It knows what was synced, file contents and names apart, and a power loss takes
 * the rest: of unsynced bytes any first part may stay, of unsynced changes of a directory the first few.
 */
export class Disk {
  readonly machine: Machine;
  root: DirectoryNode = newDirectory(1);
  isFull = false;
  watch: DiskWatch = {};

  constructor(machine: Machine) {
    this.machine = machine;
  }

  find(path: string): Node | undefined {
    let node: Node = this.root;
    for (const part of path.split('/')) {
      if (part === '') continue;
      if (node.kind !== 'directory') return undefined;
      const next = node.entries.get(part);
      if (next === undefined) return undefined;
      node = next;
    }
    return node;
  }

  directory(path: string, syscall: string): DirectoryNode {
    const node = this.find(path);
    if (node === undefined) throw new DiskError('ENOENT', syscall, path);
    if (node.kind !== 'directory') throw new DiskError('ENOTDIR', syscall, path);
    return node;
  }

  file(path: string, syscall: string): FileNode {
    const node = this.find(path);
    if (node === undefined) throw new DiskError('ENOENT', syscall, path);
    if (node.kind !== 'file') throw new DiskError(node.kind === 'directory' ? 'EISDIR' : 'ENXIO', syscall, path);
    return node;
  }

  /** Returns the first directory that was missing. */
  mkdirs(path: string): string | undefined {
    let node = this.root;
    let at = '';
    let first: string | undefined;
    for (const part of path.split('/')) {
      if (part === '') continue;
      at = `${at}/${part}`;
      let next = node.entries.get(part);
      if (next === undefined) {
        this.refuseIfFull('mkdir', path);
        next = newDirectory(world().inode());
        setEntry(node, part, next);
        first ??= at;
      }
      if (next.kind !== 'directory') throw new DiskError('ENOTDIR', 'mkdir', path);
      node = next;
    }
    return first;
  }

  create(path: string, syscall: string): FileNode {
    this.refuseIfFull(syscall, path);
    const node: FileNode = {
      ...{ kind: 'file' as const, ino: world().inode(), bytes: Buffer.alloc(0), size: 0, mtimeMs: world().wallMs },
      ...{ syncedSize: 0, syncedBytes: undefined },
    };
    this.name(path, node, syscall);
    return node;
  }

  name(path: string, node: Node, syscall: string): void {
    setEntry(this.directory(dirname(path), syscall), nameOf(path), node);
    this.watch.onName?.(path, node);
  }

  unlink(path: string, syscall: string): void {
    const node = this.find(path);
    if (node === undefined) throw new DiskError('ENOENT', syscall, path);
    setEntry(this.directory(dirname(path), syscall), nameOf(path), undefined);
    this.watch.onUnlink?.(path, node);
  }

  rename(from: string, to: string): void {
    const node = this.find(from);
    if (node === undefined) throw new DiskError('ENOENT', 'rename', from);
    const before = this.find(to);
    setEntry(this.directory(dirname(to), 'rename'), nameOf(to), node);
    setEntry(this.directory(dirname(from), 'rename'), nameOf(from), undefined);
    if (before !== undefined) this.watch.onUnlink?.(to, before);
    this.watch.onName?.(to, node);
  }

  refuseIfFull(syscall: string, path: string): void {
    if (this.isFull) throw new DiskError('ENOSPC', syscall, path);
  }

  /** A power loss, or what one would leave if it came now. */
  losePower(): void {
    const rng = world().rng;
    const seen = new Set<FileNode>();
    const visit = (node: Node): void => {
      if (node.kind === 'file') {
        if (seen.has(node)) return;
        seen.add(node);
        loseUnsynced(node);
      } else if (node.kind === 'directory') {
        const kept = node.changes.length === 0 ? 0 : rng.int(0, node.changes.length);
        const entries = new Map(node.synced);
        for (const { name, node: to } of node.changes.slice(0, kept)) {
          if (to === undefined) entries.delete(name);
          else entries.set(name, to);
        }
        node.entries.clear();
        for (const [name, to] of entries) node.entries.set(name, to);
        node.synced = entries;
        node.changes = [];
        for (const to of entries.values()) visit(to);
      }
    };
    visit(this.root);
  }

  /** What certainly survives a power loss that comes now: the bytes of the file of this name, or undefined. */
  durable(path: string): Buffer | undefined {
    let node: Node = this.root;
    for (const part of path.split('/')) {
      if (part === '') continue;
      if (node.kind !== 'directory' || node.changes.some((change) => change.name === part)) return undefined;
      const next = node.synced.get(part);
      if (next === undefined) return undefined;
      node = next;
    }
    return node.kind === 'file' ? durableBytes(node) : undefined;
  }
}

export function contentOf(node: FileNode): Buffer {
  return node.bytes.subarray(0, node.size);
}

export function durableBytes(node: FileNode): Buffer {
  return (node.syncedBytes ?? node.bytes).subarray(0, node.syncedSize);
}

export function writeAt(node: FileNode, data: Buffer, at: number): void {
  const end = at + data.length;
  if (at < node.syncedSize) node.syncedBytes ??= Buffer.from(node.bytes.subarray(0, node.syncedSize));
  if (end > node.bytes.length) {
    const larger = Buffer.alloc(Math.max(end, node.bytes.length * 2, 256));
    node.bytes.copy(larger, 0, 0, node.size);
    node.bytes = larger;
  }
  data.copy(node.bytes, at);
  node.size = Math.max(node.size, end);
  node.mtimeMs = world().wallMs;
}

export function truncateTo(node: FileNode, size: number): void {
  if (size < node.syncedSize) node.syncedBytes ??= Buffer.from(node.bytes.subarray(0, node.syncedSize));
  if (size > node.size) writeAt(node, Buffer.alloc(size - node.size), node.size);
  node.bytes.fill(0, size);
  node.size = size;
}

export function syncNode(node: Node): void {
  if (node.kind === 'file') {
    node.syncedSize = node.size;
    node.syncedBytes = undefined;
  } else if (node.kind === 'directory' && node.changes.length > 0) {
    node.synced = new Map(node.entries);
    node.changes = [];
  }
}

function loseUnsynced(node: FileNode): void {
  const { rng } = world();
  const kept = durableBytes(node);
  // Overwritten in place: the old bytes or the new. Appended: any first part of it.
  const isOld = node.syncedBytes !== undefined && rng.chance(0.5);
  const base = isOld ? Buffer.from(kept) : Buffer.from(contentOf(node));
  const least = Math.min(base.length, node.syncedSize);
  const size = isOld ? base.length : rng.chance(0.4) ? least : rng.int(least, base.length);
  node.bytes = Buffer.from(base.subarray(0, size));
  node.size = size;
  node.syncedSize = size;
  node.syncedBytes = undefined;
}

function newDirectory(ino: number): DirectoryNode {
  return { kind: 'directory', ino, entries: new Map(), synced: new Map(), changes: [] };
}

function setEntry(directory: DirectoryNode, name: string, node: Node | undefined): void {
  if (node === undefined) directory.entries.delete(name);
  else directory.entries.set(name, node);
  directory.changes.push({ name, node });
}

function nameOf(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1);
}
