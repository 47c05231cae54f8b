import { existsSync, mkdirSync, readFileSync, readdirSync, renameSync, unlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** One simulated GPU: a row of `gpus.json` in the ledger directory. Names begin with "Simulated ". */
export type LedgerGpu = {
  uuid: string;
  index: number;
  name: string;
  totalMiB: number;
  reservedMiB?: number;
  /** Its memory is the host's, and nvidia-smi shows none. */
  isUnified?: boolean;
  /** Cut into instances: what runs there notes the UUID of its instance. */
  mig?: readonly LedgerInstance[];
};

/** One MIG instance; `index` counts those of one GPU, the other numbers are nvidia-smi's. */
export type LedgerInstance = {
  uuid: string;
  index: number;
  gpuInstance: number;
  computeInstance: number;
  profile: string;
  totalMiB: number;
};

/** Empty files in the ledger that change what nvidia-smi shows of processes. */
export type Marker =
  /** None, as in a container without the host's pids. */
  | 'hides-processes'
  /** Each under another number: a container whose driver shows the host's. */
  | 'renumbers-pids'
  /** Also those that died while their memory lingers: contexts that the driver did not clean up. */
  | 'lists-lingering'
  /** All without their memory: WSL2. */
  | 'hides-memory-of-processes';

/** What one process holds on one GPU. It counts for as long as that very process (pid and start time) lives. */
export type LedgerEntry = {
  pid: number;
  startTime: string;
  gpuUuid: string;
  usedMiB: number;
  name: string;
  isBusy?: boolean;
  /** Keeps the memory this long after the process died, counted from the first reader that found it dead. */
  lingerMs?: number;
  deadSinceMs?: number;
};

/** An entry as read: `isAlive` is false only while it lingers. */
export type HeldMemory = LedgerEntry & { isAlive: boolean };

/**
 * The VRAM of one simulated host, as small files in one directory.
 * There is no lock: a file belongs to one process and GPU, is replaced by rename, and its name holds the start time,
 * so a reader that removes a dead entry can never remove the one of a later process with the same pid.
 */
export class Ledger {
  readonly #dir: string;

  constructor(dir: string) {
    this.#dir = dir;
  }

  gpus(): LedgerGpu[] {
    const text = readIfThere(join(this.#dir, 'gpus.json'));
    if (text === undefined) return [];
    const gpus = JSON.parse(text) as LedgerGpu[]; // JSON.parse says `any`; a schema would double the start of nvidia-smi
    return gpus.toSorted((a, b) => a.index - b.index);
  }

  /** What a server finds when CUDA_VISIBLE_DEVICES names it: GPUs, and of one that is cut its instances. */
  devices(): LedgerGpu[] {
    return this.gpus().flatMap((gpu) => {
      const parts = gpu.mig?.map(({ uuid, profile, totalMiB }): LedgerGpu => {
        return { uuid, index: gpu.index, name: `${gpu.name} MIG ${profile}`, totalMiB, reservedMiB: 0 };
      });
      return parts ?? [gpu];
    });
  }

  has(marker: Marker): boolean {
    return existsSync(join(this.#dir, marker));
  }

  /** What lives or lingers now. Files that are no entries are ignored, dead entries removed. */
  entries(): HeldMemory[] {
    return readdirIfThere(this.#processes)
      .filter((name) => name.endsWith('.json'))
      .flatMap((name) => this.#read(join(this.#processes, name)) ?? []);
  }

  usedMiB(gpuUuid: string): number {
    return this.entries().reduce((sum, entry) => sum + (entry.gpuUuid === gpuUuid ? entry.usedMiB : 0), 0);
  }

  /** Notes or replaces what a process holds on one GPU. */
  note(entry: LedgerEntry): void {
    mkdirSync(this.#processes, { recursive: true });
    this.#write(join(this.#processes, `${entry.pid}-${entry.startTime}-${entry.gpuUuid}.json`), entry);
  }

  get #processes(): string {
    return join(this.#dir, 'processes');
  }

  #read(path: string): HeldMemory | undefined {
    const entry = parseEntry(readIfThere(path));
    if (!entry) return undefined;
    if (entry.deadSinceMs === undefined && isAlive(entry)) return { ...entry, isAlive: true };
    const deadSinceMs = entry.deadSinceMs ?? Date.now();
    if (Date.now() - deadSinceMs >= (entry.lingerMs ?? 0)) {
      unlinkIfThere(path);
      return undefined;
    }
    if (entry.deadSinceMs === undefined) this.#write(path, { ...entry, deadSinceMs });
    return { ...entry, isAlive: false };
  }

  #write(path: string, entry: LedgerEntry): void {
    const temporary = `${path}.${process.pid}.tmp`;
    writeFileSync(temporary, JSON.stringify(entry));
    renameSync(temporary, path);
  }
}

/** What processes can hold at most. */
export function availableMiB(gpu: LedgerGpu): number {
  return gpu.totalMiB - reservedMiB(gpu);
}

/** What the driver keeps for itself; since R510 it is neither used nor free. */
export function reservedMiB(gpu: LedgerGpu): number {
  return gpu.reservedMiB ?? Math.round(gpu.totalMiB * 0.007);
}

/** Field 22 of /proc/PID/stat, or undefined when no such process lives; a zombie holds no memory and counts as dead. */
export function startTimeOf(pid: number): string | undefined {
  const stat = readIfThere(`/proc/${pid}/stat`);
  if (stat === undefined) return undefined;
  // The second field is the name in brackets and may hold brackets and spaces itself: split after the last one.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return fields[0] === 'Z' || fields[0] === 'X' ? undefined : fields[19];
}

function isAlive(entry: LedgerEntry): boolean {
  return startTimeOf(entry.pid) === entry.startTime;
}

function parseEntry(text: string | undefined): LedgerEntry | undefined {
  if (text === undefined) return undefined;
  try {
    const entry = JSON.parse(text) as LedgerEntry; // `any` by its own type, and looked at in the next line
    return typeof entry.pid === 'number' && typeof entry.gpuUuid === 'string' ? entry : undefined;
  } catch {
    return undefined; // not an entry: some other file that a test left here
  }
}

function readIfThere(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    // ESRCH: a process that ended between open and read of its /proc file.
    if (isCode(error, 'ENOENT') || isCode(error, 'ESRCH')) return undefined;
    throw error;
  }
}

function readdirIfThere(path: string): string[] {
  try {
    return readdirSync(path);
  } catch (error) {
    if (isCode(error, 'ENOENT')) return [];
    throw error;
  }
}

function unlinkIfThere(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if (!isCode(error, 'ENOENT')) throw error; // another reader was faster
  }
}

function isCode(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code;
}
