import type { History } from './history.ts';

const LOOK_MS = 1_000;
/** 45 s of silence, and two looks of the batch. */
const DETECTED_MS = 47_000;

/**
 * P7: once nothing has come from a host for 47 s, no job of a bridge that was awake all the time is bound to it any more.
 * That is: it waits for, or has, another host.
 */
export class Silence {
  readonly #history: History;
  /** Since when each laptop and each bridge can look. */
  readonly #awakeSinceMs = new Map<string, number>();

  constructor(history: History) {
    this.#history = history;
  }

  begin(): void {
    const { world } = this.#history;
    world.after(LOOK_MS, undefined, () => {
      this.#look();
      this.begin();
    });
  }

  #look(): void {
    const { world, bridges, network, checks, plan } = this.#history;
    for (const [name, bridge] of bridges) {
      const { process } = bridge;
      const isAwake = process.isAlive && !process.machine.isAsleep && process.hungUntilMs <= world.nowMs;
      if (!isAwake || bridge.fleet === undefined) {
        this.#awakeSinceMs.delete(name);
        continue;
      }
      // One that died may have been started again between two looks.
      const sinceMs = Math.max(this.#awakeSinceMs.get(name) ?? world.nowMs, bridge.startedAtMs);
      this.#awakeSinceMs.set(name, sinceMs);
      for (const host of plan.hosts) {
        const { lastArrivalMs } = network.way(process.machine.name, host.name);
        if (world.nowMs - Math.max(lastArrivalMs, sinceMs) < DETECTED_MS) continue;
        for (const view of bridge.fleet.list()) {
          const stuck = view.isOurs && view.jobs.find((job) => job.host === host.name && BOUND.has(job.state));
          if (stuck === undefined || stuck === false) continue;
          checks.fail('P7', `${host.name} has been silent for 47 s, and ${stuck.prompt} is still ${stuck.state} there`);
        }
      }
    }
  }
}

const BOUND: ReadonlySet<string> = new Set(['taking', 'accepted', 'running', 'unsure', 'fetching']);
