import type { Log } from '../../../shared/log.ts';
import { LIMITS } from '../../../shared/limits.ts';
import { Fleet } from '../../../bridge/fleet/fleet.ts';
import type { BatchOrder } from '../../../bridge/fleet/batch-order.ts';
import type { Machine, Process } from '../world/world.ts';
import { world } from '../world/world.ts';
import type { BatchPlan, HostPlan } from './plan.ts';

export const BRIDGE_STATE = '/s';
export const OUTPUT = '/out';

const TIMES = {
  pingEveryMs: LIMITS.pingEveryMs.value,
  silenceMs: LIMITS.silenceMs.value,
  diskCheckMs: 30_000,
  offerEveryMs: LIMITS.offerEveryMs.value,
  reconnectFirstMs: 500,
  reconnectMaxMs: 30_000,
};

/** What bridge/bridge.ts puts together, without MCP: one run of the program gantry on a laptop. */
export class SimulatedBridge {
  readonly process: Process;
  readonly name: string;
  readonly startedAtMs = world().nowMs;
  fleet: Fleet | undefined;
  isStopping = false;
  readonly #hosts: readonly HostPlan[];
  readonly #log: Log;

  constructor(o: { name: string; machine: Machine; hosts: readonly HostPlan[]; log: Log }) {
    this.name = o.name;
    this.#hosts = o.hosts;
    this.#log = o.log;
    this.process = world().spawn(o.machine, o.name);
  }

  start(): void {
    const { machine } = this.process;
    this.fleet = new Fleet({
      hosts: this.#hosts.map(({ name }) => ({ name, url: `ws://${name}:7801`, token: machine.name })),
      bridgeId: world().rng.uuid(),
      clientName: () => this.name,
      stateDir: BRIDGE_STATE,
      times: TIMES,
      log: this.#log,
    });
    this.fleet.open();
  }

  /** The client closed its pipe: it asks for nothing any more. */
  async stop(): Promise<void> {
    this.isStopping = true;
    await this.fleet?.detach();
    this.process.die();
  }

  async order(plan: BatchPlan): Promise<void> {
    await this.fleet?.start(orderOf(plan, this.name));
  }
}

function orderOf(plan: BatchPlan, client: string): BatchOrder {
  return {
    ...{ kind: 'generate', class: plan.class, order: plan.order, maxConcurrent: plan.maxConcurrent, host: undefined },
    client,
    jobs: plan.jobs.map((job, index) => ({
      index,
      directory: OUTPUT,
      name: undefined,
      request: {
        ...{ kind: 'generate', model: job.model, prompt: job.name, steps: job.steps, seed: index, format: 'png' },
        ...{ guidance: { field: 'guidance_scale', value: 4 }, width: job.side, height: job.side },
      },
    })),
  };
}
