import { Deadline, untilAborted } from '../../shared/abort.ts';
import type { Log } from '../../shared/log.ts';
import { readInventory } from './inventory.ts';
import type { NvidiaSmi } from './nvidia-smi.ts';

export type DriverVersionOptions = { smi: NvidiaSmi; nvidiaSmi: string; log: Log };

/** On some machines the inventory of all GPUs takes this long by itself. */
const INVENTORY_MS = 20_000;

/** The driver's version, as last read; null until then, and where it cannot be read. */
export class DriverVersion {
  readonly #options: DriverVersionOptions;
  #runs: Promise<string> | undefined;
  #version: string | null = null;

  constructor(options: DriverVersionOptions) {
    this.#options = options;
  }

  get version(): string | null {
    return this.#version;
  }

  /** Never starts a second inventory while the first one hangs, and never rejects. */
  async read(signal: AbortSignal): Promise<void> {
    using limit = new Deadline({ ms: INVENTORY_MS, signal });
    const runs = (this.#runs ??= this.#inventory());
    try {
      this.#version = await untilAborted(runs, limit.signal);
    } catch (error) {
      if (signal.aborted) return;
      this.#options.log.warn({ event: 'gpu-inventory-failed', error: String(error) });
      // It gives no handle of its child, so that this is all that can be done about one that hangs.
      if (limit.isExpired) this.#options.smi.countStuck('nvidia-smi -q -x', runs);
      else this.#version = await this.#short(signal);
    }
  }

  async #inventory(): Promise<string> {
    try {
      return (await readInventory(this.#options.nvidiaSmi)).nvidia_smi_log.driver_version;
    } finally {
      this.#runs = undefined;
    }
  }

  /** The package takes any warning on stderr for a failure, and finds only a command named nvidia-smi. */
  async #short(signal: AbortSignal): Promise<string | null> {
    try {
      const { stdout } = await this.#options.smi.run(['--query-gpu=driver_version', '--format=csv,noheader'], signal);
      const version = stdout.split('\n')[0]?.trim() ?? '';
      return /^\d+(\.\d+)+$/.test(version) ? version : null;
    } catch {
      return null; // the loop reports why the GPU cannot be read
    }
  }
}
