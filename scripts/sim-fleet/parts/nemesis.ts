import type { History } from './history.ts';
import type { Fault } from './plan.ts';

/** Longer than it takes from a file's name to the lines that tell of it. */
const AIM_MS = 12;
const AIMED_FOR_MS = 20_000;

/** Does to a history what its plan says, and undoes it. */
export class Nemesis {
  readonly #history: History;
  readonly counts = { crashes: 0, partitions: 0, powerLosses: 0 };
  /** Hosts that never come back. */
  readonly gone = new Set<string>();
  #open = 0;
  readonly #aimed = new Map<Fault, string>();

  constructor(history: History) {
    this.#history = history;
  }

  /** Something is still to be done, or to be undone. */
  get isBusy(): boolean {
    return this.#open > 0;
  }

  schedule(faults: readonly Fault[]): void {
    const { world } = this.#history;
    for (const fault of faults) {
      this.#open += 1;
      world.after(fault.atMs, undefined, () => {
        if (fault.isAimed === true) this.#aim(fault);
        else this.#strike(fault);
      });
    }
  }

  /** A file of this machine got its final name: what was aimed at that strikes before the work after it is done. */
  onNamed(machine: string): void {
    for (const [fault, at] of this.#aimed) {
      if (at !== machine) continue;
      this.#aimed.delete(fault);
      const { world } = this.#history;
      world.after(world.rng.between(0, AIM_MS), undefined, () => this.#strike(fault));
    }
  }

  #aim(fault: Fault): void {
    const { world, plan } = this.#history;
    const bridge = 'bridge' in fault ? plan.bridges.find(({ name }) => name === fault.bridge) : undefined;
    this.#aimed.set(fault, bridge?.laptop ?? ('host' in fault ? fault.host : 'laptop' in fault ? fault.laptop : ''));
    world.after(AIMED_FOR_MS, undefined, () => {
      if (this.#aimed.delete(fault)) this.#open -= 1; // no file came
    });
  }

  #strike(fault: Fault): void {
    const { world } = this.#history;
    world.say('nemesis', () => `begins ${JSON.stringify(fault)}`);
    const end = this.#begin(fault);
    world.after(fault.forMs, undefined, () => {
      world.say('nemesis', () => `ends ${fault.kind}`);
      end();
      this.#open -= 1;
    });
  }

