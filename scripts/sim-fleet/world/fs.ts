import { Readable } from 'node:stream';
import type { Node } from './disk.ts';
import { contentOf, DiskError } from './disk.ts';
import type { Machine } from './world.ts';
import { world } from './world.ts';

export const constants = { O_RDONLY: 0, O_RDWR: 2, O_CREAT: 64 };

/** The machine whose code runs now. */
export function here(): Machine {
  const { current } = world();
  if (current === undefined) throw new Error('no process runs');
  return current.machine;
}

export type Stat = {
  size: number;
  mtimeMs: number;
  ino: number;
  nlink: number;
  isFile(): boolean;
  isDirectory(): boolean;
  isSocket(): boolean;
};

export function statOf(node: Node): Stat {
  return {
    size: node.kind === 'file' ? node.size : 0,
    mtimeMs: node.kind === 'file' ? node.mtimeMs : world().wallMs,
    ino: node.ino,
    nlink: 1,
    isFile: () => node.kind === 'file',
    isDirectory: () => node.kind === 'directory',
    isSocket: () => node.kind === 'socket',
  };
}

export function direntOf(
  name: string,
  node: Node,
): { name: string; isDirectory: () => boolean; isFile: () => boolean } {
  return { name, isDirectory: () => node.kind === 'directory', isFile: () => node.kind === 'file' };
}

const descriptors = new Map<number, Node>();
let nextDescriptor = 10;

export function openSync(path: string, _flags?: string): number {
  const node = here().disk.find(path);
  if (node === undefined) throw new DiskError('ENOENT', 'open', path);
  nextDescriptor += 1;
  descriptors.set(nextDescriptor, node);
  return nextDescriptor;
}

export function closeSync(descriptor: number): void {
  descriptors.delete(descriptor);
}

export function fstatSync(descriptor: number): Stat {
  return statOf(nodeOf(descriptor));
}

export function readSync(descriptor: number, into: Buffer, offset: number, length: number, position: number): number {
  const node = nodeOf(descriptor);
  if (node.kind !== 'file') throw new DiskError('EISDIR', 'read', '');
  return contentOf(node)
    .subarray(position, position + length)
    .copy(into, offset);
}

export function statSync(path: string, o?: { throwIfNoEntry?: boolean }): Stat | undefined {
  const node = here().disk.find(path);
  if (node !== undefined) return statOf(node);
  if (o?.throwIfNoEntry === false) return undefined;
  throw new DiskError('ENOENT', 'stat', path);
}

export const lstatSync = statSync;

export function readdirSync(path: string): string[] {
  return [...here().disk.directory(path, 'scandir').entries.keys()];
}

export function readFileSync(path: string): Buffer {
  return Buffer.from(contentOf(here().disk.file(path, 'open')));
}

export function existsSync(path: string): boolean {
  return here().disk.find(path) !== undefined;
}

export function renameSync(from: string, to: string): void {
  here().disk.rename(from, to);
}

export function rmSync(path: string, o: { force?: boolean } = {}): void {
  const { disk } = here();
  if (disk.find(path) === undefined && o.force === true) return;
  disk.unlink(path, 'rm');
}

export const unlinkSync = rmSync;

export function chmodSync(_path: string, _mode: number): void {
  // Everybody in this world may read everything.
}

export function createReadStream(path: string): Readable {
  const { disk } = here();
  const node = disk.find(path);
  if (node?.kind === 'file') return Readable.from([Buffer.from(contentOf(node))]);
  return new Readable({
    read() {
      this.destroy(new DiskError('ENOENT', 'open', path));
    },
  });
}

function nodeOf(descriptor: number): Node {
  const node = descriptors.get(descriptor);
  if (node === undefined) throw new DiskError('EBADF', 'fstat', '');
  return node;
}
