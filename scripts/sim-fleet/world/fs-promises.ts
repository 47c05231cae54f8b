import { Readable } from 'node:stream';
import { asError } from './abort.ts';
import type { FileNode, Node } from './disk.ts';
import { contentOf, DiskError, syncNode, truncateTo, writeAt } from './disk.ts';
import { direntOf, here, statOf } from './fs.ts';
import type { Stat } from './fs.ts';
import { world } from './world.ts';

const O_CREAT = 64;

/** What takes a moment, so that something else can happen first: the process' death, for one. */
export function soon<T>(medianMs: number, act: () => T): Promise<T> {
  const { rng, current } = world();
  return new Promise((resolve, reject) => {
    world().after(medianMs * rng.between(0.5, 1.5), current, () => {
      try {
        resolve(act());
      } catch (error) {
        reject(asError(error));
      }
    });
  });
}

const WRITE_MS = 0.05;
const SYNC_MS = 2;
const NAME_MS = 0.05;

export class SimulatedFile {
  readonly #node: Node;
  readonly #path: string;
  readonly #isAppending: boolean;
  #at = 0;

  constructor(node: Node, path: string, isAppending: boolean) {
    this.#node = node;
    this.#path = path;
    this.#isAppending = isAppending;
  }

  async write(
    data: Buffer | string,
    offset = 0,
    length?: number,
    position?: number | null,
  ): Promise<{ bytesWritten: number }> {
    const bytes = Buffer.from(typeof data === 'string' ? Buffer.from(data) : data).subarray(offset);
    const wanted = length === undefined ? bytes : bytes.subarray(0, length);
    await this.#put(wanted, position ?? undefined);
    return { bytesWritten: wanted.length };
  }

  async writev(pieces: readonly Buffer[]): Promise<{ bytesWritten: number }> {
    const bytes = Buffer.concat(pieces);
    await this.#put(bytes, undefined);
    return { bytesWritten: bytes.length };
  }

  async writeFile(data: Buffer | string): Promise<void> {
    await this.#put(Buffer.from(data as Buffer), undefined);
  }

  async appendFile(data: Buffer | string): Promise<void> {
    await this.#put(Buffer.from(data as Buffer), undefined);
  }

