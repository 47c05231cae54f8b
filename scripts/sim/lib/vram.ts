import { availableMiB, Ledger, type LedgerEntry, type LedgerGpu, startTimeOf } from './ledger.ts';

/** The text that PyTorch gives; it is all that a client ever sees of the shortage. */
export class CudaOutOfMemory extends Error {
  override readonly name = 'OutOfMemoryError';
}

/** The memory that one engine holds on its GPUs, noted in the ledger under the pid of the process that holds it. */
export class Vram {
  readonly #ledger: Ledger | undefined;
  readonly #gpus: LedgerGpu[];
  readonly #note: Omit<LedgerEntry, 'gpuUuid' | 'usedMiB' | 'isBusy'>;
  #heldMiB = 0;
  #isBusy = false;

  /** Without a ledger directory there is memory without end, and nobody sees it. */
  constructor(o: { dir: string | undefined; pid: number; name: string; lingerMs: number; devices: Devices }) {
    this.#ledger = o.dir === undefined ? undefined : new Ledger(o.dir);
    this.#gpus = chosenGpus(this.#ledger?.gpus() ?? [], o.devices);
    const startTime = startTimeOf(o.pid) ?? '';
    this.#note = { pid: o.pid, startTime, name: o.name, ...(o.lingerMs > 0 && { lingerMs: o.lingerMs }) };
  }

  get gpuName(): string {
    return this.#gpus[0]?.name ?? 'Simulated GPU';
  }

  get heldMiB(): number {
    return this.#heldMiB;
  }

  /** Used memory of the first GPU, of all processes: what the engines themselves call residual. */
  get deviceUsedMiB(): number {
    return this.#gpus[0] && this.#ledger ? this.#ledger.usedMiB(this.#gpus[0].uuid) : this.#heldMiB;
  }

  /**
   * Holds `mib` in all, split over the GPUs; throws CudaOutOfMemory, and holds what it held before, when that does not fit.
   * It notes first and counts afterwards: of two engines that grow at the same moment both may fail, but never both pass.
   */
  hold(mib: number): void {
    const before = this.#heldMiB;
    this.#write(mib);
    const full = mib > before ? this.#gpus.find((gpu) => this.#overMiB(gpu) > 0) : undefined;
    if (!full) return;
    const message = this.#shortage(full, (mib - before) / this.#gpus.length);
    this.#write(before);
    throw new CudaOutOfMemory(message);
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
    for (const gpu of this.#gpus) {
      this.#ledger?.note({
        ...this.#note,
        gpuUuid: gpu.uuid,
        usedMiB: Math.ceil(mib / this.#gpus.length),
        ...(this.#isBusy && { isBusy: true }),
      });
    }
  }

  #overMiB(gpu: LedgerGpu): number {
    return (this.#ledger?.usedMiB(gpu.uuid) ?? 0) - availableMiB(gpu);
  }

  #shortage(gpu: LedgerGpu, wantedMiB: number): string {
    const freeMiB = Math.max(0, wantedMiB - this.#overMiB(gpu));
    const ownMiB = this.#heldMiB / this.#gpus.length - wantedMiB;
    return (
      `CUDA out of memory. Tried to allocate ${gib(wantedMiB)} GiB. GPU ${this.#gpus.indexOf(gpu)} has a total capacity ` +
      `of ${gib(gpu.totalMiB)} GiB of which ${gib(freeMiB)} GiB is free. Including non-PyTorch memory, this process has ` +
      `${gib(ownMiB)} GiB memory in use.`
    );
  }
}

/** `visible` is CUDA_VISIBLE_DEVICES (UUIDs or indices; unset = all), of which an engine takes the first `count`. */
export type Devices = { visible: string | undefined; count: number };

function chosenGpus(gpus: LedgerGpu[], { visible, count }: Devices): LedgerGpu[] {
  const names = visible?.split(',').map((name) => name.trim());
  const seen = names
    ? names.flatMap((name) => gpus.find((gpu) => gpu.uuid === name || String(gpu.index) === name) ?? [])
    : gpus;
  return seen.slice(0, count);
}

function gib(mib: number): string {
  return (mib / 1024).toFixed(2);
}
