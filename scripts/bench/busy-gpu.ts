import { pause } from '../../shared/abort.ts';
import type { SimulatedHost } from '../lib/simulated-host.ts';
import { Ledger, startTimeOf } from '../sim/lib/ledger.ts';

/**
 * A GPU whose readings are others every second, as they are on a real one: a process that is not gantry's holds a little of
 * it and works every other second. So each sample is a change of the status. Lasts until disposed.
 */
export class BusyGpu implements AsyncDisposable {
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;

  constructor(hosts: readonly SimulatedHost[], { everyMs = 1_000 }: { everyMs?: number } = {}) {
    this.#running = this.#run(hosts, everyMs);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#running;
  }

  async #run(hosts: readonly SimulatedHost[], everyMs: number): Promise<void> {
    const startTime = startTimeOf(process.pid);
    if (startTime === undefined) throw new Error('a process that runs has a start time');
    const held = { pid: process.pid, startTime, usedMiB: 500, name: 'bench' };
    for (let isBusy = false; !this.#stop.signal.aborted; isBusy = !isBusy) {
      for (const { ledger, name } of hosts) new Ledger(ledger).note({ ...held, gpuUuid: `GPU-${name}-0`, isBusy });
      await pause(everyMs, this.#stop.signal);
    }
  }
}
