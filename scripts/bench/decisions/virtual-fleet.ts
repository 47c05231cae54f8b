import type { ServiceTime } from '../../../shared/service-time.ts';
import { random } from './random.ts';
import { VirtualAgent } from './virtual-agent.ts';
import type { VirtualRun } from './virtual-agent.ts';
import { VirtualBridge } from './virtual-bridge.ts';
import { VirtualClock } from './virtual-clock.ts';
import { hostView, jobOf, UNIT_MS } from './virtual-host-view.ts';

/** Bridges with one batch each for one model, and hosts with one GPU and that model ready. All times in ms. */
export type FleetCase = {
  speeds: readonly number[];
  /** `works` is what each job takes at speed 1. */
  bridges: readonly { tokenId: string; works: readonly number[]; startsAtMs?: number; order?: 'fifo' }[];
  /** Standard deviation of log(real / expected run time). */
  noise?: number;
  oneWayMs?: number;
  seed?: number;
  /** The hosts have run nothing yet. */
  isCold?: boolean;
};

/** One run of a job on a host. */
export type Run = { bridge: number; job: string; host: number; startMs: number; endMs: number };
export type FleetResult = { makespanMs: number; runs: Run[]; declines: number };

const ONE_WAY_MS = 0.5;

/**
 * The exchange in virtual time, with the product's own decisions on both sides: offers, grants ahead, takes, declines,
 * status that is up to 250 ms old, messages that take time, and run times that are learned.
 */
export function playFleet(given: FleetCase): FleetResult {
  const { speeds, noise = 0, oneWayMs = ONE_WAY_MS } = given;
  const clock = new VirtualClock();
  const normal = normals(random(given.seed ?? 1));
  const runs: Run[] = [];
  const send = (act: () => void): void => clock.after(oneWayMs, act);
  const services = speeds.map((speed) => serviceAt(given.isCold === true ? undefined : speed));
  const agents = services.map(
    (service, at): VirtualAgent =>
      new VirtualAgent({
        ...{ clock, at, service },
        tokenOf: (bridge) => given.bridges[bridge]?.tokenId ?? '',
        runMs: ({ workMs }) => (workMs / (speeds[at] ?? 1)) * Math.exp(noise * normal()),
        grant: (bridge, grant) => send(() => bridges[bridge]?.onGrant({ hostAt: at, ...grant })),
        done: (run) => {
          runs.push(onHost(run, at));
          send(() => bridges[run.bridge]?.onDone(run.job));
        },
        status: (view) => {
          for (const bridge of bridges) send(() => bridge.onStatus(at, view));
        },
      }),
  );
  const views = services.map((service, at) => hostView(at, { service, phase: 'idle', freeInMs: 0 }));
  const bridges = given.bridges.map(({ works, order }, at): VirtualBridge => {
    const jobs = works.map((workMs, index) => jobOf(workMs, `${at}-${index}`));
    return new VirtualBridge({
      ...{ clock, views },
      jobs: order === 'fifo' ? jobs : jobs.sort((a, b) => b.units - a.units),
      offer: (hostAt, offer) => send(() => agents[hostAt]?.offered(at, offer)),
      take: (hostAt, job) => send(() => agents[hostAt]?.taken(at, job)),
      decline: (hostAt, grantId) => send(() => agents[hostAt]?.declined(at, grantId)),
    });
  });
  for (const [at, { startsAtMs = 0 }] of given.bridges.entries()) bridges[at]?.start(startsAtMs);
  const total = given.bridges.reduce((sum, { works }) => sum + works.length, 0);
  while (runs.length < total || agents.some((agent) => !agent.isIdle)) clock.step();
  const makespanMs = Math.max(...runs.map(({ endMs }) => endMs));
  return { makespanMs, runs, declines: bridges.reduce((sum, bridge) => sum + bridge.declines, 0) };
}

/** What a host has learned; undefined: nothing yet. */
function serviceAt(speed: number | undefined): ServiceTime {
  if (speed === undefined) return { fixedMs: 500, unitMs: UNIT_MS, samples: 0 };
  return { fixedMs: 0, unitMs: UNIT_MS / speed, samples: 5 };
}

function onHost({ bridge, job, startMs, endMs }: VirtualRun, host: number): Run {
  return { bridge, job: job.id, host, startMs, endMs };
}

function normals(uniform: () => number): () => number {
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}
