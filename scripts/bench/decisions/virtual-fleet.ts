import type { ChoiceView, Grant, LineView, SlotView } from '../../../agent/job/choice.ts';
import { choose } from '../../../agent/job/slot-scheduler.ts';
import type { TurnMemory } from '../../../agent/job/turn-memory.ts';
import { EMPTY_MEMORY, rememberRun } from '../../../agent/job/turn-memory.ts';
import { answerGrant } from '../../../bridge/fleet/batch-plan.ts';
import type { PlanJob, PlanRules } from '../../../bridge/fleet/batch-plan.ts';
import type { HostView } from '../../../bridge/fleet/host-view.ts';
import type { Holding } from '../../../bridge/fleet/job-record.ts';
import { ranksOf } from '../../../bridge/fleet/offers.ts';
import { planSlots } from '../../../bridge/fleet/plan-slots.ts';
import type { OwnWaiting } from '../../../bridge/fleet/plan-slots.ts';
import type { GenerateRequest } from '../../../shared/job.ts';
import { estimateMs, learnServiceTime } from '../../../shared/service-time.ts';
import type { ServiceTime } from '../../../shared/service-time.ts';
import { hostView, jobOf, MODEL, UNIT_MS } from './virtual-host-view.ts';
import { random } from './random.ts';

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

type VirtualJob = { id: string; request: GenerateRequest; units: number; workMs: number };
type Active = { bridge: number; job: VirtualJob; startMs?: number; expectedMs: number; grantedMs: number };
type Line = {
  sentCount: number;
  left: number;
  workMs: number;
  inFlight: number;
  rank: number;
  sinceMs: number;
  isDeclined: boolean;
};
type Host = {
  service: ServiceTime;
  lines: Map<number, Line>;
  memory: TurnMemory;
  granted: { grant: Grant; bridge: number; isLead: boolean; atMs: number } | undefined;
  jobs: Active[];
  leadMs: number;
  statusSentMs: number;
  isStatusDue: boolean;
  alarm: number;
};
type Bridge = {
  waiting: VirtualJob[];
  inFlight: number;
  views: HostView[];
  seenAtMs: number[];
  holdings: (Holding & { id: string })[];
  declinedSinceMs: Map<string, number>;
  offers: { sentMs: number; hasDeclined: boolean; text: string }[];
  isFlushDue: boolean;
};

const RULES: PlanRules = { only: undefined, avoid: [], spread: undefined };
/** As in agent/rpc/status-feed.ts and bridge/fleet/work-desk.ts. */
const STATUS_GAP_MS = 250;
const OFFER_SOON_MS = 10;
const OFFER_COUNTS_MS = 200;
const OFFER_EVERY_MS = 2_000;
/** What an agent does between a take and the engine's first byte. */
const START_MS = 1;

/**
 * The exchange in virtual time, with the product's own decisions on both sides: offers, grants ahead, takes, declines,
 * status that is up to 250 ms old, messages that take time, and run times that are learned.
 */
export function playFleet(given: FleetCase): FleetResult {
  return new VirtualFleet(given).run();
}

class VirtualFleet {
  readonly #given: FleetCase;
  readonly #random: () => number;
  readonly #hosts: Host[];
  readonly #bridges: Bridge[];
  readonly #runs: Run[] = [];
  readonly #events: { atMs: number; order: number; act: () => void }[] = [];
  #nowMs = 0;
  #count = 0;
  #declines = 0;

