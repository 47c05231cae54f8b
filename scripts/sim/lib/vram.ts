import { availableMiB, Ledger, type LedgerEntry, type LedgerGpu, startTimeOf } from './ledger.ts';

/** The text that PyTorch gives; it is all that a client ever sees of the shortage. */
export class CudaOutOfMemory extends Error {
  override readonly name = 'torch.OutOfMemoryError';
}

/** What Python calls every other failure of CUDA. */
export class RuntimeError extends Error {
  override readonly name = 'RuntimeError';
}

/** The memory that one engine holds on its GPUs, noted in the ledger under the pids of the processes that hold it. */
export class Vram {
  readonly #ledger: Ledger | undefined;
  readonly #parts: Part[];
  readonly #lacksGpus: boolean;
  #heldMiB = 0;
  #isBusy = false;

  /**
   * Without a ledger directory there is memory without end, and nobody sees it.
   * The nth holder has the nth GPU; a single one has all of them.
   */
  constructor(o: { dir: string | undefined; holders: readonly Holder[]; lingerMs: number; devices: Devices }) {
    this.#ledger = o.dir === undefined ? undefined : new Ledger(o.dir);
    const known = this.#ledger?.devices() ?? [];
    const gpus = chosenGpus(known, o.devices);
    this.#lacksGpus = known.length > 0 && gpus.length < o.devices.count;
    const holders = o.holders.map(({ pid, name }) => ({ pid, name, startTime: startTimeOf(pid) ?? '' }));
    this.#parts = gpus.flatMap((gpu, rank) => {
      const holder = holders[rank] ?? holders[0];
      return holder ? { gpu, note: { ...holder, ...(o.lingerMs > 0 && { lingerMs: o.lingerMs }) } } : [];
    });
  }

  get gpuName(): string {
    return this.#parts[0]?.gpu.name ?? 'Simulated GPU';
  }

  get heldMiB(): number {
    return this.#heldMiB;
  }

  /** Used memory of the first GPU, of all processes: what the engines themselves call residual. */
  get deviceUsedMiB(): number {
    const [first] = this.#parts;
    return first && this.#ledger ? this.#ledger.usedMiB(first.gpu.uuid) : this.#heldMiB;
  }

  /** Throws as PyTorch does at its first look at the GPUs when CUDA_VISIBLE_DEVICES names fewer than are needed. */
  initialize(): void {
    if (!this.#lacksGpus) return;
    throw new RuntimeError(
      this.#parts.length === 0 ? 'No CUDA GPUs are available' : 'CUDA error: invalid device ordinal',
    );
  }

  /**
   * Holds `mib` in all, split over the GPUs; throws CudaOutOfMemory, and holds what it held before, when that does not fit.
   * It notes first and counts afterwards: of two engines that grow at the same moment both may fail, but never both pass.
   */
  hold(mib: number): void {
    const before = this.#heldMiB;
    this.#write(mib);
    const full = mib > before ? this.#parts.find(({ gpu }) => this.#overMiB(gpu) > 0) : undefined;
    if (!full) return;
    this.#write(before);
    throw this.#shortage(full, (mib - before) / this.#parts.length);
  }

  /** The error of an allocation that fails whatever the ledger says. */
  outOfMemory(): CudaOutOfMemory {
    const [first] = this.#parts;
    return first
      ? this.#shortage(first, 2_048)
      : new CudaOutOfMemory('CUDA out of memory. Tried to allocate 2.00 GiB.');
  }

  setBusy(isBusy: boolean): void {
    this.#isBusy = isBusy;
    this.#write(this.#heldMiB);
  }

  empty(): void {
    this.#isBusy = false;
    this.#write(0);
  }

  #write(mib: number): void {
    this.#heldMiB = mib;
    for (const { gpu, note } of this.#parts) {
      this.#ledger?.note({
        ...note,
        gpuUuid: gpu.uuid,
        usedMiB: Math.ceil(mib / this.#parts.length),
        ...(this.#isBusy && { isBusy: true }),
      });
    }
  }

  #overMiB(gpu: LedgerGpu): number {
    return (this.#ledger?.usedMiB(gpu.uuid) ?? 0) - availableMiB(gpu);
  }

  #shortage(part: Part, wantedMiB: number): CudaOutOfMemory {
    const freeMiB = Math.max(0, -this.#overMiB(part.gpu));
    const ownMiB = this.#heldMiB / this.#parts.length;
    return new CudaOutOfMemory(
      `CUDA out of memory. Tried to allocate ${gib(wantedMiB)} GiB. GPU ${this.#parts.indexOf(part)} has a total capacity ` +
        `of ${gib(part.gpu.totalMiB)} GiB of which ${gib(freeMiB)} GiB is free. Including non-PyTorch memory, this process ` +
        `has ${gib(ownMiB)} GiB memory in use.`,
    );
  }
}

/** A process that holds memory; the name is the one that nvidia-smi shows. */
export type Holder = { pid: number; name: string };

/** `visible` is CUDA_VISIBLE_DEVICES (unset = all), of which an engine takes the first `count`. */
export type Devices = { visible: string | undefined; count: number };

type Part = { gpu: LedgerGpu; note: Omit<LedgerEntry, 'gpuUuid' | 'usedMiB' | 'isBusy'> };

/** CUDA's own reading: indices, or UUIDs that may be cut short; the first word that is none ends the list. */
function chosenGpus(gpus: LedgerGpu[], { visible, count }: Devices): LedgerGpu[] {
  if (visible === undefined) return gpus.slice(0, count);
  const named = visible.split(',').map((word) => gpuNamed(gpus, word.trim()));
  const end = named.indexOf(undefined);
  return named.slice(0, end < 0 ? count : Math.min(end, count)).flatMap((gpu) => gpu ?? []);
}

function gpuNamed(gpus: LedgerGpu[], word: string): LedgerGpu | undefined {
  const isUuid = /^(GPU|MIG)-./.test(word);
  return gpus.find((gpu) => (isUuid ? gpu.uuid.startsWith(word) : String(gpu.index) === word));
}

function gib(mib: number): string {
  return (mib / 1024).toFixed(2);
}
