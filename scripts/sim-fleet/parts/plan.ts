import { Rng } from '../world/rng.ts';

/** One model that hosts serve. Times are the truth of the simulated GPUs; what the agents learn of them comes from runs. */
export type ModelPlan = { id: string; needMiB: number; loadMs: number; fixedMs: number; unitMs: number };
export type HostPlan = {
  name: string;
  /** How much slower than the fastest. */
  slowness: number;
  gpus: number;
  /** Status is sent at most this often; the product's own 250 ms is the easy case, and most of what is sent. */
  statusGapMs: number;
  models: ModelPlan[];
};
/** How an engine treats a job: always fails, or kills the server it runs on. */
export type Poison = 'none' | 'fails' | 'kills';
export type JobPlan = { name: string; model: string; steps: number; side: number; poison: Poison };
export type BatchPlan = {
  laptop: string;
  bridge: string;
  atMs: number;
  class: 'interactive' | 'batch';
  order: 'longest-first' | 'fifo';
  maxConcurrent: number | undefined;
  jobs: JobPlan[];
};
export type BridgePlan = { name: string; laptop: string };
/** `isAimed`: it waits for the next image or result that gets its final name, and comes within milliseconds of that. */
export type Fault = { atMs: number; forMs: number; isAimed?: boolean } & (
  | { kind: 'agent-crash' | 'agent-stop' | 'host-power' | 'agent-hang' | 'host-disk-full' | 'drain'; host: string }
  /** It loses power and never comes back. */
  | { kind: 'host-gone'; host: string }
  | { kind: 'engine-failures'; host: string; share: number; kills: boolean }
  | { kind: 'bridge-crash' | 'bridge-hang' | 'bridge-stop'; bridge: string }
  | { kind: 'laptop-power' | 'laptop-sleep' | 'laptop-disk-full'; laptop: string }
  | { kind: 'partition'; laptop: string; host: string; direction: 'both' | 'toHost' | 'toBridge' }
  | { kind: 'cancel'; bridge: string; share: number }
);
export type Plan = {
  seed: number;
  hosts: HostPlan[];
  laptops: string[];
  bridges: BridgePlan[];
  batches: BatchPlan[];
  faults: Fault[];
  /** All faults are over then. */
  calmAtMs: number;
};

/** Everything random about a history that is not decided on the way. */
export function planOf(seed: number): Plan {
  const rng = new Rng(seed * 7919 + 17);
  const models = modelsOf(rng);
  const hosts = hostsOf(rng, models);
  const laptops = Array.from({ length: rng.chance(0.15) ? 2 : 1 }, (_, at) => `laptop-${at + 1}`);
  const bridges = bridgesOf(rng, laptops);
  const batches = bridges.flatMap((bridge, at) => batchesOf(rng, { bridge, at, models }));
  const gone = goneOf(seed, hosts);
  const isAlone = gone !== undefined && seed % 2 === 0;
  const others = faultsOf(rng, { hosts, laptops, bridges });
  const faults = [...(isAlone ? [] : others), ...(gone === undefined ? [] : [gone])];
  const calmAtMs = Math.max(
    0,
    ...faults.map(({ atMs, forMs, isAimed }) => atMs + forMs + (isAimed === true ? 20_000 : 0)),
  );
  return { seed, hosts, laptops, bridges, batches, faults, calmAtMs };
}

/** In some histories a host dies for good; never the first, which alone has all models. By its own dice. */
function goneOf(seed: number, hosts: readonly HostPlan[]): Fault | undefined {
  const rng = new Rng(seed * 104_729 + 5);
  const mortal = hosts.slice(1);
  if (mortal.length === 0 || !rng.chance(0.15)) return undefined;
  return { atMs: rng.between(500, 8_000), forMs: 0, kind: 'host-gone', host: rng.pick(mortal).name };
}

function modelsOf(rng: Rng): ModelPlan[] {
  return Array.from({ length: rng.pick([1, 1, 1, 1, 2, 2, 3]) }, (_, at) => ({
    id: `model-${at + 1}`,
    needMiB: rng.int(6_000, 20_000),
    loadMs: rng.between(300, 4_000),
    fixedMs: rng.between(50, 300),
    unitMs: rng.between(5, 60),
  }));
}

function hostsOf(rng: Rng, models: readonly ModelPlan[]): HostPlan[] {
  return Array.from({ length: rng.pick([1, 1, 2, 2, 2, 2, 2, 3, 4]) }, (_, at) => {
    const some = models.filter(() => rng.chance(0.8));
    return {
      name: `host-${at + 1}`,
      slowness: rng.chance(0.3) ? rng.between(2, 6) : rng.between(1, 2),
      gpus: rng.chance(0.2) ? 2 : 1,
      statusGapMs: rng.pick([1_000, 4_000, 10_000]),
      models: at === 0 || some.length === 0 ? [...models] : some, // the first has all, so that no job is hopeless
    };
  });
}