  constructor(given: FleetCase) {
    this.#given = given;
    this.#random = random(given.seed ?? 1);
    this.#hosts = given.speeds.map((speed) => ({
      service: given.isCold
        ? { fixedMs: 500, unitMs: UNIT_MS, samples: 0 }
        : { fixedMs: 0, unitMs: UNIT_MS / speed, samples: 5 },
      lines: new Map(),
      memory: EMPTY_MEMORY,
      granted: undefined,
      jobs: [],
      leadMs: 0,
      statusSentMs: -Infinity,
      isStatusDue: false,
      alarm: 0,
    }));
    this.#bridges = given.bridges.map(({ works, order }, bridge) => {
      const jobs = works.map((workMs, index) => jobOf(workMs, `${bridge}-${index}`));
      return {
        waiting: order === 'fifo' ? jobs : jobs.sort((a, b) => b.units - a.units),
        inFlight: 0,
        views: this.#hosts.map((host, at) => hostView(at, { service: host.service, phase: 'idle', freeInMs: 0 })),
        seenAtMs: this.#hosts.map(() => 0),
        holdings: [],
        declinedSinceMs: new Map(),
        offers: this.#hosts.map(() => ({ sentMs: -Infinity, hasDeclined: false, text: '' })),
        isFlushDue: false,
      };
    });
  }

  run(): FleetResult {
    for (const [at, { startsAtMs = 0 }] of this.#given.bridges.entries()) {
      this.#at(startsAtMs, () => this.#flush(at));
      this.#every(at, startsAtMs);
    }
    while (this.#runs.length < this.#total || this.#hosts.some(({ jobs }) => jobs.length > 0)) {
      const next = this.#events.shift();
      if (next === undefined || this.#count > 2_000_000) throw new Error('the fleet is stuck');
      this.#nowMs = next.atMs;
      next.act();
    }
    const makespanMs = Math.max(...this.#runs.map(({ endMs }) => endMs));
    return { makespanMs, runs: this.#runs, declines: this.#declines };
  }

  get #total(): number {
    return this.#given.bridges.reduce((sum, { works }) => sum + works.length, 0);
  }

  get #oneWayMs(): number {
    return this.#given.oneWayMs ?? 0.5;
  }

  #at(atMs: number, act: () => void): void {
    const event = { atMs, order: (this.#count += 1), act };
    let low = 0;
    let high = this.#events.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#events[middle]?.atMs ?? 0) <= atMs) low = middle + 1;
      else high = middle;
    }
    this.#events.splice(low, 0, event);
  }

  #send(act: () => void): void {
    this.#at(this.#nowMs + this.#oneWayMs, act);
  }

  #every(bridge: number, atMs: number): void {
    this.#at(atMs + STATUS_GAP_MS, () => {
      if ((this.#bridges[bridge]?.waiting.length ?? 0) === 0) return;
      this.#flush(bridge);
      this.#every(bridge, this.#nowMs);
    });
  }

  // ---- bridge

  #changed(at: number): void {
    const bridge = this.#bridge(at);
    if (bridge.isFlushDue) return;
    bridge.isFlushDue = true;
    this.#at(this.#nowMs + OFFER_SOON_MS, () => {
      bridge.isFlushDue = false;
      this.#flush(at, true);
    });
  }

  #flush(at: number, isAfterChange = false): void {
    const bridge = this.#bridge(at);
    const ranks = ranksOf(MODEL, bridge.views);
    for (const [hostAt, host] of this.#hosts.entries()) {
      const last = bridge.offers[hostAt];
      const service = bridge.views[hostAt]?.snapshot?.models[0]?.service ?? host.service;
      const count = bridge.waiting.length;
      const workMs = bridge.waiting.reduce((sum, { request }) => sum + estimateMs(service, request), 0);
      const line: Line = {
        ...{ sentCount: count, left: count, workMs, inFlight: bridge.inFlight, rank: ranks.get(`h${hostAt}`) ?? 0 },
        sinceMs: this.#nowMs,
        isDeclined: false,
      };
      const text = `${count} ${bridge.inFlight}`;
      if (last === undefined) continue;
      const ageMs = this.#nowMs - last.sentMs;
      const isDue =
        last.text.startsWith('0 ') !== text.startsWith('0 ') ||
        last.text === '' ||
        (count > 0 && (ageMs >= OFFER_EVERY_MS || (isAfterChange && last.hasDeclined))) ||
        (count > 0 && ageMs >= OFFER_COUNTS_MS && last.text !== text);
      if (!isDue) continue;
      bridge.offers[hostAt] = { sentMs: this.#nowMs, hasDeclined: false, text };
      this.#send(() => {
        if (count === 0) host.lines.delete(at);
        else
          host.lines.set(at, {
            ...line,
            sinceMs: host.lines.get(at)?.sinceMs ?? this.#nowMs,
          });
        this.#choose(hostAt);
      });
    }
  }

  #onGrant(at: number, { hostAt, grant, atMs }: { hostAt: number; grant: Grant; atMs: number }): void {
    const bridge = this.#bridge(at);
    const name = `h${hostAt}`;
    const hosts = bridge.views.map((view, index) => ({
      ...view,
      statusAgeMs: this.#nowMs - (bridge.seenAtMs[index] ?? 0),
    }));
    const granted = { host: name, slotId: 's', startsInMs: grant.startsInMs };
    const slots = planSlots(
      { model: MODEL, class: 'batch' },
      { hosts, holdings: bridge.holdings, nowMs: this.#nowMs, granted, waiting: waitingOf(bridge.waiting) },
    );
    const jobs: PlanJob[] = bridge.waiting.map(({ id, units }) => ({
      jobId: id,
      class: 'batch',
      units,
      rules: RULES,
      declinedForMs: this.#nowMs - (bridge.declinedSinceMs.get(id) ?? this.#nowMs),
    }));
    const answer = answerGrant({ ...granted, class: 'batch' }, jobs, slots);
    if (answer.kind === 'decline') {
      this.#declines += 1;
      for (const { id } of bridge.waiting) {
        if (!bridge.declinedSinceMs.has(id)) bridge.declinedSinceMs.set(id, this.#nowMs);
      }
      const offer = bridge.offers[hostAt];
      if (offer !== undefined) offer.hasDeclined = true;
      this.#send(() => this.#declined(hostAt, { bridge: at, atMs }));
      return;
    }
    const job = bridge.waiting.find(({ id }) => id === answer.jobId);
    if (job === undefined) throw new Error('the plan chose an unknown job');
    bridge.waiting = bridge.waiting.filter((each) => each !== job);
    bridge.inFlight += 1;
    bridge.declinedSinceMs.delete(job.id);
    bridge.holdings.push({ id: job.id, host: name, slotId: 's', endsAtMs: this.#nowMs + answer.endsInMs });
    this.#changed(at);
    this.#send(() => this.#take(hostAt, { bridge: at, job, atMs }));
  }

  #onDone(at: number, job: VirtualJob): void {
    const bridge = this.#bridge(at);
    bridge.inFlight -= 1;
    bridge.holdings = bridge.holdings.filter(({ id }) => id !== job.id);
    this.#changed(at);
  }

  // ---- host

  #choose(hostAt: number): void {
    const host = this.#host(hostAt);
    const { grants, memory, againInMs } = choose(this.#view(hostAt), host.memory);
    host.memory = memory;
    for (const grant of grants) {
      const bridge = Number(grant.line.sessionId);
      const line = host.lines.get(bridge);
      if (line !== undefined) Object.assign(line, { left: line.left - 1, sinceMs: this.#nowMs });
      const atMs = this.#nowMs;
      host.granted = { grant, bridge, isLead: grant.isLead, atMs };
      this.#send(() => this.#onGrant(bridge, { hostAt, grant, atMs }));
    }
    const alarm = (host.alarm += 1);
    if (againInMs !== undefined) {
      this.#at(this.#nowMs + Math.max(5, againInMs), () => {
        if (host.alarm === alarm) this.#choose(hostAt);
      });
    }
    this.#status(hostAt);
  }

  #declined(hostAt: number, { bridge, atMs }: { bridge: number; atMs: number }): void {
    const host = this.#host(hostAt);
    if (host.granted?.atMs !== atMs || host.granted.bridge !== bridge) return;
    host.granted = undefined;
    const line = host.lines.get(bridge);
    if (line !== undefined) line.isDeclined = true;
    this.#choose(hostAt);
  }

  #take(hostAt: number, { bridge, job, atMs }: { bridge: number; job: VirtualJob; atMs: number }): void {
    const host = this.#host(hostAt);
    host.granted = undefined;
    host.jobs.push({ bridge, job, expectedMs: estimateMs(host.service, job.request), grantedMs: atMs });
    if (host.jobs.length === 1) this.#at(this.#nowMs + START_MS, () => this.#start(hostAt, false));
    this.#choose(hostAt);
  }

  #start(hostAt: number, isLead: boolean): void {
    const host = this.#host(hostAt);
    const [active] = host.jobs;
    if (active === undefined) throw new Error('nothing to start');
    active.startMs = this.#nowMs;
    if (!isLead) {
      const tookMs = Math.min(2_000, this.#nowMs - active.grantedMs);
      host.leadMs = host.leadMs === 0 ? tookMs : host.leadMs * 0.8 + tookMs * 0.2;
    }
    const speed = this.#given.speeds[hostAt] ?? 1;
    const runMs = (active.job.workMs / speed) * Math.exp((this.#given.noise ?? 0) * this.#normal());
    this.#at(this.#nowMs + runMs, () => this.#end(hostAt, { active, runMs }));
    this.#choose(hostAt);
  }

  #end(hostAt: number, { active, runMs }: { active: Active; runMs: number }): void {
    const host = this.#host(hostAt);
    const { bridge, job, startMs = 0 } = active;
    this.#runs.push({ bridge, job: job.id, host: hostAt, startMs, endMs: this.#nowMs });
    host.jobs.shift();
    host.service = learnServiceTime(host.service, { request: job.request, runMs });
    host.memory = rememberRun(host.memory, { tokenId: this.#token(bridge), sessionId: `${bridge}`, runMs });
    if (host.jobs.length > 0) this.#at(this.#nowMs + 0.3, () => this.#start(hostAt, true));
    this.#send(() => this.#onDone(bridge, job));
    this.#choose(hostAt);
  }

  /** As the status feed: at once, but at most every 250 ms. */
  #status(hostAt: number): void {
    const host = this.#host(hostAt);
    if (host.isStatusDue) return;
    host.isStatusDue = true;
    this.#at(Math.max(this.#nowMs, host.statusSentMs + STATUS_GAP_MS), () => {
      host.isStatusDue = false;
      host.statusSentMs = this.#nowMs;
      const freeInMs = host.jobs.reduce((sum, each) => sum + this.#leftMs(each), 0);
      const phase = host.jobs.length === 0 ? (host.granted === undefined ? 'idle' : 'granted') : 'running';
      const lines = [...host.lines.values()];
      const offered = {
        count: lines.reduce((sum, { left }) => sum + Math.max(0, left), 0),
        workMs: lines.reduce((sum, line) => sum + (line.workMs * Math.max(0, line.left)) / line.sentCount, 0),
        sessions: lines.filter(({ left }) => left > 0).length,
      };
      const view = hostView(hostAt, { service: host.service, phase, freeInMs, offered });
      for (const bridge of this.#bridges) {
        this.#send(() => {
          bridge.views[hostAt] = view;
          bridge.seenAtMs[hostAt] = this.#nowMs;
        });
      }
    });
  }

  #view(hostAt: number): ChoiceView {
    const host = this.#host(hostAt);
    const [running] = host.jobs;
    const slot: SlotView = {
      ...{ slotId: 's', model: MODEL, cannot: false, isReady: true, isMoving: false, isHeldAway: false },
      phase: running === undefined ? (host.granted ? 'granted' : 'idle') : running.startMs ? 'running' : 'accepted',
      gpus: ['g'],
      swapMs: 40_000,
      work: [
        ...host.jobs.map(({ bridge, expectedMs }) => ({
          tokenId: this.#token(bridge),
          sessionId: `${bridge}`,
          expectedMs,
        })),
        ...(host.granted
          ? [
              {
                tokenId: this.#token(host.granted.bridge),
                sessionId: `${host.granted.bridge}`,
                expectedMs: host.granted.grant.line.workMs / Math.max(1, host.granted.grant.line.count),
              },
            ]
          : []),
      ],
      endsInMs: running?.startMs !== undefined && host.service.samples > 0 ? this.#leftMs(running) : null,
      hasNext: host.jobs.length + (host.granted ? 1 : 0) > 1,
    };
    const lines = [...host.lines].map(([bridge, line]): LineView => ({
      ...{ lineId: `${bridge}`, sessionId: `${bridge}`, tokenId: this.#token(bridge), model: MODEL, class: 'batch' },
      count: line.left,
      workMs: (line.workMs * Math.max(0, line.left)) / line.sentCount,
      bridgeId: `${bridge}`,
      rank: line.rank,
      inFlight: line.inFlight,
      waitingMs: this.#nowMs - line.sinceMs,
      isDeclined: line.isDeclined,
      wants: [{ slotId: 's', needMiB: 0, gpuCount: 1, onGpus: ['g'] }],
    }));
    const gpu = { uuid: 'g', totalMiB: 80_000, freeMiB: 60_000, reserveMiB: 0, usable: true, isOut: false };
    return {
      nowMs: this.#nowMs,
      slots: [slot],
      lines,
      vram: { gpus: [gpu], residents: [], hostRamFreeMiB: 0 },
      leadMs: host.leadMs,
      turnMs: 30_000,
    };
  }

  #leftMs({ startMs, expectedMs }: Active): number {
    return startMs === undefined ? expectedMs : Math.max(0, startMs + expectedMs - this.#nowMs);
  }

  #token(bridge: number): string {
    return this.#given.bridges[bridge]?.tokenId ?? '';
  }

  #host(at: number): Host {
    const host = this.#hosts[at];
    if (host === undefined) throw new Error(`no host ${at}`);
    return host;
  }

  #bridge(at: number): Bridge {
    const bridge = this.#bridges[at];
    if (bridge === undefined) throw new Error(`no bridge ${at}`);
    return bridge;
  }

  #normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.#random())) * Math.cos(2 * Math.PI * this.#random());
  }
}

function waitingOf(jobs: readonly VirtualJob[]): OwnWaiting {
  return { count: jobs.length, units: jobs.reduce((sum, { units }) => sum + units, 0) };
}
