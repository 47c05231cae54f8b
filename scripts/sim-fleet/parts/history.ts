import { toAppError } from '../../../shared/errors.ts';
import { Network, enterNetwork } from '../world/network.ts';
import { Machine, World, enterWorld } from '../world/world.ts';
import { syncNode } from '../world/disk.ts';
import { AGENT_STATE, SimulatedAgent } from './agent.ts';
import { BRIDGE_STATE, SimulatedBridge } from './bridge.ts';
import { Checks } from './checks.ts';
import type { Violation } from './checks.ts';
import { checkEnd } from './end-checks.ts';
import { simulatedLog } from './log.ts';
import { Nemesis } from './nemesis.ts';
import type { Plan, Poison } from './plan.ts';
import { planOf } from './plan.ts';
import { Silence } from './silence.ts';
import type { GpuTemper } from './servers.ts';

/** What is told of many histories together. */
export type Tally = {
  events: number;
  virtualMs: number;
  jobs: number;
  batches: number;
  crashes: number;
  partitions: number;
  powerLosses: number;
  faults: number;
  files: number;
  accepted: number;
  runs: number;
  failedJobs: number;
  cancelledJobs: number;
  /** From the end of the last fault to the end of the last batch. */
  calmMs: number;
};

/** A batch that nobody can end within this virtual time after the last fault is stuck. */
const PATIENCE_MS = 6 * 60_000;
/** Acknowledgements and deletions that are still on their way. */
const AFTERMATH_MS = 3_000;
const LOOK_MS = 500;

/** One seed: machines, programs, orders, faults and checks, in one world. */
export class History {
  readonly plan: Plan;
  readonly world: World;
  readonly network: Network;
  readonly checks = new Checks();
  readonly hosts = new Map<string, Machine>();
  readonly laptops = new Map<string, Machine>();
  readonly tempers = new Map<string, GpuTemper>();
  readonly agents = new Map<string, SimulatedAgent>();
  readonly bridges = new Map<string, SimulatedBridge>();
  readonly poison = new Map<string, Poison>();
  readonly nemesis: Nemesis;
  readonly #silence: Silence;
  readonly #log = simulatedLog((event, error) => this.#onDefect(event, error));
  #ordersLeft = 0;
  #orderFailures = 0;
  #endedAtMs = 0;
  #lookAgainAtMs = 0;

  constructor(seed: number, { isTraced = false }: { isTraced?: boolean }) {
    this.plan = planOf(seed);
    this.world = enterWorld(new World(seed, { isTraced }));
    this.world.onThrown = (error) => this.#onDefect('thrown', error);
    this.network = enterNetwork(new Network());
    for (const { jobs } of this.plan.batches) for (const job of jobs) this.poison.set(job.name, job.poison);
    for (const { name } of this.plan.hosts) this.#addHost(name);
    for (const name of this.plan.laptops) this.#addLaptop(name);
    this.network.onSent = (way, direction, piece) => this.checks.onSent(way, direction, piece);
    this.nemesis = new Nemesis(this);
    this.checks.onNamed = (machine) => this.nemesis.onNamed(machine);
    this.#silence = new Silence(this);
  }