  async sync(): Promise<void> {
    await soon(SYNC_MS, () => syncNode(this.#node));
  }

  async datasync(): Promise<void> {
    await soon(SYNC_MS, () => syncNode(this.#node));
  }

  async truncate(size: number): Promise<void> {
    truncateTo(this.#file, size);
  }

  async stat(): Promise<Stat> {
    return statOf(this.#node);
  }

  async read(o: { buffer: Buffer; position?: number }): Promise<{ buffer: Buffer; bytesRead: number }> {
    const from = contentOf(this.#file).subarray(o.position ?? this.#at);
    return { buffer: o.buffer, bytesRead: from.copy(o.buffer) };
  }

  async readFile(): Promise<Buffer> {
    return Buffer.from(contentOf(this.#file));
  }

  createReadStream({ start = 0, end = Infinity }: { start?: number; end?: number } = {}): Readable {
    return Readable.from([Buffer.from(contentOf(this.#file).subarray(start, end + 1))]);
  }

  async close(): Promise<void> {
    // Nothing is lost by it, and nothing is made safe.
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  get #file(): FileNode {
    if (this.#node.kind !== 'file') throw new DiskError('EISDIR', 'read', this.#path);
    return this.#node;
  }

  #put(bytes: Buffer, position: number | undefined): Promise<void> {
    const { disk } = here();
    return soon(WRITE_MS, () => {
      const file = this.#file;
      const at = this.#isAppending ? file.size : (position ?? this.#at);
      if (disk.isFull) {
        // The last block takes a part of it, sometimes.
        if (world().rng.chance(0.3)) writeAt(file, bytes.subarray(0, bytes.length >> 1), at);
        throw new DiskError('ENOSPC', 'write', this.#path);
      }
      writeAt(file, bytes, at);
      if (position === undefined) this.#at = at + bytes.length;
    });
  }
}

export async function open(path: string, flags: string | number = 'r', _mode?: number): Promise<SimulatedFile> {
  const { disk } = here();
  const isNew = typeof flags === 'string' && flags.includes('x');
  const creates = typeof flags === 'number' ? (flags & O_CREAT) !== 0 : /[wa]/.test(flags);
  let node = disk.find(path);
  if (node !== undefined && isNew) throw new DiskError('EEXIST', 'open', path);
  if (node === undefined) {
    if (!creates) throw new DiskError('ENOENT', 'open', path);
    node = disk.create(path, 'open');
  } else if (typeof flags === 'string' && flags.startsWith('w') && node.kind === 'file') truncateTo(node, 0);
  return new SimulatedFile(node, path, typeof flags === 'string' && flags.startsWith('a'));
}

export async function mkdir(path: string, o?: { recursive?: boolean; mode?: number }): Promise<string | undefined> {
  const { disk } = here();
  if (o?.recursive !== true && disk.find(path) !== undefined) throw new DiskError('EEXIST', 'mkdir', path);
  return disk.mkdirs(path);
}

export async function readFile(path: string): Promise<Buffer>;
export async function readFile(path: string, encoding: 'utf8'): Promise<string>;
export async function readFile(path: string, encoding?: 'utf8'): Promise<Buffer | string> {
  const bytes = Buffer.from(contentOf(here().disk.file(path, 'open')));
  return encoding === undefined ? bytes : bytes.toString('utf8');
}

export async function writeFile(path: string, data: Buffer | string, _o?: object): Promise<void> {
  const { disk } = here();
  await soon(WRITE_MS, () => {
    const known = disk.find(path);
    disk.refuseIfFull('write', path);
    const file = known?.kind === 'file' ? known : disk.create(path, 'open');
    truncateTo(file, 0);
    writeAt(file, Buffer.from(data as Buffer), 0);
  });
}

export async function appendFile(path: string, data: Buffer | string): Promise<void> {
  const { disk } = here();
  await soon(WRITE_MS, () => {
    disk.refuseIfFull('write', path);
    const known = disk.find(path);
    const file = known?.kind === 'file' ? known : disk.create(path, 'open');
    writeAt(file, Buffer.from(data as Buffer), file.size);
  });
}

export async function copyFile(from: string, to: string): Promise<void> {
  await writeFile(to, await readFile(from));
}

export async function rename(from: string, to: string): Promise<void> {
  const { disk } = here();
  await soon(NAME_MS, () => disk.rename(from, to));
}

export async function link(from: string, to: string): Promise<void> {
  const { disk } = here();
  await soon(NAME_MS, () => {
    if (disk.find(to) !== undefined) throw new DiskError('EEXIST', 'link', to);
    disk.refuseIfFull('link', to);
    disk.name(to, disk.file(from, 'link'), 'link');
  });
}

export async function unlink(path: string): Promise<void> {
  const { disk } = here();
  await soon(NAME_MS, () => disk.unlink(path, 'unlink'));
}

export async function rm(path: string, o: { force?: boolean; recursive?: boolean } = {}): Promise<void> {
  const { disk } = here();
  await soon(NAME_MS, () => {
    if (disk.find(path) === undefined && o.force === true) return;
    disk.unlink(path, 'rm');
  });
}

export async function readdir(path: string): Promise<string[]>;
export async function readdir(path: string, o: { withFileTypes: true }): Promise<ReturnType<typeof direntOf>[]>;
export async function readdir(
  path: string,
  o?: { withFileTypes: true },
): Promise<string[] | ReturnType<typeof direntOf>[]> {
  const { entries } = here().disk.directory(path, 'scandir');
  return o === undefined ? [...entries.keys()] : [...entries].map(([name, node]) => direntOf(name, node));
}

export async function stat(path: string): Promise<Stat> {
  const node = here().disk.find(path);
  if (node === undefined) throw new DiskError('ENOENT', 'stat', path);
  return statOf(node);
}

export const lstat = stat;

export async function realpath(path: string): Promise<string> {
  return path;
}

export async function statfs(_path: string): Promise<{ bavail: number; bsize: number }> {
  return { bavail: here().disk.isFull ? 0 : 1e8, bsize: 4096 };
}