  /** Returns what ends it. */
  #begin(fault: Fault): () => void {
    switch (fault.kind) {
      case 'agent-crash':
        return this.#agentCrash(fault.host);
      case 'agent-stop':
        return this.#agentStop(fault.host);
      case 'agent-hang':
        return this.#hang(this.#history.agents.get(fault.host)?.process, fault.forMs);
      case 'host-power':
        return this.#hostPower(fault.host);
      case 'host-gone':
        this.gone.add(fault.host);
        return this.#hostPower(fault.host);
      case 'host-disk-full':
        return this.#diskFull(fault.host);
      case 'laptop-disk-full':
        return this.#diskFull(fault.laptop);
      case 'drain':
        return this.#drain(fault.host);
      case 'engine-failures':
        return this.#engineFailures(fault);
      case 'bridge-crash':
        return this.#bridgeCrash(fault.bridge);
      case 'bridge-stop':
        return this.#bridgeStop(fault.bridge);
      case 'bridge-hang':
        return this.#hang(this.#history.bridges.get(fault.bridge)?.process, fault.forMs);
      case 'laptop-power':
        return this.#laptopPower(fault.laptop);
      case 'laptop-sleep':
        return this.#sleep(fault);
      case 'partition':
        return this.#partition(fault);
      case 'cancel':
        return this.#cancel(fault);
    }
  }

  #agentCrash(host: string): () => void {
    const { agents, hosts } = this.#history;
    if (agents.get(host)?.process.isAlive !== true) return () => undefined;
    this.counts.crashes += 1;
    agents.get(host)?.process.die();
    return () => {
      if (hosts.get(host)?.isOn === true && agents.get(host)?.process.isAlive !== true) this.#history.startAgent(host);
    };
  }

  #agentStop(host: string): () => void {
    const { agents, hosts, world } = this.#history;
    const agent = agents.get(host);
    if (agent?.process.isAlive !== true) return () => undefined;
    world.after(0, agent.process, () => void agent.stop());
    return () => {
      // systemd waits so long and no longer.
      agents.get(host)?.process.die();
      if (hosts.get(host)?.isOn === true) this.#history.startAgent(host);
    };
  }

  #hostPower(host: string): () => void {
    const machine = this.#history.hosts.get(host);
    if (machine?.isOn !== true) return () => undefined;
    this.counts.powerLosses += 1;
    machine.isOn = false;
    for (const process of [...machine.processes]) process.die();
    machine.disk.losePower();
    return () => {
      if (this.gone.has(host)) return;
      machine.isOn = true;
      this.#history.startAgent(host);
    };
  }

  #laptopPower(name: string): () => void {
    const { laptops, plan, checks } = this.#history;
    const machine = laptops.get(name);
    if (machine?.isOn !== true) return () => undefined;
    this.counts.powerLosses += 1;
    machine.isOn = false;
    for (const process of [...machine.processes]) process.die();
    machine.disk.losePower();
    checks.lookAtOutput(machine);
    return () => {
      machine.isOn = true;
      machine.wake(this.#history.world.nowMs);
      for (const bridge of plan.bridges) if (bridge.laptop === name) this.#history.startBridge(bridge.name);
    };
  }

  #hang(process: { hungUntilMs: number } | undefined, forMs: number): () => void {
    const untilMs = this.#history.world.nowMs + forMs;
    if (process !== undefined) process.hungUntilMs = Math.max(process.hungUntilMs, untilMs);
    return () => undefined;
  }

  #diskFull(name: string): () => void {
    const machine = this.#history.hosts.get(name) ?? this.#history.laptops.get(name);
    if (machine === undefined) return () => undefined;
    machine.disk.isFull = true;
    this.#history.checks.wasFull.add(name);
    return () => {
      machine.disk.isFull = false;
    };
  }

  #drain(host: string): () => void {
    const { agents, world } = this.#history;
    const tell = (what: 'drain' | 'resume'): void => {
      const agent = agents.get(host);
      if (agent === undefined) return;
      world.after(0, agent.process, () => void agent.exchange?.[what]().catch(() => undefined)); // its disk may be full
    };
    tell('drain');
    // Whoever is down when it is resumed would drain for ever, and one that hangs may not even have drained yet.
    const resume = (): void => {
      tell('resume');
      world.after(1_000, undefined, () => {
        if (agents.get(host)?.exchange?.isDraining !== false) resume();
      });
    };
    return resume;
  }

  #engineFailures(fault: Extract<Fault, { kind: 'engine-failures' }>): () => void {
    const temper = this.#history.tempers.get(fault.host);
    if (temper === undefined) return () => undefined;
    temper.failShare = fault.share;
    temper.failsByDeath = fault.kills;
    return () => {
      temper.failShare = 0;
    };
  }

  #bridgeCrash(name: string): () => void {
    const { bridges } = this.#history;
    if (bridges.get(name)?.process.isAlive !== true) return () => undefined;
    this.counts.crashes += 1;
    bridges.get(name)?.process.die();
    return () => this.#bridgeAgain(name);
  }

  #bridgeStop(name: string): () => void {
    const bridge = this.#history.bridges.get(name);
    if (bridge?.process.isAlive !== true) return () => undefined;
    this.#history.world.after(0, bridge.process, () => void bridge.stop());
    return () => {
      bridge.process.die();
      this.#bridgeAgain(name);
    };
  }

  #bridgeAgain(name: string): void {
    const { bridges, plan, laptops } = this.#history;
    const laptop = plan.bridges.find((one) => one.name === name)?.laptop ?? '';
    if (laptops.get(laptop)?.isOn === true && bridges.get(name)?.process.isAlive !== true) {
      this.#history.startBridge(name);
    }
  }

  #sleep({ laptop, forMs }: { laptop: string; forMs: number }): () => void {
    const machine = this.#history.laptops.get(laptop);
    if (machine?.isOn !== true || machine.isAsleep) return () => undefined;
    const { world } = this.#history;
    machine.sleep(world.nowMs, forMs);
    return () => machine.wake(world.nowMs);
  }

  #partition({ laptop, host, direction }: Extract<Fault, { kind: 'partition' }>): () => void {
    this.counts.partitions += 1;
    const way = this.#history.network.way(laptop, host);
    if (direction !== 'toBridge') way.isLost.toHost = true;
    if (direction !== 'toHost') way.isLost.toBridge = true;
    return () => way.heal();
  }

  #cancel({ bridge: name, share }: Extract<Fault, { kind: 'cancel' }>): () => void {
    const bridge = this.#history.bridges.get(name);
    const { world } = this.#history;
    if (bridge?.process.isAlive !== true) return () => undefined;
    world.after(0, bridge.process, () => {
      const batch = bridge.fleet?.list()[0];
      if (bridge.fleet === undefined || batch === undefined) return;
      const jobs = batch.jobs.filter(() => world.rng.chance(share)).map(({ jobId }) => jobId);
      for (const { jobId } of batch.jobs)
        if (share === 1 || jobs.includes(jobId)) this.#history.checks.unwanted.add(jobId);
      const ids = share === 1 ? [batch.batchId] : jobs;
      for (const id of ids) void bridge.fleet.cancel(id).catch(() => undefined); // its disk may be full
    });
    return () => undefined;
  }
}