  async run(): Promise<void> {
    const onRejection = (error: unknown): void => this.#onDefect('unhandled rejection', error);
    process.on('unhandledRejection', onRejection);
    try {
      for (const { name } of this.plan.hosts) this.startAgent(name);
      for (const { name } of this.plan.bridges) this.startBridge(name);
      for (const batch of this.plan.batches) this.#order(batch);
      this.nemesis.schedule(this.plan.faults);
      this.#silence.begin();
      const isOver = await this.world.run(() => this.#isOver(), this.plan.calmAtMs + PATIENCE_MS);
      this.#endedAtMs = this.world.nowMs;
      if (isOver) await this.world.run(() => this.checks.violations.length > 0, this.world.nowMs + AFTERMATH_MS);
      checkEnd(this, { isOver, endedAtMs: this.#endedAtMs });
    } finally {
      process.off('unhandledRejection', onRejection);
    }
  }

  verdict(): { hash: string; violations: Violation[]; tally: Tally; trace: string[] | undefined } {
    const { counts } = this.checks;
    const ends = [...this.laptops.values()]
      .flatMap((laptop) => this.checks.manifests(laptop))
      .flatMap(({ lines }) => lines);
    return {
      hash: this.world.hash,
      violations: this.checks.violations,
      trace: this.world.trace,
      tally: {
        events: this.world.events,
        virtualMs: this.#endedAtMs,
        jobs: ends.filter(({ type }) => type === 'job').length,
        batches: ends.filter(({ type }) => type === 'batch').length,
        ...this.nemesis.counts,
        faults: this.plan.faults.length,
        files: counts.files,
        accepted: counts.accepted,
        runs: counts.runs,
        failedJobs: ends.filter(({ type }) => type === 'failed').length,
        cancelledJobs: ends.filter(({ type }) => type === 'cancelled').length,
        calmMs: Math.max(0, this.#endedAtMs - this.plan.calmAtMs),
      },
    };
  }

  startAgent(name: string): void {
    const host = this.plan.hosts.find((one) => one.name === name);
    const machine = this.hosts.get(name);
    const temper = this.tempers.get(name);
    if (host === undefined || machine === undefined || temper === undefined) throw new Error(`no host ${name}`);
    const { checks } = this;
    const agent = new SimulatedAgent({
      ...{ host, machine, temper, log: this.#log },
      poisonOf: (jobName) => this.poison.get(jobName) ?? 'none',
      watch: {
        onListen: () => checks.onListen(machine),
        onStopped: () => checks.onAgentStopped(machine),
        onRunStart: (jobName) => checks.onRunStart(machine, jobName),
        onRunEnd: (jobName) => checks.onRunEnd(machine, jobName),
        onServerDeath: () => undefined,
      },
    });
    agent.process.onDeath(() => checks.onAgentDeath(machine));
    this.agents.set(name, agent);
    // systemd starts it again when it cannot start, as while its disk is full.
    this.world.after(0, agent.process, () => {
      agent.start().catch((error: unknown) => {
        this.world.say('agent', () => `cannot start: ${String(error)}`);
        if (!machine.disk.isFull) this.#onDefect('agent start', error);
        agent.process.die();
        this.world.after(2_000, undefined, () => machine.isOn && this.startAgent(name));
      });
    });
  }

  startBridge(name: string): void {
    const plan = this.plan.bridges.find((one) => one.name === name);
    const machine = this.laptops.get(plan?.laptop ?? '');
    if (plan === undefined || machine === undefined) throw new Error(`no bridge ${name}`);
    const bridge = new SimulatedBridge({ name, machine, hosts: this.plan.hosts, log: this.#log });
    this.bridges.set(name, bridge);
    this.world.after(0, bridge.process, () => bridge.start());
  }

  /** A person asks; a bridge that is not there is asked again later, and so is one that refused. */
  #order(batch: Plan['batches'][number], inMs = batch.atMs): void {
    this.#ordersLeft += 1;
    this.world.after(inMs, undefined, () => {
      this.#ordersLeft -= 1;
      const bridge = this.bridges.get(batch.bridge);
      if (bridge?.process.isAlive !== true || bridge.isStopping || bridge.fleet === undefined)
        return this.#order(batch, 2_000);
      this.#ordersLeft += 1;
      let isAnswered = false;
      const answered = (): void => {
        if (!isAnswered) this.#ordersLeft -= 1;
        isAnswered = true;
      };
      // Nobody knows what became of a call whose bridge died; whoever asked sees it in the list of batches.
      bridge.process.onDeath(answered);
      this.world.after(0, bridge.process, () => {
        bridge.order(batch).then(answered, (error: unknown) => {
          this.world.say('order', () => `refused: ${String(error)}`);
          if (isAnswered) return;
          answered();
          this.#orderFailures += 1;
          if (toAppError(error).code === 'INTERNAL') this.#onDefect('order', error);
          if (this.#orderFailures < 50) this.#order(batch, 3_000);
        });
      });
    });
  }

  #isOver(): boolean {
    if (this.checks.violations.length > 0) return true;
    // Asked after each event: seldom enough is soon enough.
    if (this.world.nowMs < this.#lookAgainAtMs) return false;
    this.#lookAgainAtMs = this.world.nowMs + LOOK_MS;
    if (this.#ordersLeft > 0 || this.nemesis.isBusy) return false;
    return [...this.bridges.values()].every(
      (bridge) =>
        bridge.process.isAlive &&
        bridge.fleet?.hosts().every(({ name, link }) => link.kind === 'up' || this.nemesis.gone.has(name)) === true &&
        bridge.fleet.list().every(({ state }) => state !== 'running'),
    );
  }

  #onDefect(what: string, error: unknown): void {
    const isFull = [...this.hosts.values(), ...this.laptops.values()].some(({ name }) => this.checks.wasFull.has(name));
    const text = error instanceof Error ? `${error.message} ${error.stack ?? ''}` : JSON.stringify(error);
    if (!isFull) this.checks.fail('defect', `${what}: ${text}`);
  }

  #addHost(name: string): void {
    const machine = new Machine(name);
    prepare(machine, [AGENT_STATE]);
    this.hosts.set(name, machine);
    this.network.addHost(machine);
    this.tempers.set(name, { failShare: 0, failsByDeath: false });
    this.checks.addHost(machine);
  }

  #addLaptop(name: string): void {
    const machine = new Machine(name);
    prepare(machine, [BRIDGE_STATE]);
    this.laptops.set(name, machine);
    for (const host of this.hosts.values()) this.network.addWay(machine, host);
    this.checks.addLaptop(machine);
  }
}

/** Directories that were there long before. */
function prepare(machine: Machine, directories: readonly string[]): void {
  for (const path of directories) machine.disk.mkdirs(path);
  for (const path of ['/', ...directories]) syncNode(machine.disk.directory(path, 'open'));
}