function bridgesOf(rng: Rng, laptops: readonly string[]): BridgePlan[] {
  const all = laptops.flatMap((laptop) => Array.from({ length: rng.chance(0.2) ? 2 : 1 }, () => laptop));
  return all.map((laptop, at) => ({ name: `bridge-${at + 1}`, laptop }));
}

function batchesOf(rng: Rng, o: { bridge: BridgePlan; at: number; models: readonly ModelPlan[] }): BatchPlan[] {
  const count = rng.chance(0.08) ? 2 : o.at > 0 && rng.chance(0.3) ? 0 : 1;
  return Array.from({ length: count }, (_, index) => {
    const isSingle = rng.chance(0.15);
    const jobs = isSingle ? 1 : rng.chance(0.03) ? rng.int(8, 20) : rng.int(2, 4);
    const hasPoison = rng.chance(0.12);
    const poisoned = hasPoison ? rng.int(0, jobs - 1) : -1;
    return {
      laptop: o.bridge.laptop,
      bridge: o.bridge.name,
      atMs: rng.between(100, 2_000),
      class: isSingle ? 'interactive' : 'batch',
      order: rng.chance(0.5) ? 'fifo' : 'longest-first',
      maxConcurrent: rng.chance(0.2) ? rng.int(1, 3) : undefined,
      jobs: Array.from({ length: jobs }, (_job, at) => ({
        name: `${o.bridge.name}-batch-${index + 1}-job-${at + 1}`,
        model: rng.pick(o.models).id,
        steps: rng.int(4, 28),
        side: rng.pick([512, 768, 1024]),
        poison: at !== poisoned ? 'none' : rng.chance(0.5) ? 'fails' : 'kills',
      })),
    };
  });
}

function faultsOf(
  rng: Rng,
  o: { hosts: readonly HostPlan[]; laptops: readonly string[]; bridges: readonly BridgePlan[] },
): Fault[] {
  const count = rng.pick([0, 1, 1, 2, 2, 3, 4]);
  return Array.from({ length: count }, () => {
    const host = rng.pick(o.hosts).name;
    const laptop = rng.pick(o.laptops);
    const bridge = rng.pick(o.bridges).name;
    const when = { atMs: rng.between(200, 8_000), forMs: rng.between(300, 8_000) };
    const long = { ...when, forMs: rng.chance(0.2) ? rng.between(46_000, 70_000) : when.forMs };
    const fault = rng.pick(FAULTS);
    switch (fault) {
      case 'agent-crash':
        return { ...when, isAimed: rng.chance(0.4), kind: fault, host };
      case 'agent-stop':
      case 'drain':
      case 'host-disk-full':
        return { ...when, kind: fault, host };
      case 'host-power':
        return { ...long, isAimed: rng.chance(0.4), kind: fault, host };
      case 'agent-hang':
        return { ...long, kind: fault, host };
      case 'engine-failures':
        return { ...when, kind: fault, host, share: rng.between(0.2, 1), kills: rng.chance(0.3) };
      case 'bridge-crash':
        return { ...when, isAimed: rng.chance(0.5), kind: fault, bridge };
      case 'bridge-hang':
      case 'bridge-stop':
        return { ...when, kind: fault, bridge };
      case 'laptop-power':
        return { ...when, isAimed: rng.chance(0.5), kind: fault, laptop };
      case 'laptop-disk-full':
        return { ...when, kind: fault, laptop };
      case 'laptop-sleep':
        return { ...when, forMs: rng.between(1_000, rng.chance(0.5) ? 10_000 : 300_000), kind: fault, laptop };
      case 'partition': {
        const direction = rng.pick(['both', 'both', 'toHost', 'toBridge'] as const);
        return { ...long, kind: fault, laptop, host, direction };
      }
      case 'cancel':
        return { ...when, kind: fault, bridge, share: rng.chance(0.5) ? 1 : rng.next() };
    }
  });
}

const FAULTS = [
  ...(['agent-crash', 'agent-crash', 'agent-stop', 'host-power', 'host-power', 'agent-hang'] as const),
  ...(['host-disk-full', 'drain', 'engine-failures', 'bridge-crash', 'bridge-crash', 'bridge-hang'] as const),
  ...(['bridge-stop', 'laptop-power', 'laptop-power', 'laptop-sleep', 'laptop-disk-full'] as const),
  ...(['partition', 'partition', 'partition', 'cancel'] as const),
];
